"""Legs: how a group reaches a target, and what is kept there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpac_api.models.fields import Model, Name, bounded
from dpac_api.quantities import Duration


class RetentionSpec(Model):
    """How checkpoints thin out at a target once they are older than the journal's history.

    Each count keeps the newest checkpoint of that many calendar periods (UTC). Tagged checkpoints
    keep for `tagged`. All of them together are what the target still holds.
    """

    hourly: int = Field(default=0, ge=0, le=10_000, description="Hours of which one checkpoint is kept.")
    daily: int = Field(default=0, ge=0, le=10_000, description="Days of which one checkpoint is kept.")
    weekly: int = Field(default=0, ge=0, le=1_000, description="ISO weeks of which one checkpoint is kept.")
    monthly: int = Field(default=0, ge=0, le=1_000, description="Months of which one checkpoint is kept.")
    yearly: int = Field(default=0, ge=0, le=100, description="Years of which one checkpoint is kept.")
    tagged: Annotated[Duration, bounded("0s", "36500d")] = Field(
        default=Duration("30d"), description="How long a tagged checkpoint is kept."
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


LegSpec = AsyncLegSpec
