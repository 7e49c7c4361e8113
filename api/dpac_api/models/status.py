"""What changes by itself: states, lags, conditions."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from dpac_api.models.fields import Model
from dpac_api.models.groups import Role


class DataState(StrEnum):
    """How changes reach a leg's target right now."""

    INITIAL_SYNC = "InitialSync"
    CONTINUOUS = "Continuous"
    BACKLOG = "Backlog"
    BITMAP_TRACKING = "BitmapTracking"
    DELTA_RESYNC = "DeltaResync"
    FULL_RESYNC = "FullResync"
    PAUSED = "Paused"
    STALLED = "Stalled"
    DISCONNECTED = "Disconnected"


class SlaState(StrEnum):
    """Whether what was asked for is kept."""

    MEETING = "Meeting"
    RPO_NOT_MET = "RpoNotMet"
    HISTORY_NOT_MET = "HistoryNotMet"


class Condition(Model):
    """Something a person should know: what, since when, and what to do."""

    type: str = Field(description="CamelCase, stable: SpoolFull, KeyNotEscrowed, MemberMissing, TargetUnavailable, ...")
    subject: str = Field(description="What it is about: `group`, `member/NAME` or `leg/NAME`.")
    message: str
    since: datetime
    severity: Literal["info", "warning", "error"] = "warning"


class MemberStatus(Model):
    """A member as the worker sees it."""

    kind: str
    state: Literal["Starting", "Attached", "Missing", "Detached", "Failed"]
    seeded: bool = Field(description="It is part of the group's checkpoints on every leg.")
    size_bytes: int = 0
    unapplied_bytes: int = Field(default=0, description="Journalled, not yet in the volume's own file.")
    as_of: datetime | None = Field(default=None, description="Directories: the newest scan's start.")
    message: str = ""


class LegStatus(Model):
    """A leg as its shipper sees it."""

    target: str
    data_state: DataState
    rpo_seconds: float
    lag_seconds: float = Field(
        description="Age of the oldest change not yet durable at the target; 0 when there is none."
    )
    lag_bytes: int
    seeded_fraction: float = Field(ge=0, le=1)
    shipped_lsn: int
    latest_checkpoint: str | None = None
    latest_checkpoint_time: datetime | None = None
    oldest_checkpoint_time: datetime | None = None
    stored_bytes: int = 0
    last_verified_checkpoint: str | None = None
    escrow: list[str] = Field(
        default=[], description="Fingerprints of the escrow keys whose private halves open what lies at the target."
    )
    message: str = ""


class GroupStatus(Model):
    """Everything about a group that changes by itself."""

    role: Role = Role.PRIMARY
    data_state: DataState
    sla_state: SlaState
    protected: bool = Field(description="Seeded, a checkpoint durable on every leg that is not paused, every RPO met.")
    seeded: bool
    checkpoint_sequence: int = Field(description="Sequence of the newest checkpoint, shipped or not.")
    head_lsn: int
    durable_lsn: int
    spool_bytes: int
    members: dict[str, MemberStatus]
    legs: dict[str, LegStatus]
    conditions: list[Condition] = []
    observed_generation: int = Field(description="The generation of the spec that this status reflects.")
