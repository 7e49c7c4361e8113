"""A group of two shards at work: what its checkpoints hold, and what becomes of them when a shard is away, late or killed."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dpac_api.errors import Invalid, Temporary
from dpac_api.models import Checkpoint, CheckpointRequest
from dpac_engine.control import coordinator as coordinator_module
from dpac_engine.control.coordinator import Coordinator
from dpac_engine.control.group import Group
from dpac_engine.io.members.tree_restore import restore_tree
from tests.sharded_group import ShardedSite, run
from tests.unit import test_group as groups
from tests.unit.test_group import write

pytestmark = pytest.mark.usefixtures("_fast", "_patient")
_fast = groups._fast


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers within the bound."""
    monkeypatch.setattr(coordinator_module, "HOLD_SECONDS_MAX", 60.0)


def asked(**changes: object) -> CheckpointRequest:
    """A checkpoint that somebody asks for."""
    return CheckpointRequest.model_validate({"request_id": "request-1", **changes})


async def taken(group: Group, **changes: object) -> Checkpoint:
    """It, taken."""
    return await group.checkpoint(asked(**changes))


def with_application(site: ShardedSite) -> Path:
    """The second shard gets a directory with a database under its blueprint instead of its volume."""
    folder = site.root / "app"
    folder.mkdir()
    site.members["b"] = {"kind": "directory", "path": str(folder), "blueprint": "sqlite"}
    add(folder, 0)
    return folder


def add(folder: Path, number: int) -> None:
    """The application commits a number."""
    with closing(sqlite3.connect(folder / "shop.db", timeout=60)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS sale (number INTEGER)")
        database.execute("INSERT INTO sale VALUES (?)", (number,))
        database.commit()


def test_an_application_is_quiesced_in_its_shard_for_the_mark_of_all(tmp_path: Path) -> None:
    """What was committed before is in the checkpoint, both shards call it application-consistent, and the directory goes on afterwards."""

    async def story(site: ShardedSite) -> None:
        folder = with_application(site)
        first, second = await site.start()
        write(first, 0, b"x" * 4096)
        await asyncio.to_thread(add, folder, 7)
        found = await taken(first, app=True, tag="mine")
        assert (found.consistency, found.cuts["b"].kind) == ("app", "barrier")
        assert {cut.kind for cut in found.cuts.values()} == {"barrier"}
        await asyncio.gather(first.ship(), second.ship())
        repository = site.repository()
        mark, _ = repository.resolve("latest-app", [])
        assert mark.id == found.id == repository.resolve("tag:mine", [])[0].id
        tree = repository.image(mark).tree(2)
        restore_tree(tree.entries(), tree.read_chunk, tmp_path / "back", lambda _: None)
        with closing(sqlite3.connect(tmp_path / "back" / "shop.db")) as database:
            assert [number for (number,) in database.execute("SELECT number FROM sale")] == [0, 7]
        assert not second.members[2].at_rest
        plain = await taken(first)
        assert (plain.consistency, plain.cuts["b"].kind, plain.cuts["a"].kind) == ("crash", "observed", "barrier")

    run(tmp_path, story)


def test_a_member_that_went_on_before_the_mark_is_no_barrier(tmp_path: Path) -> None:
    """Its bound passed while another shard was quiesced: what it captured since is in the mark, and the cut says so."""

    async def story(site: ShardedSite) -> None:
        with_application(site)
        first, second = await site.start()

        async def let_go() -> None:
            second.members[2].release()

        site.peer.before["mark_held"] = let_go
        found = await taken(first, app=True)
        assert (found.consistency, found.cuts["b"].kind) == ("app", "observed")

    run(tmp_path, story)


def test_a_shard_that_was_quiesced_for_nobody_any_more_refuses_the_mark(tmp_path: Path) -> None:
    """Its worker was restarted in between: that checkpoint is not taken, and who asked is told; the next one is."""

    async def story(site: ShardedSite) -> None:
        with_application(site)
        first, second = await site.start()

        async def restart() -> None:
            if second.quiescing._at_rest:  # this is the checkpoint that was asked for, not one of every second
                del site.peer.before["hold_writes"]
                second.quiescing.end(second.quiescing._token)

        site.peer.before["hold_writes"] = restart
        with pytest.raises(Temporary, match="at rest for another checkpoint, or no more"):
            await taken(first, app=True)
        assert (await taken(first, app=True)).consistency == "app"

    run(tmp_path, story)


def test_nothing_to_quiesce_is_said(tmp_path: Path) -> None:
    """No shard has a blueprint: the request is wrong, and nobody rests."""

    async def story(site: ShardedSite) -> None:
        first, second = await site.start()
        with pytest.raises(Invalid, match="nothing to quiesce"):
            await taken(first, app=True)
        assert not any(member.at_rest for group in (first, second) for member in group.members.values())

    run(tmp_path, story)


def test_a_directory_lets_nothing_into_a_shard_that_holds(tmp_path: Path) -> None:
    """What was captured after the moment of the checkpoint is not in it; it comes right after."""

    async def story(site: ShardedSite) -> None:
        folder = site.root / "app"
        folder.mkdir()
        site.members["b"] = {"kind": "directory", "path": str(folder)}
        first, second = await site.start()
        member = second.members[2]
        assert member.directory is not None
        assert member._journal is not None
        admitted, came = member._journal.admitted, asyncio.Event()

        async def note() -> None:
            if second.holding._hold.token == held.token:
                came.set()
            await admitted()

        member._journal.admitted = note  # type: ignore[method-assign]
        async with first.coordinator._turn:  # type: ignore[union-attr]
            held, head_lsn = second.holding.take(60.0), second.spool.head_lsn
        (folder / "late").write_text("1")
        capture = asyncio.create_task(member.directory.settle())
        async with asyncio.timeout(60):
            await came.wait()
        assert second.spool.head_lsn == head_lsn
        second.holding.release(held.token)
        await capture
        assert second.spool.head_lsn > head_lsn

    run(tmp_path, story)


async def still(first: Group) -> Coordinator:
    """The coordinator, with nobody taking a checkpoint every second."""
    assert first.coordinator is not None
    for task in first._tasks:
        task.cancel()
    await asyncio.gather(*first._tasks, return_exceptions=True)
    return first.coordinator


def test_a_skipped_checkpoint_is_tried_again_within_its_second(tmp_path: Path) -> None:
    """Once, and not any more when several were skipped in a row: writers are held each time. What was skipped is counted, and why is said."""

    async def story(site: ShardedSite) -> None:
        first, second = await site.start()
        coordinator = await still(first)
        await coordinator.tick()
        before, skipped = second.state.sequence, coordinator.skipped
        site.peer.failing["hold_writes"] = 1
        await coordinator.tick()
        assert second.state.sequence == first.state.sequence > before
        assert coordinator.skipped == skipped
        assert site.peer.bounds[-1] == 2 * site.peer.bounds[-2]
        for seconds in (1, 2, 3, 4):
            site.peer.calls.clear()
            site.peer.failing["hold_writes"] = 9
            await coordinator.tick()
            assert site.peer.calls.count("hold_writes") == (2 if seconds <= coordinator_module.SKIPS_TOLD else 1)
            assert coordinator.skipped == skipped + seconds
            assert coordinator.skipping == (seconds >= coordinator_module.SKIPS_TOLD)
        assert "does not answer" in coordinator.reason
        site.peer.failing.clear()
        await coordinator.tick()
        assert not coordinator.skipping
        assert coordinator.reason == ""

    run(tmp_path, story)
