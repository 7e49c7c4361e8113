"""What control asks of a worker: implemented by the worker process, called by HTTP on its unix socket."""

from __future__ import annotations

from typing import Literal, Protocol

from dpac_api.models import Checkpoint, CheckpointRequest, GroupStatus, Model, Mount, Name, Uid
from dpac_engine.control.assignment import ShardKey
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.core.shared_mark import Held, Order


class WorkerMount(Model):
    """Open a checkpoint's members for use. The selector is resolved by control already."""

    mount_id: str
    group_uid: Uid
    target: Name
    checkpoint: str
    members: list[Name]
    shards: int = 1
    """How many the group has."""
    hydrate: bool = False
    """Copy what is mounted behind its clients, so that the mount needs the target no more."""


class MountState(Model):
    """What a worker says of an open mount, or of one that it could not open again yet."""

    mount_id: str
    hydrated_fraction: float | None = None
    """None: it is not being copied."""
    problem: str = ""


class MountStates(Model):
    """All mounts of a worker."""

    mounts: list[MountState]


class WorkerRewind(Model):
    """Bring a member back to a checkpoint where it lies. The selectors are resolved by control already."""

    operation_id: str
    group_uid: ShardKey
    ordinal: int
    member: Name
    target: Name
    checkpoint: str
    safety_checkpoint: str = ""
    """What the member holds once it is reserved; empty when it is only to be reserved."""
    force_disconnect: bool = False


class RewindProgress(Model):
    """How far a rewind is. Its bytes are those of a RestoreReport."""

    state: Literal["reserved", "running", "done", "failed"] = "reserved"
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_written: int = 0
    bytes_zeroed: int = 0
    paths_written: int = 0
    paths_removed: int = 0
    error: str = ""


class HoldChange(Model):
    """Hold a checkpoint, or hold it no longer. Times are stamps, in nanoseconds."""

    checkpoint: str
    held: bool
    lsn: int = 0
    other_lsns: tuple[int, ...] = ()
    """Where it lies in the shards after the first."""
    since_ns: int = 0
    until_ns: int = 0
    reason: str = ""

    def of_shards(self, shards: int) -> list[HoldChange]:
        """What each shard is told."""
        lsns = [self.lsn, *self.other_lsns] if self.held else [0] * shards
        return [self.model_copy(update={"lsn": lsn, "other_lsns": ()}) for lsn in lsns]


class HoldOutcome(Model):
    """What became of it, by target."""

    done: list[Name]
    lacking: list[Name]
    """These do not have the checkpoint."""
    failed: dict[Name, str]
    """Why it could not be done there."""


class ShardHeld(Model):
    """A shard holds its writers (`shared_mark.Held`)."""

    token: str
    sequence: int
    void_from: int
    stamp_ns: int
    news: bool

    def as_held(self) -> Held:
        """As the machine takes it."""
        return Held(self.token, self.sequence, self.void_from, self.stamp_ns, self.news)


class ShardQuiet(Model):
    """A shard's members with a blueprint are at rest, each captured."""

    token: str
    """Of this rest and no other; a mark must bear it."""
    members: list[Name]


class ShardMark(Model):
    """Mark a shard that holds (`shared_mark.PutMark`)."""

    key: ShardKey
    token: str
    sequence: int
    stamp_ns: int
    void_from: int
    void_to: int
    news: bool
    tag: str = ""
    quiet: str = ""
    """The token of its members' rest, if the checkpoint is application-consistent."""

    @classmethod
    def of(cls, key: str, token: str, order: Order, tag: str, quiet: str) -> ShardMark:
        """The request for an order."""
        begin, end = order.void
        return cls(
            key=key,
            token=token,
            sequence=order.sequence,
            stamp_ns=order.stamp_ns,
            void_from=begin,
            void_to=end,
            news=order.news,
            tag=tag,
            quiet=quiet,
        )

    def order(self) -> Order:
        """As the machine says it."""
        return Order(self.sequence, self.stamp_ns, (self.void_from, self.void_to), self.news)


class WorkerApi(Protocol):
    """One worker. Errors are those of the one tree; Unreachable while the worker is down."""

    async def apply(self, group_uid: str) -> None:
        """Read `groups/<uid>/assignment.json` and converge on it: start, change live, or detach (drain) the group.

        Returns once the members are attached (or detached), not once they are seeded.
        """

    async def drop(self, group_uid: str) -> None:
        """Detach the group and delete what it has on this host (spool, indexes). Repositories are left alone."""

    async def status(self, group_uid: str) -> GroupStatus:
        """What the group does now. NotFound if the worker does not serve it."""

    async def checkpoint(self, group_uid: str, request: CheckpointRequest) -> Checkpoint:
        """Mark the group now; with `app`, after quiescing it by its blueprints. Returns once the mark is durable here."""

    async def ship(self, group_uid: str) -> None:
        """Seal and ship what there is now, without waiting for the legs' cadence."""

    async def reserve(self, request: WorkerRewind) -> None:
        """Keep everybody from a member until `release`: what a checkpoint taken then has is what the member holds.

        Conflict if it is in use, reserved by another operation, or not the member that the checkpoint has.
        """

    async def rewind(self, request: WorkerRewind) -> None:
        """Begin to write what differs to a reserved member; `rewind_progress` tells of it."""

    async def rewind_progress(self, group_uid: str, operation_id: str) -> RewindProgress:
        """How far it is. NotFound if the worker was restarted since: then it has ended where it was."""

    async def release(self, group_uid: str, operation_id: str) -> None:
        """Stop writing if it still is, and let everybody to the member again; no error if it is not reserved."""

    async def change_hold(self, group_uid: str, change: HoldChange) -> HoldOutcome:
        """Hold or release a checkpoint at the target of every leg."""

    async def quiesce(self, key: str) -> ShardQuiet:
        """Quiesce and capture the members of a shard that have a blueprint; they rest for some seconds at most."""

    async def unquiesce(self, key: str, token: str) -> None:
        """Let them go on; no error if they do, or rest for another."""

    async def order(self, group_uid: str, order: LegOrder) -> None:
        """Pause, resume or resync legs; returns once that is on record. NotFound without such a leg."""

    async def hold_writes(self, key: str, seconds_max: float) -> ShardHeld:
        """Have a shard of several hold new writes, for so long at most. Temporary if it cannot."""

    async def mark_held(self, request: ShardMark) -> Checkpoint:
        """Mark a shard that holds, and let its writers go. Conflict if it has let them go already."""

    async def release_writes(self, key: str, token: str) -> None:
        """Let a shard's writers go; no error if it does not hold, or for another."""

    async def secure(self, key: str) -> None:
        """Return once the shard's journal is durable up to now, and have it shipped without delay."""

    async def mount(self, request: WorkerMount) -> Mount:
        """Open a checkpoint; survives a restart of the worker."""

    async def unmount(self, mount_id: str) -> None:
        """Close a mount and delete its overlay. NotFound if there is none."""

    async def mount_states(self) -> MountStates:
        """How its mounts are."""
