"""A small shop that takes orders all the time: the application that the quickstart protects.

    python orders.py run --database DATA/orders/orders.db --acknowledged acknowledged.log
    python orders.py check RESTORED/orders.db --acknowledged acknowledged.log

Every order is one SQLite transaction. Once it is committed, the customer is told:
a line `ID TIME` in the acknowledgement log. That log lies outside what is protected,
so that a copy of the database can be held against it: whatever was acknowledged by
the moment that a copy shows must be in the copy.
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

ITEMS = {"espresso": 250, "cappuccino": 350, "croissant": 220, "sandwich": 590, "orange juice": 400}
"""What is sold -> its price in cents."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    placed TEXT NOT NULL,
    customer TEXT NOT NULL,
    item TEXT NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    total_cents INTEGER NOT NULL
)
"""

PLACED = "SELECT id, placed FROM orders"


def open_database(path: Path) -> sqlite3.Connection:
    """The shop's database, made if it is not there: WAL mode, every commit on disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(SCHEMA)
    return database


def take_order(database: sqlite3.Connection, chance: random.Random) -> int:
    """Commit one order and return its id."""
    item, quantity = chance.choice(list(ITEMS)), chance.randint(1, 4)
    cursor = database.execute(
        "INSERT INTO orders (placed, customer, item, quantity, total_cents) VALUES (?, ?, ?, ?, ?)",
        (now(), f"customer-{chance.randint(1, 500)}", item, quantity, quantity * ITEMS[item]),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def run(database_path: Path, acknowledged: Path, per_second: float) -> None:
    """Take orders until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    chance = random.Random()
    acknowledged.parent.mkdir(parents=True, exist_ok=True)
    with closing(open_database(database_path)) as database, acknowledged.open("a", buffering=1) as log:
        while not stop.is_set():
            order = take_order(database, chance)
            log.write(f"{order} {now()}\n")
            stop.wait(1 / per_second)


def check(database_path: Path, acknowledged: Path | None, by: datetime | None) -> list[str]:
    """What is wrong with a copy of the database; nothing, if it is whole and has every order acknowledged by then.

    Without `by`, that is the moment of the newest order in the copy: whatever came before it must be there.
    """
    if not database_path.is_file():
        return [f"{database_path} is not there"]
    with closing(sqlite3.connect(database_path)) as database:
        try:
            verdict = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
            placed = {int(order): datetime.fromisoformat(time) for order, time in database.execute(PLACED)}
        except sqlite3.DatabaseError as error:
            return [f"{database_path}: {error}"]
    moment = by or max(placed.values(), default=None)
    print(f"{len(placed)} orders in {database_path}")
    problems = [] if verdict == ["ok"] else verdict
    if acknowledged and moment:
        expected = {order for order, told in read_acknowledged(acknowledged) if told <= moment}
        print(f"{len(expected)} orders acknowledged by {moment.isoformat()}")
        if missing := sorted(expected - set(placed)):
            first = ", ".join(str(order) for order in missing[:10])
            problems.append(f"{len(missing)} acknowledged orders are missing: {first}{' ...' if missing[10:] else ''}")
    return problems


def read_acknowledged(log: Path) -> Iterator[tuple[int, datetime]]:
    """The orders customers were told of, and when. A last line cut short by a crash told nobody anything."""
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            order, told = line.split()
            yield int(order), datetime.fromisoformat(told)


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def main() -> int:
    """Run or check; the status of a check is 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="A small shop that takes orders all the time.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="take orders until SIGTERM")
    running.add_argument("--database", type=Path, required=True)
    running.add_argument("--acknowledged", type=Path, required=True, help="log of acknowledged orders, kept elsewhere")
    running.add_argument("--per-second", type=float, default=5.0)
    checking = commands.add_parser("check", help="hold a copy of the database against the acknowledgement log")
    checking.add_argument("database", type=Path)
    checking.add_argument("--acknowledged", type=Path)
    checking.add_argument(
        "--by",
        type=datetime.fromisoformat,
        help="what was acknowledged by this time must be there (the newest order in the copy)",
    )
    options = parser.parse_args()
    if options.command == "run":
        run(options.database, options.acknowledged, options.per_second)
        return 0
    problems = check(options.database, options.acknowledged, options.by)
    print("\n".join(problems) if problems else "whole, nothing missing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
