"""A process that writes to SQLite all the time and says which rows are committed.

Run as `python -m tests.directories.sqlite_writer DATABASE JOURNAL_MODE`: prints the number of each committed row.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def write(path: str, journal_mode: str) -> None:
    """Commit rows one by one, deleting old ones' filler, checkpointing now and then as SQLite does."""
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    database.execute(f"PRAGMA journal_mode={journal_mode}")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE IF NOT EXISTS item (number INTEGER PRIMARY KEY, filler BLOB)")
    number = database.execute("SELECT coalesce(max(number), 0) FROM item").fetchone()[0]
    while True:
        number += 1
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO item VALUES (?, randomblob(2000))", (number,))
        database.execute("UPDATE item SET filler = randomblob(500) WHERE number = ? / 2", (number,))
        database.execute("COMMIT")
        print(number, flush=True)


class Writer:
    """The process, and the newest row it said is committed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.committed = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.committed = int(line)

    def kill(self) -> None:
        """kill -9, as a crash would; returns once everything it said was read."""
        self.process.kill()
        self.process.wait()
        self._thread.join()


@contextmanager
def writing(path: Path, journal_mode: str) -> Iterator[Writer]:
    """A writer at work on a database."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.directories.sqlite_writer", str(path), journal_mode],
        stdout=subprocess.PIPE,
        cwd=_ROOT,
    )
    writer = Writer(process)
    try:
        yield writer
    finally:
        writer.kill()
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
