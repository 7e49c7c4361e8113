"""Locks that are renewed: for how long an object is locked, and which locks are due to be extended. Pure.

What the newest state needs shall be locked for `immutable_for` from any moment on. Each lock is given `SLACK_FRACTION`
more than that, and is extended while the slack runs out: an object costs a request each time, not each minute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

SLACK_FRACTION = 0.5
"""Of `immutable_for`: how much longer a lock is given than was asked for."""
SPREAD_FRACTION = 0.25
"""Of `immutable_for`: locks that end together, as those of a first copy do, are extended over so long, one after another."""
BATCH_MAX = 256
"""Requests that one step sends."""


def locked_for_ns(immutable_ns: int) -> int:
    """For how long an object is locked when it is written, or its lock extended."""
    return immutable_ns + int(immutable_ns * SLACK_FRACTION)


def is_behind(end_ns: int, immutable_ns: int, now_ns: int) -> bool:
    """A lock that ends then is shorter than was asked for."""
    return end_ns < now_ns + immutable_ns


def due(ends: Mapping[str, int], immutable_ns: int, now_ns: int, since_ns: int) -> list[str]:
    """Objects whose locks are to be extended now, those that end first before others; at most `BATCH_MAX`.

    `ends`: object -> when its lock ends; `since_ns`: how long ago this was last asked. What has used up half its slack is
    extended at a pace that takes `SPREAD_FRACTION` for all of them; what is behind is extended at once.
    """
    begin = now_ns + immutable_ns + int(immutable_ns * SLACK_FRACTION / 2)
    waiting = sorted((end, name) for name, end in ends.items() if end < begin)
    late = sum(is_behind(end, immutable_ns, now_ns) for end, _ in waiting)
    spread_ns = max(int(immutable_ns * SPREAD_FRACTION / 2), 1)
    share = -(-len(ends) * min(since_ns, spread_ns) // spread_ns)
    return [name for _, name in waiting[: min(max(late, share), BATCH_MAX)]]


def earliest(ends: Mapping[str, int], live: Collection[str]) -> int | None:
    """When the first lock ends of what is live; None if one is not known, or nothing is live."""
    if not live or any(name not in ends for name in live):
        return None
    return min(ends[name] for name in live)
