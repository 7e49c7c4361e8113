"""How long something waited, as a histogram."""

from __future__ import annotations

import itertools
from bisect import bisect_left

from dpac_api.models import WaitHistogram

_BOUNDS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Waits:
    """Counts waits by their length."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_SECONDS) + 1)
        self._sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(_BOUNDS_SECONDS, seconds)] += 1
        self._sum_seconds += seconds

    def histogram(self) -> WaitHistogram:
        """All so far."""
        totals = list(itertools.accumulate(self._counts))
        return WaitHistogram(
            count=totals[-1],
            sum_seconds=self._sum_seconds,
            buckets={f"{bound:g}": total for bound, total in zip(_BOUNDS_SECONDS, totals, strict=False)},
        )
