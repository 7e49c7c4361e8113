"""What a worker process runs: one `Runtime` a group. `control/group.py` is the real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from dpac_api.models import Checkpoint, CheckpointRequest, GroupStatus
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.holding import Holding
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.quiescing import Quiescing
from dpac_engine.control.rewind import Rewinds
from dpac_engine.control.worker_api import HoldChange, HoldOutcome
from dpac_engine.io.nbd.export import Export


class Runtime(Protocol):
    """A group at work. Every method belongs to the worker's event loop."""

    async def start(self) -> None:
        """Recover the journal and attach the members that can be attached; others are tried again later."""

    async def apply(self, assignment: WorkerAssignment) -> None:
        """Converge on a changed assignment without stopping capture of what stays."""

    async def stop(self) -> None:
        """Drain and detach: every change is in the volumes' files when this returns."""

    async def drop(self) -> None:
        """Stop, then delete what the group has on this host. Repositories are left alone."""

    @property
    def rewinds(self) -> Rewinds:
        """Members brought back to a checkpoint where they lie."""

    @property
    def holding(self) -> Holding:
        """How a shard of several holds its writers for a mark."""

    @property
    def quiescing(self) -> Quiescing:
        """How members with a blueprint are brought to rest for a checkpoint."""

    async def secure(self) -> None:
        """Return once the journal is durable up to now, and have it shipped without delay."""

    async def checkpoint(self, request: CheckpointRequest) -> Checkpoint:
        """Mark the group now; returns once the mark is durable in the spool."""

    async def ship(self) -> None:
        """Make every leg ship what there is now; returns once each has, or is known to be disconnected."""

    async def order(self, order: LegOrder) -> None:
        """Pause, resume or resync legs; returns once that is on record. NotFound without such a leg."""

    async def change_hold(self, change: HoldChange) -> HoldOutcome:
        """Hold or release a checkpoint at every leg's target."""

    def status(self) -> GroupStatus:
        """What the group does now."""

    def exports(self) -> Mapping[str, Export]:
        """Export name (`GROUP/MEMBER`) -> volume."""
