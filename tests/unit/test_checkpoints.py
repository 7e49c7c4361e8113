"""Checkpoints: what a selector names."""

from __future__ import annotations

import pytest

from dpac_api.errors import Invalid, Unrecoverable
from dpac_engine.core.checkpoints import Mark, MarkBody, decode_mark, select, sequence_of, timestamp_ns

BEGIN_NS = timestamp_ns("2026-03-01T12:00:00Z")
NEWEST_FIRST = [
    Mark(2, 500, BEGIN_NS + 40 * 10**9, MarkBody(5, 1)),
    Mark(2, 400, BEGIN_NS + 30 * 10**9, MarkBody(4, 1, tags=["release"])),
    Mark(1, 300, BEGIN_NS + 20 * 10**9, MarkBody(3, 1, app=True)),
    Mark(1, 200, BEGIN_NS + 10 * 10**9, MarkBody(2, 1, tags=["release", "other"])),
    Mark(1, 100, BEGIN_NS, MarkBody(1, 1, app=True)),
]


@pytest.mark.parametrize(
    ("selector", "sequence"),
    [
        ("latest", 5),
        ("latest-clean", 5),
        ("latest-app", 3),
        ("tag:release", 4),
        ("tag:other", 2),
        ("before:2026-03-01T12:00:20Z", 2),
        ("before:2026-03-01T12:00:20.001Z", 3),
        ("before:2026-03-01T13:00:20+01:00", 2),
        ("before:2030-01-01", 5),
        ("ck-1-3", 3),
        ("ck-2-5", 5),
    ],
)
def test_a_selector_names_the_newest_that_satisfies_it(selector: str, sequence: int) -> None:
    """Every kind of selector."""
    assert select(NEWEST_FIRST, selector).sequence == sequence


@pytest.mark.parametrize("selector", ["tag:none", "before:2026-03-01T12:00:00Z", "ck-2-3", "ck-1-99"])
def test_where_nothing_satisfies_it_nothing_is_recoverable(selector: str) -> None:
    """The message says where to look; a sequence of another epoch is another checkpoint."""
    with pytest.raises(Unrecoverable, match="dpac checkpoints"):
        select(NEWEST_FIRST, selector)


@pytest.mark.parametrize("selector", ["newest", "before:yesterday", "ck-1", "tag:", ""])
def test_what_is_no_selector_is_invalid(selector: str) -> None:
    """A user's mistake."""
    with pytest.raises(Invalid):
        select(NEWEST_FIRST, selector)


def test_a_mark_keeps_its_epoch_wherever_it_lies() -> None:
    """In a merged segment of a later epoch its id is what it was; marks without one take their record's."""
    assert decode_mark(9, 64, 1, MarkBody(7, 1, epoch=3).encode()).id == "ck-3-7"
    assert decode_mark(9, 64, 1, MarkBody(7, 1).encode()).id == "ck-9-7"
    assert sequence_of("ck-3-7") == 7
