"""When is a process that died started again? At once, unless it dies again and again as soon as it starts."""

from __future__ import annotations

SERVED_SECONDS_MIN = 2.0
"""A process that served this long was in order when it started: what ended it came later, often from outside."""
DELAY_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
"""The wait before each restart of a process that never served that long."""
SERVED_DELAY_SECONDS_MAX = 0.4
"""The longest wait of one that served at all, so that its clients have it back within a second."""
CRASHING_DEATHS = 3
CRASHING_WINDOW_SECONDS = 60.0


class Restarts:
    """The deaths of one process and what follows from them. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._early_deaths = 0
        self._deaths: list[float] = []
        self.count = 0
        """How often it was started again."""

    def died(self, at: float, ready_at: float | None) -> float:
        """Note a death, of a process that served since `ready_at` (None: never); returns the seconds to wait."""
        served = ready_at is not None and at - ready_at >= SERVED_SECONDS_MIN
        self._early_deaths = 0 if served else self._early_deaths + 1
        self._deaths = [*self._recent(at), at]
        self.count += 1
        delay = DELAY_SECONDS[min(max(self._early_deaths - 1, 0), len(DELAY_SECONDS) - 1)]
        return delay if ready_at is None else min(delay, SERVED_DELAY_SECONDS_MAX)

    def crashing(self, at: float) -> bool:
        """Whether it died so often of late that a person should look."""
        return len(self._recent(at)) >= CRASHING_DEATHS

    def _recent(self, at: float) -> list[float]:
        return [death for death in self._deaths if at - death < CRASHING_WINDOW_SECONDS]
