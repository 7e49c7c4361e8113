"""Index and journal: whatever stops between the two, a restart agrees with the journal and puts nothing twice."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from dpac_api.errors import Corruption
from dpac_engine.core import entries
from dpac_engine.core.records import Keyspace
from tests.directories.journal import Cut, FoldingJournal
from tests.directories.members import member_of, running, until
from tests.directories.trees import picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of two files, one of them of several chunks."""
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "small").write_bytes(b"small")
    (folder / "sub" / "large").write_bytes(random.Random(1).randbytes(10 * 2**20))
    return folder


def assert_restores(journal: FoldingJournal, root: Path, to: str) -> None:
    """The journal's fold is the tree."""
    journal.fold.restore(root.parent / to)
    assert picture(root.parent / to) == picture(root)


@pytest.mark.parametrize("point", ["put 0", "put 1", "put 2", "durable 0", "index"])
def test_a_crash_at_any_point_of_a_capture_is_repaired_by_the_next(
    root: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the replay the next capture puts what is missing, and chunks the journal has are not put again."""
    journal = FoldingJournal()
    kind, _, count = point.partition(" ")

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        if kind == "put":
            journal.fails_before_put = int(count)
        elif kind == "durable":
            journal.fails_before_durable = int(count)
        else:
            monkeypatch.setattr(member._index, "commit", _cut)
        with pytest.raises(Cut):
            await member.capture(full=True)
        journal.fails_before_put = journal.fails_before_durable = None
        assert member.applied_lsn == 0
        assert point == "put 0" or not member.all_applied
        await member.stop()
        again = member_of(root, journal, root.parent / "member")
        await again.capture(full=True)
        assert again.all_applied
        assert again.applied_lsn in (0, journal.lsn)
        await again.stop()

    if point == "put 2":
        with pytest.raises(pytest.fail.Exception):  # two puts are all there are
            asyncio.run(run())
        return
    asyncio.run(run())
    assert_restores(journal, root, "restored")
    assert journal.bytes_put() == 5 + 10 * 2**20


def _cut(*_arguments: object) -> None:
    raise Cut


def test_a_restart_reads_nothing_that_did_not_change(root: Path) -> None:
    """A second member on the same index puts nothing, and knows everything the first one knew."""
    journal = FoldingJournal()

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        before, status = list(member.current_entries()), member.status()
        await member.stop()
        runs = len(journal.runs)
        async with running(member_of(root, journal, root.parent / "member")) as again:
            await again.capture(full=True)
            assert list(again.current_entries()) == before == sorted(journal.fold.entries.items())
            assert again.status().size_bytes == status.size_bytes
        assert len(journal.runs) == runs

    asyncio.run(run())


def test_a_stop_abandons_a_long_capture_and_the_next_start_goes_on(root: Path) -> None:
    """Stopping does not wait for gigabytes to be read; chunks that were put ahead are not put again."""
    (root / "huge").write_bytes(random.Random(2).randbytes(40 * 2**20))
    journal = FoldingJournal()

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.start()
        await until(lambda: journal.runs, "chunks are put ahead")
        await member.stop()
        assert not journal.fold.entries
        again = member_of(root, journal, root.parent / "member")
        await again.capture(full=True)
        await again.stop()

    asyncio.run(run())
    assert_restores(journal, root, "restored")
    assert journal.bytes_put() == 5 + 50 * 2**20


def test_a_reset_puts_everything_again(root: Path) -> None:
    """After a RESET record the journal knows nothing of the member: the next capture tells it all, also after a crash."""
    journal = FoldingJournal()

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        journal.fold.entries.clear()
        journal.fold.chunks.clear()
        await member.reset(journal.lsn)
        assert member.status().seeded is False
        await member.stop()
        again = member_of(root, journal, root.parent / "member")
        await again.capture(full=True)
        await again.stop()

    asyncio.run(run())
    assert_restores(journal, root, "restored")


def test_a_damaged_index_is_an_error_that_says_what_to_do(root: Path) -> None:
    """It is Corruption, not a traceback of the database."""
    folder = root.parent / "member"
    folder.mkdir()
    (folder / "index.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(Corruption, match="resync the member"):
        member_of(root, FoldingJournal(), folder)


def test_a_chunk_list_in_chunks_survives_restart_and_replay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file's list of chunks is put, replayed, renamed and dropped like content."""
    monkeypatch.setattr(entries, "LISTED_DIGESTS_MAX", 8)
    monkeypatch.setattr(entries, "CHUNK_BYTES", 256)  # only of the lists: content is cut by io's own constant
    journal = FoldingJournal()

    async def crash_after(change: str) -> None:
        member = member_of(root, journal, root.parent / "member")
        monkeypatch.setattr(member._index, "commit", _cut)
        with pytest.raises(Cut):
            await member.capture(full=True)
        await member.stop()
        assert journal.fold.decoded(), change

    async def settle() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        await member.stop()

    asyncio.run(settle())
    lists = [value for value in journal.fold.chunks.values() if value.startswith(entries.LIST_MAGIC)]
    assert lists, "the large file's list lies in chunks"
    os.rename(root / "sub" / "large", root / "renamed")
    asyncio.run(crash_after("a rename, without any chunk put"))
    with open(root / "renamed", "r+b") as file:
        file.write(b"changed")
    asyncio.run(crash_after("a change of the list"))
    asyncio.run(settle())
    monkeypatch.setattr(entries, "CHUNK_BYTES", 256 * 1024)
    assert_restores(journal, root, "restored")
    (root / "renamed").unlink()
    monkeypatch.setattr(entries, "CHUNK_BYTES", 256)
    asyncio.run(settle())
    assert list(journal.fold.chunks.values()) == [b"small"]


def test_a_new_target_gets_everything_that_the_journal_does_not_bring(root: Path) -> None:
    """Snapshot, with the tree changing under it, and the journal since its beginning: together they are the tree."""
    journal = FoldingJournal()

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        (root / "twin").write_bytes((root / "sub" / "large").read_bytes())
        await member.capture(full=True)
        began = journal.lsn
        target = FoldingJournal()
        first = True
        async for batch in member.snapshot_changes():
            for change in batch:
                target.fold.take(change)
            if first:
                # Changed while it is read: one rewritten, one gone, one new of old content, one touched.
                (root / "late").write_bytes((root / "sub" / "large").read_bytes()[2**20 :])
                (root / "sub" / "large").unlink()
                (root / "small").write_bytes(b"rewritten")
                await member.capture(full=True)
                os.utime(root / "twin", ns=(0, 1))
            first = False
        await member.capture(full=True)
        # The journal brings what was put since; deletes of what the snapshot never had are no news to the target.
        for _, change in journal.after(began):
            keys = target.fold.entries if change.keyspace == Keyspace.ENTRY else target.fold.chunks
            keys.pop(change.key, None) if change.value is None else target.fold.take(change)
        target.fold.check()
        assert target.fold.entries == journal.fold.entries
        assert target.fold.chunks.keys() >= journal.fold.chunks.keys()
        await member.stop()
        target.fold.restore(root.parent / "restored")

    asyncio.run(run())
    assert picture(root.parent / "restored") == picture(root)
