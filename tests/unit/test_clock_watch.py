"""Steps of the wall clock: told, and kept from ageing checkpoints out."""

from __future__ import annotations

import pytest

from dpac_engine.control.clock_watch import HOLD_SECONDS, ClockWatch
from dpac_engine.core.stamps import Stamps

NOW_NS = 1_800_000_000 * 10**9


class SteppedClock:
    """A clock whose wall can be set."""

    def __init__(self) -> None:
        self.wall_ns, self.boot_ns = NOW_NS, 0

    def now_ns(self) -> int:
        return self.wall_ns

    def monotonic_ns(self) -> int:
        return self.boot_ns

    def wait(self, seconds: float) -> None:
        self.wall_ns += int(seconds * 1e9)
        self.boot_ns += int(seconds * 1e9)

    def set(self, by_seconds: float) -> None:
        self.wall_ns += int(by_seconds * 1e9)


class Story:
    """A group's stamps under a clock, a mark a second."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.stamps = Stamps()
        self.watch = ClockWatch(self.clock, self.stamps)
        self.made: list[int] = []
        self.marks(3)

    def marks(self, count: int) -> None:
        for _ in range(count):
            self.clock.wait(1)
            self.made.append(self.stamps.next(self.clock.now_ns(), self.clock.monotonic_ns()))
            self.watch.look()


@pytest.mark.parametrize("hours", [1, -1, 24 * 365, -24 * 365])
def test_stamps_keep_their_order_and_the_step_is_told(hours: float) -> None:
    """Whichever way it goes, and how far it went is said; a clock that runs well is not mentioned."""
    story = Story()
    assert story.watch.message == ""
    story.clock.set(hours * 3600)
    story.marks(5)
    assert story.made == sorted(set(story.made))
    assert ("forwards" if hours > 0 else "backwards") in story.watch.message
    assert f"{abs(hours) * 3600:.1f} s" in story.watch.message


def test_a_year_forwards_and_back_ages_nothing_out() -> None:
    """Not while it is wrong, nor by stamps that are a year ahead once it is right again."""
    story = Story()
    story.clock.set(365 * 86400)
    story.marks(10)
    assert story.watch.aging_ns() is None
    story.clock.set(-365 * 86400)
    story.marks(10)
    assert story.watch.aging_ns() is None
    story.clock.wait(HOLD_SECONDS)
    aging_ns = story.watch.aging_ns()
    assert aging_ns is not None
    assert aging_ns - NOW_NS < 2 * HOLD_SECONDS * 1e9
    assert "ahead of it" in story.watch.message


def test_retention_goes_on_after_an_hour_with_a_clock_that_stays_set() -> None:
    """A clock that was put right forwards freezes nothing for good."""
    story = Story()
    story.clock.set(7200)
    story.marks(2)
    assert story.watch.aging_ns() is None
    story.clock.wait(HOLD_SECONDS)
    assert story.watch.aging_ns() == story.clock.now_ns()
    assert story.watch.message == ""


def test_a_step_backwards_holds_nothing_up() -> None:
    """History is counted by the wall clock, on which it is younger now."""
    story = Story()
    story.clock.set(-7200)
    story.marks(2)
    assert story.watch.aging_ns() == story.clock.now_ns()
