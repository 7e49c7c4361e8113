"""A SQLite application whose transactions are numbered and chained, a recorder outside the system, and the judgement of a copy.

Transaction n inserts entry n, which holds the hash of entry n - 1, changes an older one, drops one that is old, and sets a
total. So a copy can have been the database at one moment only if its entries are chained without a hole up to that total.
The recorder keeps when each transaction was issued and when its COMMIT had returned.

Run as `python -m tests.e2e.sqlite_oracle DATABASE JOURNAL_MODE SEED`: a line of the moment and what was done at each step.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

from setup.checkout import ROOT
from tests.e2e.site import until

KEPT = 2000
"""Entries that a database holds; older ones are dropped."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, before BLOB, hash BLOB UNIQUE, filler BLOB);
CREATE TABLE IF NOT EXISTS total (number INTEGER);
"""


def hash_of(before: bytes, number: int) -> bytes:
    """What the next entry refers to."""
    return blake2b(before + number.to_bytes(8, "little"), digest_size=16).digest()


def work(path: str, journal_mode: str, seed: int) -> None:
    """The application: one transaction after another, until it is killed."""
    chance = random.Random(seed)
    database = sqlite3.connect(path, isolation_level=None, timeout=120)
    database.execute(f"PRAGMA journal_mode={journal_mode}")
    database.execute("PRAGMA synchronous=NORMAL")
    database.executescript(_SCHEMA)
    number, before = database.execute(
        "SELECT number, hash FROM entry UNION ALL SELECT 0, x'' ORDER BY number DESC LIMIT 1"
    ).fetchone()
    print("committed", number, time.time_ns(), flush=True)
    while True:
        number += 1
        print("issued", number, time.time_ns(), flush=True)
        database.execute("BEGIN IMMEDIATE")
        found = hash_of(before, number)
        filler = chance.randbytes(chance.randrange(2000))
        database.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (number, before, found, filler))
        database.execute("UPDATE entry SET filler = ? WHERE number = ?", (filler[:100], number // 2))
        database.execute("DELETE FROM entry WHERE number <= ?", (number - KEPT,))
        database.execute("DELETE FROM total")
        database.execute("INSERT INTO total VALUES (?)", (number,))
        database.execute("COMMIT")
        before = found
        print("committed", number, time.time_ns(), flush=True)
        # An application thinks between its transactions; without that a rollback journal never leaves a moment for a copy.
        time.sleep(chance.choice((0, 0.002, 0.004)))


class Application:
    """One such process, which may be killed and started again, and the record of all it said."""

    def __init__(self, path: Path, journal_mode: str, seed: int) -> None:
        self.name = path.name
        self._path = path
        self._mode = journal_mode
        self._chance = random.Random(seed)
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self.issued_ns: list[int] = [0]
        """By number: when it was first issued. There is no transaction 0."""
        self.committed_ns: list[int] = [0]

    def __enter__(self) -> Application:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Begin, or go on where the database is."""
        command = [sys.executable, "-m", "tests.e2e.sqlite_oracle", str(self._path), self._mode]
        self._process = subprocess.Popen(
            [*command, str(self._chance.getrandbits(32))], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._reader = threading.Thread(target=self._record, args=(self._process,), daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """kill -9; returns once everything it said is on record."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def restart(self) -> None:
        """kill -9, and again."""
        self.kill()
        self.start()

    def wait_for(self, transactions: int) -> None:
        """Until so many more were committed."""
        goal = len(self.committed_ns) + transactions
        until(lambda: len(self.committed_ns) >= goal, f"{self.name} has committed {transactions} more transactions")

    def _record(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith("\n"):  # the last one may be cut short
                    what, number, at_ns = line.split()
                    self.note(what, int(number), int(at_ns))

    def note(self, what: str, number: int, at_ns: int) -> None:
        """Put on record what was done; a transaction's first time of each kind counts."""
        record = self.issued_ns if what == "issued" else self.committed_ns
        assert number <= len(record), f"{self.name}: {what} {number} after {len(record) - 1}"
        if number == len(record):
            record.append(at_ns)

    # ------------------------------------------------------------------ judgement

    def judge(self, newest: int, complete_to_ns: int, taken_at_ns: int) -> None:
        """Hold the newest transaction of a copy against the record: it has all that was committed by `complete_to_ns`, and
        nothing that was issued after `taken_at_ns`. REST tells both to the microsecond."""
        assert newest < len(self.issued_ns), f"{self.name}: {newest} was never issued"
        assert newest == 0 or self.issued_ns[newest] <= taken_at_ns + 1000, (
            f"{self.name}: {newest} was issued {(self.issued_ns[newest] - taken_at_ns) / 1e9} s after the checkpoint"
        )
        after = newest + 1
        assert after >= len(self.committed_ns) or self.committed_ns[after] >= complete_to_ns, (
            f"{self.name}: {after} was committed {(complete_to_ns - self.committed_ns[after]) / 1e9} s before the moment "
            "up to which all shall be there, and is not"
        )


def newest_in(database: Path) -> int:
    """The newest transaction of a copy, 0 if there is none; fails if it is no database that ever was."""
    with closing(sqlite3.connect(database)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert found == "ok", f"{database.name}: {found}"
        if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'total'").fetchone()[0]:
            return 0
        entries = connection.execute("SELECT number, before, hash FROM entry ORDER BY number").fetchall()
        (total,) = connection.execute("SELECT coalesce(max(number), 0) FROM total").fetchone()
    newest = entries[-1][0] if entries else 0
    assert total == newest, f"{database.name}: half a transaction: entry {newest}, total {total}"
    numbers = [number for number, _, _ in entries]
    assert numbers == list(range(max(1, newest - KEPT + 1), newest + 1)), f"{database.name}: a hole in {numbers}"
    for (_, _, left), (number, before, found) in itertools.pairwise(entries):
        assert before == left, f"{database.name}: entry {number} does not follow the one before it"
        assert found == hash_of(before, number), f"{database.name}: entry {number} is not what was written"
    return int(newest)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
