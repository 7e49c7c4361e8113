"""What control asks of a worker: implemented by the worker process, called by HTTP on its unix socket."""

from __future__ import annotations

from typing import Literal, Protocol

from dpac_api.models import Checkpoint, CheckpointRequest, GroupStatus, Model, Mount, Name, Uid


class WorkerMount(Model):
    """Open a checkpoint's members for use. The selector is resolved by control already."""

    mount_id: str
    group_uid: Uid
    target: Name
    checkpoint: str
    members: list[Name]
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
    group_uid: Uid
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
    since_ns: int = 0
    until_ns: int = 0
    reason: str = ""


class HoldOutcome(Model):
    """What became of it, by target."""

    done: list[Name]
    lacking: list[Name]
    """These do not have the checkpoint."""
    failed: dict[Name, str]
    """Why it could not be done there."""


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

    async def mount(self, request: WorkerMount) -> Mount:
        """Open a checkpoint; survives a restart of the worker."""

    async def unmount(self, mount_id: str) -> None:
        """Close a mount and delete its overlay. NotFound if there is none."""

    async def mount_states(self) -> MountStates:
        """How its mounts are."""
