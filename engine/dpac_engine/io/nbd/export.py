"""What the NBD server asks of whatever it exports."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

SECTOR_BYTES = 512


class Stopped(OSError):
    """The export is detached: it takes and gives nothing any more. Clients see ESHUTDOWN."""

    def __init__(self) -> None:
        super().__init__(errno.ESHUTDOWN, "the export is detached")


class ChangeKind(IntEnum):
    """The changes an export takes. Numbers are those of the journal's records.

    Both ZERO and TRIM must read as zeroes afterwards: a client's WRITE_ZEROES arrives as TRIM where the client
    lets the server make a hole, and as ZERO where it asked for the space to stay provisioned (NO_HOLE).
    """

    WRITE = 1
    ZERO = 2
    TRIM = 3


class Change(NamedTuple):
    """One change, in sectors' multiples. `data` is valid only during `submit` (it lies in the receive buffer)."""

    kind: ChangeKind
    offset: int
    length: int
    data: memoryview | None


class Extent(NamedTuple):
    """A run of `base:allocation` status. `hole`: nothing is allocated; `zero`: it reads as zeroes."""

    length: int
    hole: bool
    zero: bool


class Export(Protocol):
    """A device. All methods but the `_blocking` ones are called on the server's event loop and must not block.

    Offsets and lengths are checked by the server against `size_bytes` and sector alignment before.
    """

    size_bytes: int
    read_only: bool

    @property
    def durable_acks(self) -> bool:
        """Every change is acknowledged only once `flush` answers for it, on any socket. May change."""

    def submit(self, changes: Sequence[Change]) -> None:
        """Take the changes in order. When this returns they lie in memory that outlives this process: the
        server may acknowledge them. Raises OSError (the client gets its errno): then none of the changes is
        promised. `Stopped` if the export is detached."""

    def flush(self, done: Callable[[OSError | None], None]) -> None:
        """Call `done` on the event loop once everything submitted so far, by any connection, is durable."""

    def read_now(self, offset: int, length: int) -> bytes | memoryview | Sequence[bytes | memoryview] | None:
        """The bytes if they are in memory; None if reading could block: then `read_blocking` is called in a thread."""

    def read_blocking(self, offset: int, length: int) -> bytes:
        """The bytes; called in a thread."""

    def extents_blocking(self, offset: int, length: int) -> list[Extent]:
        """Allocation of the range, from its start, covering at least its first byte; called in a thread."""

    @property
    def congested(self) -> bool:
        """The server stops reading from clients of this export while this is true."""

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call back once, on the event loop, when `congested` has become false."""

    def opened(self, close: Callable[[], None]) -> None:
        """A client opened the export; `close` drops its connection (on detach, or when the device goes)."""

    def closed(self, close: Callable[[], None]) -> None:
        """That client is gone."""


class Exports(Protocol):
    """The exports of a worker, by name."""

    def names(self) -> Sequence[str]:
        """For NBD_OPT_LIST."""

    def find(self, name: str) -> Export | None:
        """The export of that name, or None."""


def as_os_error(error: BaseException | None) -> OSError | None:
    """What `Export.flush` tells of a sync that ended so."""
    return error if error is None or isinstance(error, OSError) else OSError(errno.EIO, str(error))
