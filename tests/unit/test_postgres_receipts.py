"""examples/postgres: the log of acknowledged transactions finds what was lost, and what came too early."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from examples.postgres import server
from examples.postgres.receipts import Receipt, compare, parse_listing, read_log

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


LOGGED = [Receipt(number, at(number), at(number + 0.5)) for number in (1, 2, 3)]
"""Sent at each full second, acknowledged half a second later."""


@pytest.mark.parametrize("present", [(1, 2), (1, 2, 3)], ids=["on its way: lost", "on its way: there"])
def test_a_transaction_that_was_on_its_way_may_be_there_or_not(present: tuple[int, ...]) -> None:
    """Nobody was told that it is safe, and it had been sent."""
    assert compare({number: at(number) for number in present}, LOGGED, at(3.2)) == []


def test_a_transaction_acknowledged_by_the_moment_must_be_there() -> None:
    """To the very moment, and the report says which are not."""
    (problem,) = compare({1: at(1)}, LOGGED, at(3.5))
    assert problem.startswith("2 transactions acknowledged by 2026-11-21T12:00:03.5")
    assert problem.endswith("are missing: 2, 3")


def test_a_transaction_sent_after_the_moment_must_not_be_there() -> None:
    """Whether or not it was acknowledged: the row itself says when it was sent."""
    (problem,) = compare({1: at(1), 2: at(2), 9: at(9)}, LOGGED, at(2.9))
    assert problem.startswith("1 transactions sent after")
    assert problem.endswith("are there: 9")


def test_a_line_cut_short_by_a_crash_told_nobody_anything(tmp_path: Path) -> None:
    """Only whole lines count."""
    log = tmp_path / "receipts.log"
    log.write_text("1 2026-11-21T12:00:01Z 2026-11-21T12:00:01.500000Z\n2 2026-11-21T12:00:02Z 2026-11-21T12:00:0")
    assert list(read_log(log)) == LOGGED[:1]


def test_what_the_database_lists_is_read_to_the_microsecond() -> None:
    """As the client sent it."""
    assert parse_listing(["7 2026-11-21T12:00:00.000001Z"]) == {7: at(0.000001)}


@pytest.mark.parametrize(("user", "says"), [("root", "refuses to run as root"), ("no-such-user", "no user")])
def test_whom_the_server_may_not_run_as_is_a_message(tmp_path: Path, user: str, says: str) -> None:
    """Before anything is made."""
    with pytest.raises(server.ServerError, match=says):
        server.Server(tmp_path, tmp_path, tmp_path, user)
