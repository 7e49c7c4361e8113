"""A wall clock that is set: told to people, and kept from ageing checkpoints out.

Marks go by the monotonic clock, and stamps never go back (`core/stamps.py`). What a step can harm is retention: a clock that
is wrong by a year for a minute would age all history out. So nothing is thinned by age for an hour after a step
forwards, and age is counted by the wall clock, not by stamps that may still be ahead of it.
"""

from __future__ import annotations

from dpac_engine.core.ports import Clock
from dpac_engine.core.stamps import Stamps

HOLD_SECONDS = 3600.0
"""How long a step is told, and nothing is thinned after one forwards."""
FORWARD_SECONDS_MIN = 60.0
"""A smaller step forwards ages nothing out that would not have gone in a minute."""


class ClockWatch:
    """Watches one group's stamps for steps of the wall clock."""

    def __init__(self, clock: Clock, stamps: Stamps) -> None:
        self._clock = clock
        self._stamps = stamps
        self._stepped_ns: int | None = None
        self._forward_ns: int | None = None
        self._by_seconds = 0.0

    def look(self) -> None:
        """Take notice of the steps since the last look."""
        now_ns = self._clock.monotonic_ns()
        steps, self._stamps.steps = self._stamps.steps, []
        for step in steps:
            self._stepped_ns, self._by_seconds = now_ns, step.by_ns / 1e9
            if self._by_seconds >= FORWARD_SECONDS_MIN:
                self._forward_ns = now_ns

    def aging_ns(self) -> int | None:
        """The moment by which checkpoints age, nanoseconds since 1970; None while nothing may age out."""
        self.look()
        return None if self._is_recent(self._forward_ns) else self._clock.now_ns()

    @property
    def message(self) -> str:
        """What a person should know; empty if the clock was not set lately."""
        ahead_seconds = (self._stamps.last_ns - self._clock.now_ns()) / 1e9
        if not self._is_recent(self._stepped_ns) and ahead_seconds < FORWARD_SECONDS_MIN:
            return ""
        way = "forwards" if self._by_seconds > 0 else "backwards"
        ahead = f" Checkpoints are stamped {ahead_seconds:.0f} s ahead of it until it has caught up." * (
            ahead_seconds >= 1
        )
        held = " Nothing is thinned by age for an hour." * self._is_recent(self._forward_ns)
        return (
            f"The host's clock was set {way} by {abs(self._by_seconds):.1f} s.{ahead}{held} Checkpoints keep their order. See that the "
            "clock is right (NTP)."
        )

    def _is_recent(self, at_ns: int | None) -> bool:
        return at_ns is not None and self._clock.monotonic_ns() - at_ns < HOLD_SECONDS * 1e9
