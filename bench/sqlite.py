"""A SQLite database that is written all the time, protected by dpac in a directory under its blueprint, and by litestream."""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.backend import OWNER, wait_for
from bench.processes import of_process, of_site
from bench.row import Row
from dpac_api.client import Client
from dpac_api.errors import DpacError
from dpac_api.models import FilesystemTargetSpec, GroupSpec, Phase
from setup import go_tools

TRANSACTIONS_PER_SECOND = 50
_NUMBERS = itertools.count()
_TITLE = f"SQLite, {TRANSACTIONS_PER_SECOND} transactions/s"


@dataclass(frozen=True)
class Figures:
    """Of one program: milliseconds of CPU for a transaction, seconds from the last COMMIT until a restore that has it may
    begin, and seconds of that restore."""

    cpu_milliseconds: float
    lag_seconds: float
    restore_seconds: float


_FIGURES: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
    ("CPU of a transaction", "ms", lambda one: one.cpu_milliseconds),
    ("last COMMIT until it can be restored", "s", lambda one: one.lag_seconds),
    ("restore of the database", "s", lambda one: one.restore_seconds),
)


class Protector(Protocol):
    """What protects a database."""

    def cpu_seconds(self) -> float:
        """Used so far by every process of it."""

    def restore(self, to: Path) -> Path | None:
        """The newest there is, in a folder; where the database is. None if there is nothing yet."""


class Dpac:
    """A directory member with the blueprint, and an async leg of one second to a folder."""

    def __init__(self, client: Client, data: Path, group: str) -> None:
        self._client, self._data, self._group = client, data, group

    def cpu_seconds(self) -> float:
        """See `Protector`."""
        return sum(usage.cpu_seconds for usage in of_site(self._data).values())

    def restore(self, to: Path) -> Path | None:
        """See `Protector`."""
        with suppress(DpacError):
            begun = self._client.restore(self._group, member="data", to=str(to))
            if self._client.wait(begun.id, timeout_seconds=60, poll_seconds=0.02).phase is Phase.SUCCEEDED:
                return to / "app.db"
        return None


class Litestream:
    """Its own process and a file replica, with its default of a sync a second."""

    def __init__(self, process: subprocess.Popen[bytes], replica: str) -> None:
        self._process, self._replica = process, replica

    def cpu_seconds(self) -> float:
        """See `Protector`."""
        return of_process(self._process.pid).cpu_seconds

    def restore(self, to: Path) -> Path | None:
        """See `Protector`."""
        to.mkdir()
        command: list[str | Path] = [go_tools.ensure("litestream"), "restore", "-o", to / "app.db", self._replica]
        done = subprocess.run(command, capture_output=True, check=False)
        return to / "app.db" if done.returncode == 0 else None


@contextmanager
def dpac(client: Client, folder: Path, database: Path) -> Iterator[Protector]:
    """Protected by dpac while this lasts."""
    name = f"sqlite-{next(_NUMBERS)}"
    client.put_target(name, FilesystemTargetSpec(path=str(folder / f"copies-{name}")), owner=OWNER)
    spec = GroupSpec.model_validate(
        {
            "members": {"data": {"kind": "directory", "path": str(database.parent), "blueprint": "sqlite"}},
            "replication": {"copies": {"target": name, "rpo": "1s"}},
            "journal": {"history": "1h"},
        }
    )
    client.put_group(name, spec, owner=OWNER)
    try:
        wait_for(f"{name} protected", lambda: client.group_status(name).protected)
        yield Dpac(client, folder / "site", name)
    finally:
        client.delete_group(name)
        shutil.rmtree(folder / f"copies-{name}", ignore_errors=True)


@contextmanager
def litestream(folder: Path, database: Path) -> Iterator[Protector]:
    """Protected by litestream while this lasts."""
    replica = folder / f"litestream-{next(_NUMBERS)}"
    process = subprocess.Popen(
        [go_tools.ensure("litestream"), "replicate", "-log-level", "error", database, f"file://{replica}"],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for("a first copy by litestream", lambda: any(replica.rglob("*.ltx")))
        yield Litestream(process, f"file://{replica}")
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(replica, ignore_errors=True)


def sqlite_rows(client: Client, folder: Path, seconds: int, repeats: int) -> Iterator[Row]:
    """The programs take turns; medians."""
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(_run(folder, lambda database: dpac(client, folder, database), seconds))
        theirs.append(_run(folder, lambda database: litestream(folder, database), seconds))
    for what, unit, of in _FIGURES:
        mine, other = (statistics.median(of(one) for one in found) for found in (ours, theirs))
        yield Row.against(f"{_TITLE}: {what}", mine, "litestream", other, unit)


def _run(folder: Path, protected: Callable[[Path], AbstractContextManager[Protector]], seconds: int) -> Figures:
    home = folder / f"app-{next(_NUMBERS)}"
    home.mkdir()
    try:
        with closing(_made(home / "app.db")) as database, protected(home / "app.db") as protector:
            before = protector.cpu_seconds()
            newest = _write(database, seconds)
            committed = time.monotonic()
            lag, took = _until_restored(folder, protector, newest, committed)
            return Figures((protector.cpu_seconds() - before) / newest * 1000, lag, took)
    finally:
        shutil.rmtree(home)


def _made(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("CREATE TABLE entry (number INTEGER PRIMARY KEY, filler BLOB)")
    database.execute(_FILL)
    return database


_FILL = (
    "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 10000) "
    "INSERT INTO entry SELECT -v, randomblob(1000) FROM n"
)


def _write(database: sqlite3.Connection, seconds: int) -> int:
    """Transactions at their pace; how many."""
    chance, begin, number = random.Random(1), time.monotonic(), 0
    while (now := time.monotonic()) < begin + seconds:
        number += 1
        database.execute("INSERT INTO entry VALUES (?, ?)", (number, chance.randbytes(1000)))
        time.sleep(max(0.0, begin + number / TRANSACTIONS_PER_SECOND - now))
    return number


def _until_restored(folder: Path, protector: Protector, newest: int, committed: float) -> tuple[float, float]:
    """(seconds from the last COMMIT until the first restore that has it began, seconds that this restore took)."""
    while time.monotonic() < committed + 120:
        to = folder / f"restored-{next(_NUMBERS)}"
        began = time.monotonic()
        found = protector.restore(to)
        took = time.monotonic() - began
        if found is not None:
            with closing(sqlite3.connect(found)) as copy:
                (there,) = copy.execute("SELECT max(number) FROM entry").fetchone()
        shutil.rmtree(to, ignore_errors=True)
        if found is not None and there == newest:
            return began - committed, took
    raise TimeoutError("the last transaction could not be restored within 120 s")
