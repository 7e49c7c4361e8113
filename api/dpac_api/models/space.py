"""Space: what a group takes at its targets, and what of it can be had back."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from dpac_api.models.fields import Model


class KeptSpace(Model):
    """A checkpoint that is kept beyond the history."""

    checkpoint: str
    time: datetime
    stored_bytes: int = Field(description="What changed between the kept checkpoint before it and this one.")
    unique_bytes: int | None = Field(
        description="What would be freed if it alone went: the rest is shared with the next kept checkpoint. None: not known, "
        "because its neighbour is the log or the indexes are too large to compare."
    )


class SpaceTotals(Model):
    """What a group takes at one target, in three numbers, when it was measured last."""

    unique_bytes: int = Field(
        description="What only one of the checkpoints beyond the history needs, as far as it is known."
    )
    shared_bytes: int = Field(description="The rest of what is live: several checkpoints need it, or the history does.")
    reclaimable_bytes: int = Field(description="What goes by itself.")
    measured_at: datetime


class TargetSpace(Model):
    """What a group takes at one target. `stored_bytes` is the sum of what is live, dropped, an orphan, or overhead."""

    target: str
    stored_bytes: int
    seed_bytes: int = Field(description="Live: first copies that are not merged yet.")
    log_bytes: dict[str, int] = Field(description="Live: the log, by level: `0` as sealed, `1` to `4` joined.")
    merged_bytes: int = Field(description="Live: what is older than the history.")
    dropped_bytes: int = Field(description="Needed by nothing any more; deleted a day after it was dropped.")
    dropped_until: datetime | None = Field(default=None, description="When the last of it goes.")
    orphan_bytes: int = Field(description="Left by an interrupted step; noted by the next compaction, then dropped.")
    overhead_bytes: int = Field(description="Manifests, keys, declarations, tails.")
    unique_bytes: int = Field(description="Live: what only one of `kept` needs, as far as it is known.")
    shared_bytes: int = Field(description="Live: the rest. Several checkpoints need it, or the history does.")
    reclaimable_bytes: int = Field(description="What goes by itself: dropped and orphans.")
    estimated: bool = Field(
        description="Some objects were not asked for their size: they count as the mean of those that were."
    )
    content_bytes: int = Field(description="What the segments that were opened hold, before compression.")
    content_stored_bytes: int = Field(description="What these segments take: the two tell the compression.")
    kept: list[KeptSpace] = Field(description="The checkpoints beyond the history, oldest first.")
