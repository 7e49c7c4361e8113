"""A directory whose index could not be written before it was detached: what the journal has beyond it is replayed, not forgotten."""

# ruff: noqa: ASYNC240 - the file system is the fixture here, and local
from __future__ import annotations

from pathlib import Path

import pytest

from dpac_engine.control.group import Group
from dpac_engine.io.members.directory import DirectoryMember
from tests.unit import test_group as groups
from tests.unit.test_group import Site, protected, run, until

pytestmark = pytest.mark.usefixtures("_fast")
_fast = groups._fast


def _member(group: Group) -> DirectoryMember:
    (member,) = group.members.values()
    assert isinstance(member.directory, DirectoryMember)
    return member.directory


async def _captured_past_a_full_index(site: Site, tree: Path) -> Group:
    """A group whose journal has a file of which the index knows nothing, and takes nothing more."""
    tree.mkdir()
    (tree / "kept").write_text("kept")
    group = site.group(spec={"members": {"tree": {"kind": "directory", "path": str(tree)}}})
    await group.start()
    await protected(group)
    directory = _member(group)
    database = directory._index._database
    assert database is not None
    database.execute("PRAGMA query_only=ON")  # SQLite refuses every write from here on
    head_lsn = directory._index.journal_lsn
    (tree / "gone").write_text("gone")
    await until(lambda: directory._index.journal_lsn > head_lsn and b"gone" in directory._index.rows)
    await until(lambda: not directory.all_applied)
    return group


async def _latest_lacks(site: Site, group: Group, name: bytes) -> None:
    await until(lambda: name not in dict(_member(group).current_entries()))
    await groups.shipped(group, tag="end")
    assert {path for path, _ in site.image(at="tag:end")[1].tree(1).entries()} == {b".", b"kept"}


def test_what_was_deleted_while_the_backend_was_away_is_deleted_in_checkpoints(tmp_path: Path) -> None:
    """The next start learns of the file from the journal, and so that it is gone."""

    async def story(site: Site) -> None:
        tree = site.root / "tree"
        group = await _captured_past_a_full_index(site, tree)
        await group.stop()
        site.groups.clear()
        (tree / "gone").unlink()
        again = site.group()
        await again.start()
        await _latest_lacks(site, again, b"gone")

    run(tmp_path, story)


def test_the_same_where_it_is_attached_again_by_the_same_process(tmp_path: Path) -> None:
    """There its records are read from the spool again."""

    async def story(site: Site) -> None:
        tree = site.root / "tree"
        group = await _captured_past_a_full_index(site, tree)
        (member,) = group.members.values()
        await member.detach()
        (tree / "gone").unlink()
        await member.attach()
        await _latest_lacks(site, group, b"gone")

    run(tmp_path, story)
