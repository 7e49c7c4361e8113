"""What a leg asks of its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dpac_engine.control.seeding import SeedSource
from dpac_engine.control.tracking import Tracking
from dpac_engine.io.repository import SpecObject
from dpac_engine.io.spool import Spool


class MemberInfo(NamedTuple):
    """A member as its legs need it."""

    uid: str
    kind: str
    name: str
    content: int
    log_from_lsn: int | None
    """The log from this LSN on tells all of it, without a seed; None: a target needs a seed."""
    log_ready_lsn: int | None
    """... once the log before this LSN is there; None: not yet."""
    source: SeedSource | None
    """None while it is not attached."""


class UnseenChanges(NamedTuple):
    """What no log tells of a member."""

    content: int
    """How often its content changed so."""
    content_lsns: Mapping[int, int]
    """What `content` rose to -> where: the log before it does not tell what is after it."""


class GroupView(Protocol):
    """What a leg asks of its group; on the event loop but for `spool.read` and the properties."""

    @property
    def spool(self) -> Spool:
        """The shard's tail."""

    @property
    def shard_uid(self) -> str:
        """The shard."""

    @property
    def epochs(self) -> list[tuple[int, int]]:
        """(epoch, LSN at which it began), oldest first."""

    @property
    def membership_version(self) -> int:
        """Of the newest record."""

    @property
    def spec_number(self) -> int:
        """Which declaration is in force."""

    @property
    def incarnation(self) -> int:
        """Of the shard, since it was opened."""

    @property
    def opened_lsn(self) -> int:
        """Where that began."""

    def spec_object(self) -> SpecObject:
        """The declaration, for the repository."""

    @property
    def escrow_keys(self) -> Sequence[str]:
        """Public keys to which the data key is sealed at every target."""

    def member_infos(self) -> Mapping[int, MemberInfo]:
        """Ordinal -> member."""

    def unseen_changes(self) -> Mapping[int, UnseenChanges]:
        """Ordinal -> what the log does not tell of a member, also of one that has left."""

    def oldest_change_ns(self, since_lsn: int) -> int | None:
        """Stamp of the oldest change at or after an LSN; None if there are only marks."""

    async def mark_changes(self, *, always: bool = False) -> None:
        """Mark the group if anything changed since its newest mark; returns once that mark is durable, or cannot be."""

    def stamp(self) -> int:
        """Hybrid time, nanoseconds."""

    def aging_ns(self) -> int | None:
        """The moment by which checkpoints age; None while nothing may age out, because the clock was just set."""

    @property
    def tracking(self) -> Tracking:
        """What lost legs lack."""

    async def record(self) -> None:
        """Make what the legs remember durable."""
