"""Legs: how a group reaches a target, and what is kept there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from dpac_api.models.fields import Model, Name, bounded
from dpac_api.quantities import Duration


class RetentionSpec(Model):
    """How checkpoints thin out at a target once they are older than the journal's history.

    Each count keeps the newest checkpoint of that many calendar periods (UTC). Tagged checkpoints
    keep for `tagged`, held ones until they are released. All of them together are what the target still holds.
    """

    hourly: int = Field(default=0, ge=0, le=10_000, description="Hours of which one checkpoint is kept.")
    daily: int = Field(default=0, ge=0, le=10_000, description="Days of which one checkpoint is kept.")
    weekly: int = Field(default=0, ge=0, le=1_000, description="ISO weeks of which one checkpoint is kept.")
    monthly: int = Field(default=0, ge=0, le=1_000, description="Months of which one checkpoint is kept.")
    yearly: int = Field(default=0, ge=0, le=100, description="Years of which one checkpoint is kept.")
    keep_good: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Application-consistent checkpoints that are kept whatever their age, the newest ones; for want of those, the "
        "newest of any kind.",
    )
    tagged: Annotated[Duration, bounded("0s", "36500d")] = Field(
        default=Duration("30d"), description="How long a tagged checkpoint is kept."
    )
    immutable_for: Annotated[Duration, bounded("1h", "36500d")] | None = Field(
        default=None,
        description="Nobody, this site included, can change or delete what lies at the target for so long, counted from when it was "
        "last needed; the target must be a bucket with `object_lock`. None: no locks.",
    )


class AsyncLegSpec(Model):
    """A leg that ships the journal to a target behind the application's back, within an RPO."""

    mode: Literal["async"] = "async"
    target: Name = Field(description="The target's name on this site.")
    rpo: Annotated[Duration, bounded("1s", "7d")] = Field(
        default=Duration("15s"),
        description="The most that may be lost: the age of the newest change not yet at the target.",
    )
    retention: RetentionSpec = Field(default=RetentionSpec(), description="What is kept beyond the journal's history.")
    compression_level: int = Field(default=3, ge=1, le=19, description="zstd level of what this leg stores.")


class SyncLegSpec(Model):
    """A leg whose target has what was acknowledged: the application waits for it."""

    mode: Literal["sync"] = "sync"
    target: Name = Field(description="The target's name on this site; it must be a file system.")
    acknowledge: Literal["flush", "write"] = Field(
        default="flush",
        description="What waits for the target: `flush`, every FLUSH and FUA; `write`, every change.",
    )
    timeout: Annotated[Duration, bounded("100ms", "10m")] = Field(
        default=Duration("5s"), description="How long the target may take to answer before it counts as lost."
    )
    on_loss: Literal["async", "stop"] | None = Field(
        default=None,
        description="Once the target is lost: `async` (also if it is not said) notes the loss and goes on without it, "
        "`stop` holds what waits until the target is back.",
    )
    rpo: Annotated[Duration, bounded("1s", "7d")] = Field(
        default=Duration("15s"),
        description="The most that may be lost while the leg is not in sync: the age of the newest change not yet there.",
    )
    retention: RetentionSpec = Field(default=RetentionSpec(), description="What is kept beyond the journal's history.")
    compression_level: int = Field(default=3, ge=1, le=19, description="zstd level of what this leg stores.")


def _mode(leg: Any) -> str:
    return str(leg.get("mode", "async") if isinstance(leg, dict) else getattr(leg, "mode", "async"))


LegSpec = Annotated[
    Annotated[AsyncLegSpec, Tag("async")] | Annotated[SyncLegSpec, Tag("sync")],
    Discriminator(_mode, custom_error_type="leg_mode", custom_error_message="mode must be 'async' or 'sync'"),
]
"""A leg of either mode; one that does not say is async."""
