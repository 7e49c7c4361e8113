"""What the core and control ask of the outside world: the ports that io implements and tests replace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from dpac_api.errors import Temporary
from dpac_engine.core.records import KeyChange


class Clock(Protocol):
    """Where time comes from; tests pass a virtual one."""

    def now_ns(self) -> int:
        """Wall-clock time, nanoseconds since 1970 UTC; may step."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment, counting suspend (CLOCK_BOOTTIME); never steps."""


class TargetMissing(Temporary):
    """The place that holds the store is not there: a folder that is not mounted, a bucket that does not exist.

    Not NotFound, which would say that the place was asked and holds no such object. It waits for a person, so that
    nobody tries again within a call.
    """


class Store(Protocol):
    """A place for immutable objects by key: one target, as a repository sees it.

    Keys are `/`-separated, of `[A-Za-z0-9._-]` parts, at most 512 characters;
    no key is a folder of another. Implementations pass
    `tests/contract/test_store.py`. They raise errors of the one tree: NotFound, Conflict, Temporary
    (worth a retry), TargetMissing, Denied, Corruption. A create whose answer was lost may have happened: its caller finds
    out by what lies there when a second try is a Conflict.
    """

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an object whole; durable when this returns. An object of that key is replaced."""

    def create(self, key: str, data: bytes | memoryview) -> None:
        """Write an object only if the key is free: atomic and durable when this returns; else Conflict."""

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes `[offset, offset + length)` of an object (to its end for None). NotFound if it is missing."""

    def size(self, key: str) -> int:
        """The object's size in bytes. NotFound if it is missing."""

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Keys that start with `prefix` and sort after `start_after`, in order."""

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""


class TailFile(Protocol):
    """A file of fixed size at a target, all zeroes at first. Errors are those of a `Store`."""

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`; durable when this returns."""

    def close(self) -> None:
        """Let go of it."""


class TailStore(Protocol):
    """A target that can be appended to, as a sync leg needs it: a file system is, an object store is not."""

    def open_tail(self, key: str, size_bytes: int) -> TailFile:
        """Make a file of that size, its space allocated and its name durable. Conflict if the key is taken."""

    def prepare(self, size_bytes: int) -> None:
        """Get ready what the next `open_tail` needs; a failure is met by that."""

    def close(self) -> None:
        """Leave nothing behind that was got ready."""


class ObjectLocks(Protocol):
    """Locks on objects of a store against change and deletion, by whoever it is: what `immutable_for` needs of a target.

    A key's lock is that of what is read there. Errors are those of a `Store`.
    """

    def prove(self) -> None:
        """Unsupported, saying why, if the target cannot lock objects."""

    def end_ns(self, key: str) -> int:
        """When the object's lock ends, nanoseconds since 1970 UTC; 0 if it has none. NotFound if it is missing."""

    def extend(self, key: str, until_ns: int) -> None:
        """Let the object's lock end then; never earlier than it does now, which is Denied."""

    def visible(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix` and were not deleted, in order: a listing of the store has those, too, that were."""


class JournalWriter(Protocol):
    """The journal as a directory (or any key-value) member sees it."""

    def put(self, entries: Sequence[KeyChange]) -> int:
        """Append the changes as one contiguous run that no mark divides; returns the LSN after the last of them."""

    async def admitted(self) -> None:
        """Returns once a change may be appended; the caller does so before it waits for anything else.

        A shard of several takes none in while it is held for a checkpoint: what was read after that moment is not in it.
        """

    async def wait_durable(self, lsn: int) -> None:
        """Returns once every record before `lsn` is durable in the spool."""
