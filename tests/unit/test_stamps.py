"""Stamps follow the wall clock and never go back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dpac_engine.core.stamps import ClockStep, Stamps

SECOND = 10**9
HOUR = 3600 * SECOND


def test_stamps_are_the_wall_clock_where_it_is_steady() -> None:
    """Without steps a stamp is the time."""
    stamps = Stamps()
    assert [stamps.next(HOUR + i * SECOND, i * SECOND) for i in range(3)] == [HOUR + i * SECOND for i in range(3)]
    assert stamps.steps == []


def test_two_stamps_of_one_moment_differ() -> None:
    """A clock that has not moved still orders what it stamps."""
    stamps = Stamps()
    assert [stamps.next(HOUR, 0) for _ in range(3)] == [HOUR, HOUR + 1, HOUR + 2]


def test_a_step_forwards_is_followed_and_told() -> None:
    """Stamps jump with the clock."""
    stamps = Stamps()
    stamps.next(HOUR, 0)
    assert stamps.next(3 * HOUR + SECOND, SECOND) == 3 * HOUR + SECOND
    assert stamps.steps == [ClockStep(3 * HOUR + SECOND, 2 * HOUR)]


def test_a_step_back_is_caught_up_with_at_half_speed() -> None:
    """After an hour back, stamps go on at half speed and are the wall clock again two hours later."""
    stamps = Stamps()
    stamps.next(10 * HOUR, 0)
    found = [stamps.next(9 * HOUR + i * SECOND, i * SECOND) for i in range(1, 7202)]
    assert found[0] == 10 * HOUR + SECOND // 2
    assert all(later - earlier >= SECOND // 2 for earlier, later in pairwise(found))
    assert found[-1] == 9 * HOUR + 7201 * SECOND
    assert [step.by_ns for step in stamps.steps] == [-HOUR]


def test_an_earlier_life_is_never_fallen_behind() -> None:
    """The newest stamp on disk is lower than the first new one, even if the clock went back meanwhile."""
    assert Stamps(last_ns=HOUR).next(1, 1) == HOUR + 1


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 10**12)), min_size=2))
def test_stamps_always_rise(moments: list[tuple[int, int]]) -> None:
    """Whatever the clocks do, each stamp is higher than the one before and at least the wall clock's time."""
    stamps, monotonic_ns, last = Stamps(), 0, 0
    for wall_ns, elapsed_ns in moments:
        monotonic_ns += elapsed_ns
        stamp = stamps.next(wall_ns, monotonic_ns)
        assert stamp > last
        assert stamp >= wall_ns
        last = stamp
