"""Sealing: when a leg ships."""

from __future__ import annotations

import pytest

from dpac_engine.core.sealing import SEGMENT_BYTES, due_in_seconds


@pytest.mark.parametrize(
    ("waiting", "age", "due"),
    [
        (0, None, None),  # nothing but marks: never
        (SEGMENT_BYTES * 9, None, None),
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
    found = due_in_seconds(waiting, age, 15.0)
    assert found == pytest.approx(due) if due is not None else found is None
