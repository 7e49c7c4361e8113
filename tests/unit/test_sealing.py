"""Sealing: when a leg ships."""

from __future__ import annotations

import pytest

from dpac_engine.core.sealing import MARKS_SECONDS, SEGMENT_BYTES, due_in_seconds


@pytest.mark.parametrize(
    ("waiting", "age", "due"),
    [
        (0, None, None),  # nothing at all: never
        (1, 0.0, 5.0),  # a third of the RPO after the change
        (1, 4.0, 1.0),
        (1, 5.0, 0.0),
        (1, 60.0, -55.0),
        (SEGMENT_BYTES - 1, 0.0, 5.0),
        (SEGMENT_BYTES, 0.0, 0.0),  # enough for a segment: now
    ],
)
def test_a_leg_seals_by_size_or_by_age(waiting: int, age: float | None, due: float | None) -> None:
    """With an RPO of 15 seconds."""
    found = due_in_seconds(waiting, age, None if age is None else age + 1, 15.0)
    assert found == pytest.approx(due) if due is not None else found is None


@pytest.mark.parametrize(
    ("rpo_seconds", "age", "due"),
    [
        (15.0, 0.0, MARKS_SECONDS),
        (15.0, MARKS_SECONDS - 1.0, 1.0),
        (15.0, MARKS_SECONDS + 5.0, -5.0),
        (3600.0, MARKS_SECONDS + 5.0, 3600.0 - MARKS_SECONDS - 5.0),  # who may lose an hour is sent marks every hour
    ],
)
def test_marks_alone_are_shipped_every_ten_minutes(rpo_seconds: float, age: float, due: float) -> None:
    """However many they are: an idle group costs a request now and then, and its spool does not grow without end."""
    assert due_in_seconds(SEGMENT_BYTES * 9, None, age, rpo_seconds) == pytest.approx(due)
