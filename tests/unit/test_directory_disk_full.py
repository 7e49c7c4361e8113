"""A directory member whose host's disk is full: nothing is claimed that was not captured, and all of it is, once there is room."""

from __future__ import annotations

import asyncio
import errno
import gc
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpac_api.errors import DpacError, Temporary
from dpac_engine.control.member_journal import MemberJournal
from dpac_engine.core.records import KeyChange, Keyspace
from dpac_engine.io.blueprints.sqlite import SqliteBlueprint
from dpac_engine.io.members import chunks
from tests.directories.journal import FoldingJournal
from tests.directories.members import member_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The member's folder."""
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EDQUOT])
def test_a_database_that_there_is_no_room_to_copy_keeps_as_of_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, error_number: int
) -> None:
    """Its checkpoints lack what it holds, so they may not say that they are as of now."""
    with closing(sqlite3.connect(root / "shop.db")) as database:
        database.execute("CREATE TABLE sales (cents INTEGER)")

    def full(*_: object) -> None:
        raise OSError(error_number, "full")

    async def story() -> None:
        journal = FoldingJournal()
        member = member_of(root, journal, root.parent / "member", SqliteBlueprint())
        with monkeypatch.context() as patches:
            patches.setattr(SqliteBlueprint, "copy", full)
            assert (await member.capture(full=True)).as_of is None
        assert "no room for a copy" in member.findings()["shop.db"]
        assert (await member.capture(full=True)).as_of is not None
        assert b"shop.db" in journal.fold.entries
        await member.stop()

    asyncio.run(story())


def test_a_full_scratch_disk_is_told_from_a_damaged_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own error for it reaches whoever copies as ENOSPC."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        database.execute("CREATE TABLE sales (cents BLOB)")
        database.execute("INSERT INTO sales VALUES (zeroblob(1000000))")
        database.commit()

    def small(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA max_page_count=2")
        return connection

    monkeypatch.setattr("dpac_engine.io.blueprints.sqlite._scratch", small)
    with pytest.raises(OSError, match="full") as raised:
        SqliteBlueprint().copy(bytes(tmp_path / "shop.db"), tmp_path / "copy")
    assert raised.value.errno == errno.ENOSPC


def test_an_index_that_cannot_be_written_is_written_once_there_is_room(root: Path) -> None:
    """The failure names the index and what to do; nothing of that capture is missing afterwards."""
    (root / "first").write_bytes(b"first")

    async def story() -> None:
        journal = FoldingJournal()
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        database = member._index._database
        assert database is not None
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count={pages}")
        for number in range(400):
            (root / f"more-{number}").write_bytes(b"%d" % number)
        with pytest.raises(Temporary, match=r"index\.sqlite cannot be written .*full.*Make room"):
            await member.capture(full=True)
        database.execute("PRAGMA max_page_count=1000000")
        await member.capture(full=True)
        lsn = member.applied_lsn
        await member.stop()
        again = member_of(root, journal, root.parent / "member")
        assert again.applied_lsn == lsn
        assert len(dict(again.current_entries())) == 402
        await again.stop()

    asyncio.run(story())


def test_a_capture_that_is_abandoned_by_a_detach_is_not_logged_as_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it any more: asyncio must not tell of an exception that was never retrieved."""
    (root / "file").write_bytes(b"content")
    reading, stopped, told = threading.Event(), threading.Event(), list[dict[str, Any]]()
    real = chunks.ChunkSink.add

    def add(self: chunks.ChunkSink, content: bytes) -> bytes:
        reading.set()
        stopped.wait(60)
        return real(self, content)

    monkeypatch.setattr(chunks.ChunkSink, "add", add)

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        member = member_of(root, FoldingJournal(), root.parent / "member")
        await member.start()
        assert await asyncio.to_thread(reading.wait, 60)
        stopping = asyncio.create_task(member.stop())
        assert await asyncio.to_thread(member._capture.stopping.wait, 60)
        stopped.set()
        await stopping

    asyncio.run(story())
    gc.collect()
    assert not told


def test_a_journal_that_fails_under_a_capture_is_told_as_an_error_of_the_tree() -> None:
    """Whoever asked for the checkpoint gets a message and no traceback, whether the append failed or the sync."""
    broken = OSError(errno.EIO, "Input/output error")

    def append(_: object) -> None:
        raise broken

    def when_durable(_: int, done: Callable[[OSError | None], None]) -> None:
        done(broken)

    spool: Any = SimpleNamespace(append=append, when_durable=when_durable)
    journal = MemberJournal(spool, 1, lambda: None)
    with pytest.raises(DpacError, match="The journal failed: Input/output error"):
        journal.put([KeyChange(Keyspace.ENTRY, b"path", b"value")])
    with pytest.raises(DpacError, match="The journal failed: Input/output error"):
        asyncio.run(journal.wait_durable(64))
