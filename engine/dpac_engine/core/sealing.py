"""When a leg seals what it has: soon enough for its RPO, large enough to be worth a request, seldom when idle."""

from __future__ import annotations

SEGMENT_BYTES = 8 * 2**20
"""A segment is sealed once this much is waiting."""
AGE_FRACTION = 3
"""Else once the oldest waiting change is this fraction of the RPO old."""
MARKS_SECONDS = 600
"""Marks alone are sealed once the oldest of them is so old, or as old as the RPO if that is longer: then the spool of an idle
group does not grow without end, nor does the newest checkpoint at its target age."""


def due_in_seconds(
    waiting_bytes: int, oldest_change_seconds: float | None, oldest_mark_seconds: float | None, rpo_seconds: float
) -> float | None:
    """Seconds until the leg shall seal: 0 or less means now, None that nothing waits.

    `oldest_change_seconds`, `oldest_mark_seconds`: the ages of the oldest change and mark not yet shipped, None if there is none.
    """
    if oldest_change_seconds is None:
        return None if oldest_mark_seconds is None else max(rpo_seconds, MARKS_SECONDS) - oldest_mark_seconds
    if waiting_bytes >= SEGMENT_BYTES:
        return 0.0
    return rpo_seconds / AGE_FRACTION - oldest_change_seconds
