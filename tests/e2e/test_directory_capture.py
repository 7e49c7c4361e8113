"""A directory member beside an application that never rests: what is captured opens, and holds what was committed."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from dpac_engine.io.blueprints.sqlite import SqliteBlueprint
from tests.directories.journal import FoldingJournal
from tests.directories.members import QUICK, member_of, running, until
from tests.directories.sqlite_writer import writing
from tests.directories.trees import picture

pytestmark = pytest.mark.e2e


def rows_in(database: Path) -> int:
    """The newest row, in a database whose integrity check passes."""
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT coalesce(max(number), 0) FROM item").fetchone()[0])


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "PERSIST"])
def test_every_capture_of_a_database_that_is_written_holds_what_was_committed(tmp_path: Path, mode: str) -> None:
    """A capture of a busy database ends, passes integrity_check, lacks no row committed before it began, and
    brings no log files; a barrier says so."""
    root, journal, blueprint = tmp_path / "tree", FoldingJournal(), SqliteBlueprint(busy_seconds_max=60)
    root.mkdir()
    (root / "settings.ini").write_text("quiet")

    async def run() -> None:
        with writing(root / "orders.db", mode) as writer:
            await until(lambda: writer.committed > 20, "the application writes")
            async with running(member_of(root, journal, tmp_path / "member", blueprint)) as member:
                for number in range(12):
                    committed = writer.committed
                    barrier = number % 2 == 1
                    cut = await member.barrier() if barrier else await member.capture(full=True)
                    restored = tmp_path / f"restored{number}"
                    journal.fold.restore(restored)
                    member.release()
                    assert cut.kind == ("barrier" if barrier else "observed"), member.findings()
                    assert sorted(os.listdir(restored)) == ["orders.db", "settings.ini"]
                    assert blueprint.check(restored) == {"orders.db": "ok"}
                    assert rows_in(restored / "orders.db") >= committed
                    await until(lambda before=committed: writer.committed > before, "the application still writes")  # type: ignore[misc]

    asyncio.run(run())
    assert sorted(path.name for path in root.iterdir() if path.name.startswith("orders.db"))[0] == "orders.db"


def test_changes_of_a_database_are_captured_by_themselves(tmp_path: Path) -> None:
    """Nobody asks: every few moments the newest commits are in the journal, by hints alone."""
    root, journal = tmp_path / "tree", FoldingJournal()
    root.mkdir()

    async def run() -> None:
        with writing(root / "orders.db", "WAL") as writer:
            await until(lambda: writer.committed > 5, "the application writes")
            async with running(member_of(root, journal, tmp_path / "member", SqliteBlueprint())) as member:
                scanned = member.status().as_of
                for number in range(3):
                    committed = writer.committed
                    for _ in range(2):  # one capture may have begun before
                        before = journal.fold.entries[b"orders.db"]
                        await until(lambda old=before: journal.fold.entries[b"orders.db"] != old, "a capture by hints")  # type: ignore[misc]
                    restored = tmp_path / f"restored{number}"
                    journal.fold.restore(restored)
                    assert SqliteBlueprint().check(restored) == {"orders.db": "ok"}
                    assert rows_in(restored / "orders.db") >= committed
                assert scanned is not None

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_what_a_killed_application_left_is_recovered_in_the_copy_only(tmp_path: Path, mode: str) -> None:
    """Database and log of a dead process: the capture holds every committed row, the application's files stay as
    they are."""
    root, journal = tmp_path / "tree", FoldingJournal()
    root.mkdir()
    with writing(root / "orders.db", mode) as writer:
        deadline = time.monotonic() + 90
        while writer.committed < 50:
            assert time.monotonic() < deadline
        writer.kill()
        committed = writer.committed
    (root / "orders.db-shm").unlink(missing_ok=True)
    before = picture(root)

    async def run() -> None:
        member = member_of(root, journal, tmp_path / "member", SqliteBlueprint())
        await member.capture(full=True)
        assert member.findings() == {}
        await member.stop()

    asyncio.run(run())
    assert picture(root) == before
    journal.fold.restore(tmp_path / "restored")
    assert os.listdir(tmp_path / "restored") == ["orders.db"]
    assert SqliteBlueprint().check(tmp_path / "restored") == {"orders.db": "ok"}
    assert rows_in(tmp_path / "restored" / "orders.db") >= committed


def test_a_database_beyond_the_paths_that_sqlite_opens_is_copied_too(tmp_path: Path) -> None:
    """A path of more than 512 bytes: database and log are copied while both hold still, and recovered in the copy."""
    root, journal = tmp_path / "tree", FoldingJournal()
    root.mkdir()
    with closing(sqlite3.connect(root / "orders.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE item (number INTEGER)")
        database.execute("INSERT INTO item VALUES (7)")
        database.commit()
        deep = root.joinpath(*["d" * 100] * 6)
        deep.mkdir(parents=True)
        for name in os.listdir(root):
            if name.startswith("orders.db"):
                (root / name).rename(deep / name)

        async def run() -> None:
            member = member_of(root, journal, tmp_path / "member", SqliteBlueprint())
            await member.capture(full=True)
            assert member.findings() == {}
            await member.stop()

        asyncio.run(run())
    journal.fold.restore(tmp_path / "restored")
    (found,) = (tmp_path / "restored").rglob("orders.db*")
    found.rename(tmp_path / "orders.db")
    assert rows_in(tmp_path / "orders.db") == 7


def test_a_database_at_rest_is_copied_once(tmp_path: Path) -> None:
    """No change of database or log: no copy, no record."""
    root, journal, blueprint = tmp_path / "tree", FoldingJournal(), SqliteBlueprint()
    root.mkdir()
    copies: list[bytes] = []

    class Counting(SqliteBlueprint):
        def copy(self, source, scratch):  # type: ignore[no-untyped-def]
            copies.append(source)
            return super().copy(source, scratch)

    async def run() -> None:
        with closing(sqlite3.connect(root / "orders.db")) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE item (number INTEGER)")
            database.commit()
            member = member_of(root, journal, tmp_path / "member", Counting())
            await member.capture(full=True)
            await member.capture(full=True)  # the log had changed within the clock's tick, at most
            seen, runs = len(copies), len(journal.runs)
            for _ in range(3):
                await member.capture(full=True)
            assert (len(copies), len(journal.runs)) == (seen, runs)
            database.execute("INSERT INTO item VALUES (1)")
            database.commit()
            await member.capture(full=True)
            assert len(copies) > seen
            await member.stop()

    asyncio.run(run())
    journal.fold.restore(tmp_path / "restored")
    assert blueprint.check(tmp_path / "restored") == {"orders.db": "ok"}
    assert rows_in(tmp_path / "restored" / "orders.db") == 1


def test_a_file_with_a_database_header_that_is_none_is_a_plain_file(tmp_path: Path) -> None:
    """It is captured as it is, with what lies beside it, and the status and the cut say that nothing was quiesced."""
    root, journal = tmp_path / "tree", FoldingJournal()
    root.mkdir()
    (root / "fake.db").write_bytes(b"SQLite format 3\x00" + random.Random(1).randbytes(5000))
    (root / "fake.db-wal").write_bytes(b"no log")

    async def run() -> None:
        member = member_of(root, journal, tmp_path / "member", SqliteBlueprint())
        await member.capture(full=True)
        await member.capture(full=True)
        assert "captured as a plain file" in member.findings()["fake.db"]
        await member.stop()

    asyncio.run(run())
    journal.fold.restore(tmp_path / "restored")
    assert picture(tmp_path / "restored") == picture(root)
    assert SqliteBlueprint().check(tmp_path / "restored")["fake.db"] != "ok"


def test_a_barrier_beside_a_file_that_nothing_covers_is_observed(tmp_path: Path) -> None:
    """With a blueprint, a plain file that changes during the barrier makes it observed; without one, always."""
    root, journal = tmp_path / "tree", FoldingJournal()
    root.mkdir()
    (root / "log").write_text("0")

    async def run() -> None:
        member = member_of(root, journal, tmp_path / "member", SqliteBlueprint())
        assert (await member.barrier()).kind == "barrier"
        member.release()
        real = member._capture.run

        async def changing(*arguments: object, **options: object) -> None:
            await real(*arguments, **options)  # type: ignore[arg-type]
            (root / "log").write_text("changed meanwhile")

        member._capture.run = changing  # type: ignore[method-assign,assignment]
        assert (await member.barrier()).kind == "observed"
        await member.stop()
        plain = member_of(root, journal, tmp_path / "plain")
        assert (await plain.barrier()).kind == "observed"
        await plain.stop()

    asyncio.run(run())


def test_nothing_is_captured_between_a_barrier_and_its_release(tmp_path: Path) -> None:
    """The mark that follows a barrier is of that cut; a forgotten release ends by itself."""
    root, journal = tmp_path / "tree", FoldingJournal()
    root.mkdir()

    async def run() -> None:
        settings = QUICK._replace(hold_seconds_max=0.5)
        async with running(member_of(root, journal, tmp_path / "member", settings=settings)) as member:
            await member.barrier()
            held = time.monotonic()
            (root / "new").write_text("1")
            await until(lambda: journal.fold.entries.get(b"new"), "captures go on")
            assert time.monotonic() - held >= 0.45

    asyncio.run(run())


def test_ten_thousand_files_in_time(tmp_path: Path) -> None:
    """First capture, scan without changes, one change by hint, restart and restore of 10,000 files (figures printed)."""
    root, journal = tmp_path / "tree", FoldingJournal()
    source = random.Random(3)
    for folder in range(100):
        (root / f"folder{folder}").mkdir(parents=True)
        for number in range(100):
            (root / f"folder{folder}" / f"file{number}").write_bytes(source.randbytes(2000))
    seconds: dict[str, float] = {}

    async def run() -> None:
        stalls: list[float] = []

        async def watch_the_loop() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                stalls.append(time.monotonic() - before - 0.005)

        watching = asyncio.create_task(watch_the_loop())
        began = time.monotonic()
        async with running(member_of(root, journal, tmp_path / "member")) as member:
            seconds["first capture"] = time.monotonic() - began
            await member.capture(full=True)
            began = time.monotonic()
            await member.capture(full=True)
            seconds["scan without changes"] = time.monotonic() - began
            began = time.monotonic()
            (root / "folder5" / "file5").write_bytes(b"changed")
            before = journal.fold.entries[b"folder5/file5"]
            await until(lambda: journal.fold.entries[b"folder5/file5"] != before, "the change is captured")
            seconds["one change"] = time.monotonic() - began
        began = time.monotonic()
        async with running(member_of(root, journal, tmp_path / "member")):
            seconds["restart"] = time.monotonic() - began
        watching.cancel()
        seconds["longest stall of the event loop"] = max(stalls)

    asyncio.run(run())
    began = time.monotonic()
    journal.fold.restore(tmp_path / "restored")
    seconds["restore"] = time.monotonic() - began
    print({what: round(took, 3) for what, took in seconds.items()})
    assert picture(tmp_path / "restored") == picture(root)
    # Generous bounds for a busy machine: what they catch is a scan that reads, or work per path that grows.
    assert seconds["first capture"] < 120
    assert seconds["scan without changes"] < 20
    assert seconds["one change"] < 30
    shutil.rmtree(tmp_path / "restored")
