"""When a leg seals what it has: soon enough for its RPO, large enough to be worth a request, never when idle."""

from __future__ import annotations

SEGMENT_BYTES = 8 * 2**20
"""A segment is sealed once this much is waiting."""
AGE_FRACTION = 3
"""Else once the oldest waiting change is this fraction of the RPO old."""


def due_in_seconds(waiting_bytes: int, oldest_age_seconds: float | None, rpo_seconds: float) -> float | None:
    """Seconds until the leg shall seal: 0 or less means now, None that nothing waits.

    `oldest_age_seconds` is the age of the oldest change not yet shipped, None if there is none (marks do not count).
    """
    if oldest_age_seconds is None:
        return None
    if waiting_bytes >= SEGMENT_BYTES:
        return 0.0
    return rpo_seconds / AGE_FRACTION - oldest_age_seconds
