"""What changes by itself: states, lags, conditions."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from dpac_api.models.fields import Model
from dpac_api.models.groups import Role
from dpac_api.models.pauses import PauseStatus
from dpac_api.models.space import SpaceTotals
from dpac_api.models.targets import TargetTraffic


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


class SyncStatus(Model):
    """How far a sync leg keeps its pledge."""

    phase: str = Field(
        description="`Joining` (its first copy is under way), `Entering`, `InSync`, `Waiting` (for the target, within "
        "`timeout`), `Recording` (the loss), `Alone`, `Held` (`on_loss=stop`), `Fenced` (another primary writes there)."
    )
    since: datetime = Field(description="When that phase began.")
    confirmed_lsn: int = Field(description="The target has the journal before this LSN.")
    falls: int = Field(description="How often it fell out of sync since its worker started.")
    reason: str = Field(default="", description="Why it is not in sync.")


class WaitHistogram(Model):
    """How long FLUSHes, FUA writes and durable acknowledgements waited since the worker started."""

    count: int
    sum_seconds: float
    buckets: dict[str, int] = Field(description="Upper bound in seconds -> how many waited at most so long.")


class ShardStatus(Model):
    """One shard of a group that has several."""

    shard: int
    worker: int
    members: list[str]
    checkpoint_sequence: int = Field(description="Of its newest mark; a checkpoint is one that every shard has.")
    hold_wait: WaitHistogram = Field(
        description="How long its writers were held for checkpoints since its worker started."
    )
    holds_expired: int = Field(description="Holds that ended by their bound, without a mark.")
    checkpoints_skipped: int = Field(
        default=0,
        description="Of the first shard, which coordinates: how many were not taken since its worker started.",
    )
    skip_reason: str = Field(default="", description="Why the last one was not taken; empty: it was.")


class LegStatus(Model):
    """A leg as its shipper sees it."""

    mode: Literal["async", "sync"] = "async"
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
    space: SpaceTotals | None = Field(
        default=None, description="Measured about every hour, and whenever somebody asks; None: not yet."
    )
    immutable_until: datetime | None = Field(
        default=None,
        description="Until then nobody can destroy any of what the newest state there needs, as last seen; None: it is not "
        "locked, or that is being looked up.",
    )
    traffic: TargetTraffic | None = Field(
        default=None, description="What this group's worker asked of the target, mounts included."
    )
    last_verified_checkpoint: str | None = None
    escrow: list[str] = Field(
        default=[], description="Fingerprints of the escrow keys whose private halves open what lies at the target."
    )
    paused: PauseStatus | None = Field(default=None, description="Since when, by whom and why; None: it is not.")
    in_sync: bool = Field(default=False, description="Nothing is acknowledged that the target does not have.")
    sync: SyncStatus | None = Field(default=None, description="Of a sync leg whose worker is known.")
    message: str = ""


class GroupStatus(Model):
    """Everything about a group that changes by itself."""

    role: Role = Role.PRIMARY
    data_state: DataState
    sla_state: SlaState
    protected: bool = Field(
        description="Seeded, a checkpoint durable on every leg that is not paused, every RPO met, every sync leg in sync."
    )
    seeded: bool
    checkpoint_sequence: int = Field(description="Sequence of the newest checkpoint, shipped or not.")
    head_lsn: int
    durable_lsn: int
    spool_bytes: int
    members: dict[str, MemberStatus]
    legs: dict[str, LegStatus]
    conditions: list[Condition] = []
    flush_wait: WaitHistogram | None = None
    shards: list[ShardStatus] = Field(default=[], description="Of a group that has several.")
    observed_generation: int = Field(description="The generation of the spec that this status reflects.")
