"""What control asks of a worker: implemented by the worker process, called by HTTP on its unix socket."""

from __future__ import annotations

from typing import Protocol

from dpac_api.models import Checkpoint, CheckpointRequest, GroupStatus, Model, Mount, Name, Uid


class WorkerMount(Model):
    """Open a checkpoint's members for use. The selector is resolved by control already."""

    mount_id: str
    group_uid: Uid
    target: Name
    checkpoint: str
    members: list[Name]


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

    async def mount(self, request: WorkerMount) -> Mount:
        """Open a checkpoint; survives a restart of the worker."""

    async def unmount(self, mount_id: str) -> None:
        """Close a mount and delete its overlay. NotFound if there is none."""
