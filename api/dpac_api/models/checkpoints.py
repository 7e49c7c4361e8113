"""Checkpoints, and how they are asked for."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from dpac_api.models.fields import Model, RequestId, Selector, Tag


class CheckpointRequest(Model):
    """Mark the group now."""

    request_id: RequestId
    tag: Tag | None = Field(
        default=None,
        description="A name to come back to: letters, digits, dots, dashes and underscores, at most 63, beginning with a letter or digit.",
    )
    app: bool = Field(
        default=False, description="Quiesce by the members' blueprints first, so that it is application-consistent."
    )
    hold: bool = Field(
        default=False, description="Hold it at every target from the start, as `HoldRequest` does later."
    )
    hold_reason: str = Field(default="", max_length=500, description="Why, for whoever finds it later.")
    hold_until: datetime | None = Field(default=None, description="When it is released by itself; None: never.")


class HoldRequest(Model):
    """Hold a checkpoint at every target that has it."""

    request_id: RequestId
    checkpoint: Selector
    reason: str = Field(default="", max_length=500, description="Why, for whoever finds it later.")
    until: datetime | None = Field(default=None, description="When it is released by itself; None: never.")


class Cut(Model):
    """How exact a member is in a checkpoint; never rounded up."""

    kind: Literal["exact", "barrier", "observed"]
    as_of: datetime | None = Field(default=None, description="`observed`: the newest moment all of which is in it.")
    skew_seconds: float | None = Field(default=None, description="`observed`: how long the scan behind it took.")


class CheckpointAvailability(Model):
    """A checkpoint at one target."""

    available: bool = Field(description="False: the last verification found damaged what it needs.")
    verified_at: datetime | None = None
    locked_until: datetime | None = Field(
        default=None,
        description="Nobody can destroy what it needs before; the earliest of all that the target needs now, so that it can be longer. "
        "None: it is not locked, or that is not known.",
    )


class Checkpoint(Model):
    """A mark at which the group is recoverable."""

    id: str = Field(description="`ck-EPOCH-SEQUENCE`.")
    time: datetime
    lsn: dict[str, int] = Field(description="Shard uid -> position in that shard.")
    membership_version: int
    consistency: Literal["crash", "app"]
    tags: list[str] = []
    cuts: dict[str, Cut] = Field(default={}, description="Member name -> how exact it is.")
    targets: dict[str, CheckpointAvailability] = Field(default={}, description="Target name -> what it has of it.")
    suspect: bool = Field(default=False, description="No target has it sound.")
    held: bool = Field(
        default=False, description="It stays until it is released, whatever retention and size limits say."
    )
    held_until: datetime | None = Field(default=None, description="When it is released by itself; None: never.")
    held_reason: str = ""


class CheckpointRange(Model):
    """A run of checkpoints, one about every second, that a target holds."""

    target: str
    first: str
    last: str
    first_time: datetime
    last_time: datetime
    count: int
    tags: list[str] = []
    app_consistent: int = 0


class CheckpointPage(Model):
    """Checkpoints, newest first."""

    items: list[Checkpoint]
    next_cursor: str | None = None
