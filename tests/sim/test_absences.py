"""A target that is away for long, again and again, with deaths of process and host at every step (`tests/simulation/absences.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis.internal.conjecture.providers  # noqa: F401 - its plugin would import it within a greenlet
import pytest

from dpac_engine.control.tracking import Tracking
from tests.simulation import stage
from tests.simulation.absences import Absences
from tests.simulation.kinds import play

HISTORIES = 40


@pytest.fixture
def defects() -> Iterator[stage.Defects]:
    """The stage is set."""
    with stage.staged() as found:
        yield found


def test_no_absence_and_no_death_in_it_loses_a_change(defects: stage.Defects) -> None:
    """The leg falls out, tracks, resyncs and dies in all of it, and every checkpoint that is listed is what the devices were."""
    seen = _all(defects)
    print(dict(seen))
    for what, least in {
        "tracked": 20,
        "died while tracking": 5,
        "seen in a delta resync": 20,
        "died in a delta resync": 1,
    }.items():
        assert seen[what] >= least, f"hardly ever {what}: {seen}"


@pytest.mark.soak
def test_absences_of_fresh_seeds(defects: stage.Defects, seed: int) -> None:
    """A thousand of them."""
    for number in range(1000):
        play(seed + number, defects, "absences")


def test_a_bitmap_that_is_cleared_too_early_is_found(defects: stage.Defects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten when the resync begins, and not when its blocks are at the target: some history ends with blocks that lack."""
    pause = Tracking.pause

    def forgetful(self: Any, leg: str) -> None:
        pause(self, leg)
        for bitmap in self._bitmaps.get(leg, {}).values():
            bitmap._bits[:] = False

    monkeypatch.setattr(Tracking, "pause", forgetful)
    with pytest.raises(AssertionError, match=r"volume|sector"):
        _all(defects)


def _all(defects: stage.Defects) -> Counter[str]:
    seen: Counter[str] = Counter()
    for number in range(HISTORIES):
        history = play(number, defects, "absences")
        assert isinstance(history, Absences)
        seen += history.seen
    return seen
