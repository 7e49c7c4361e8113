"""The quickstart's order application: what it acknowledges is on disk, and what starts and stops it is not fooled."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from setup import checkout, orders
from setup.checkout import State

ORDERS = checkout.QUICKSTART / "orders.py"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A state folder, whose order application is stopped at the end."""
    made = State(tmp_path / "state")
    yield made
    orders.stop(made)


def check(database: Path, acknowledged: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ORDERS), "check", str(database), "--acknowledged", str(acknowledged), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_order_application_starts_once_and_goes_on_after_a_stop(state: State) -> None:
    """A second start changes nothing; after stop and start the numbers of orders go on."""
    orders.start(state)
    pid = state.orders_pid.read_text()
    orders.start(state)
    assert state.orders_pid.read_text() == pid
    orders.stop(state)
    assert not orders.running(state)
    before = state.acknowledged.read_text().splitlines()
    orders.start(state)
    after = state.acknowledged.read_text().splitlines()
    assert int(after[len(before)].split()[0]) == int(before[-1].split()[0]) + 1


def test_a_pid_file_of_a_killed_application_misleads_nobody(state: State) -> None:
    """After kill -9 the file is still there; start starts, stop kills no stranger."""
    orders.start(state)
    pid = int(state.orders_pid.read_text())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while orders.running(state):
        assert time.monotonic() < deadline
    state.orders_pid.write_text(f"{os.getpid()}\n")
    orders.stop(state)
    orders.start(state)
    assert int(state.orders_pid.read_text()) not in (pid, os.getpid())


def test_every_acknowledged_order_survives_a_kill(state: State) -> None:
    """What the log says is in the database, whole."""
    orders.start(state)
    os.kill(int(state.orders_pid.read_text()), signal.SIGKILL)
    result = check(state.orders / "orders.db", state.acknowledged)
    assert result.returncode == 0, result.stdout
    assert "whole, nothing missing" in result.stdout


def test_a_copy_that_lacks_an_acknowledged_order_is_found_out(state: State) -> None:
    """A gap is found by itself; what is missing at the end is found once it is said of which moment the copy shall be."""
    orders.start(state)
    orders.stop(state)
    database = state.orders / "orders.db"
    with state.acknowledged.open("a") as log:
        log.write("999999 2999-01-01T00:00:00.000Z\n")
    assert check(database, state.acknowledged).returncode == 0
    late = check(database, state.acknowledged, "--by", "2999-01-02T00:00:00Z")
    assert (late.returncode, "1 acknowledged orders are missing: 999999" in late.stdout) == (1, True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO orders VALUES (1000000, '2999-01-02T00:00:00Z', 'x', 'x', 1, 1)")
    gap = check(database, state.acknowledged)
    assert (gap.returncode, "1 acknowledged orders are missing: 999999" in gap.stdout) == (1, True)
