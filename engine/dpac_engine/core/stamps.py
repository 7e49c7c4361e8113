"""Stamps: the times that records and checkpoints carry. They follow the wall clock and never go back.

A wall clock may step. Forwards, the stamps follow at once. Backwards, they go on from where they were, at half
speed, until the wall clock has caught up: so checkpoints stay in order, and two of them that were made a minute apart
are never stamped as one.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_NS_MIN = 500_000_000
"""A change of the wall clock against the monotonic one that is a step, and not its steering by NTP."""


@dataclass(frozen=True)
class ClockStep:
    """The wall clock was set: by so much (negative: backwards), seen at this stamp."""

    stamp_ns: int
    by_ns: int


class Stamps:
    """One sequence of stamps, nanoseconds since 1970 UTC."""

    def __init__(self, last_ns: int = 0) -> None:
        """`last_ns`: the newest stamp of an earlier life; the next one is higher."""
        self._last_ns = last_ns
        self._seen: tuple[int, int] | None = None
        self.steps: list[ClockStep] = []
        """Steps seen since this began, oldest first; whoever reports one takes it out."""

    @property
    def last_ns(self) -> int:
        """The newest stamp."""
        return self._last_ns

    def next(self, wall_ns: int, monotonic_ns: int) -> int:
        """The stamp of this moment: higher than every one before."""
        elapsed_ns, step_ns = self._since_last(wall_ns, monotonic_ns)
        slowed_ns = self._last_ns + elapsed_ns // 2
        self._last_ns = max(wall_ns, slowed_ns, self._last_ns + 1)
        if abs(step_ns) >= STEP_NS_MIN:
            self.steps.append(ClockStep(self._last_ns, step_ns))
        self._seen = (wall_ns, monotonic_ns)
        return self._last_ns

    def _since_last(self, wall_ns: int, monotonic_ns: int) -> tuple[int, int]:
        """Time that passed since the stamp before, and by how much the wall clock was set meanwhile."""
        if self._seen is None:
            return 0, 0
        wall_before_ns, monotonic_before_ns = self._seen
        elapsed_ns = max(0, monotonic_ns - monotonic_before_ns)
        return elapsed_ns, wall_ns - wall_before_ns - elapsed_ns
