"""Mounts: checkpoints opened for use."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from dpac_api.models.fields import Model, Name, RequestId, Selector


class MountRequest(Model):
    """Open a checkpoint for use at once: volumes as writable NBD exports, directories as writable mounted folders."""

    request_id: RequestId
    at: Selector = "latest"
    member: Name | None = Field(default=None, description="None: every member.")
    target: Name | None = None
    hydrate: bool = Field(
        default=True, description="Copy what is mounted to the host behind its clients, so that the target may go away."
    )


class Mount(Model):
    """A checkpoint opened for use."""

    id: str
    group: str
    checkpoint: str
    checkpoint_time: datetime
    members: dict[str, str] = Field(description="Member -> NBD URI (volumes) or path (directories).")
    created: datetime
    note: str = Field(
        default="",
        description="Which newer checkpoints were passed over because of damage, and why directories were copied whole instead of mounted, if so.",
    )
    hydrated_fraction: float | None = Field(
        default=None,
        description="How much of it is on the host; None: it is not copied there behind its clients.",
    )
    problem: str = Field(default="", description="Why it is not served, or not copied on; it is tried again.")
