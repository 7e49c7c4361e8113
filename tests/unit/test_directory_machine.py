"""Random mutations of a tree against capture and restore: what was captured is what comes back.

Fault model: between any two captures the worker may stop, or crash after any put, before or after the journal is
durable and before the index is written; the journal keeps a prefix that holds at least what was durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dpac_engine.io.members.directory import DirectoryMember
from tests.directories.journal import Cut, FoldingJournal
from tests.directories.members import member_of
from tests.directories.trees import picture

names = st.sampled_from([b"a", b"b", b"c", b"odd\n\xff name", b"." * 3, b"x" * 255])
folders = st.lists(names, max_size=2).map(b"/".join)
sizes = st.sampled_from([0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 700_000])


class Tree(RuleBasedStateMachine):
    """A tree that changes, a member that captures it, a journal that may lose power."""

    @initialize()
    def begin(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="dpac-tree-"))
        self.root = self.top / "tree"
        self.root.mkdir()
        self.loop = asyncio.new_event_loop()
        self.journal = FoldingJournal()
        self.member: DirectoryMember = self._member()
        self.counter = 0

    def teardown(self) -> None:
        if hasattr(self, "member"):
            self._do(self.member.stop())
            self.loop.close()
            shutil.rmtree(self.top)

    def _member(self) -> DirectoryMember:
        async def make() -> DirectoryMember:
            return member_of(self.root, self.journal, self.top / "member")

        return self.loop.run_until_complete(make())

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def _path(self, folder: bytes, name: bytes) -> bytes:
        """A path whose folder exists, whatever was in its way."""
        at = os.fsencode(self.root)
        for part in folder.split(b"/") if folder else ():
            at = os.path.join(at, part)
            if os.path.lexists(at) and (os.path.islink(at) or not os.path.isdir(at)):
                os.unlink(at)
            os.makedirs(at, exist_ok=True)
        return os.path.join(at, name)

    def _clear(self, path: bytes) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    @rule(folder=folders, name=names, size=sizes, letter=st.binary(min_size=1, max_size=3))
    def write(self, folder: bytes, name: bytes, size: int, letter: bytes) -> None:
        path = self._path(folder, name)
        if os.path.islink(path) or not os.path.isfile(path):
            self._clear(path)
        with open(path, "wb") as file:
            file.write((letter * size)[:size])

    @rule(folder=folders, name=names, offset=sizes)
    def overwrite(self, folder: bytes, name: bytes, offset: int) -> None:
        path = self._path(folder, name)
        if os.path.isfile(path) and not os.path.islink(path):
            self.counter += 1
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(b"%d" % self.counter)

    @rule(folder=folders, name=names, hole=st.sampled_from([300_000, 2_000_000]))
    def write_sparse(self, folder: bytes, name: bytes, hole: int) -> None:
        path = self._path(folder, name)
        self._clear(path)
        with open(path, "wb") as file:
            file.seek(hole)
            file.write(b"data")
            file.truncate(2 * hole)

    @rule(folder=folders, name=names)
    def remove(self, folder: bytes, name: bytes) -> None:
        self._clear(self._path(folder, name))

    @rule(folder=folders, name=names, to_folder=folders, to_name=names)
    def rename(self, folder: bytes, name: bytes, to_folder: bytes, to_name: bytes) -> None:
        source, target = self._path(folder, name), self._path(to_folder, to_name)
        one_holds_the_other = (target + b"/").startswith(source + b"/") or (source + b"/").startswith(target + b"/")
        if os.path.lexists(source) and not one_holds_the_other:
            self._clear(target)
            os.rename(source, target)

    @rule(folder=folders, name=names, to_folder=folders, to_name=names)
    def link(self, folder: bytes, name: bytes, to_folder: bytes, to_name: bytes) -> None:
        source, target = self._path(folder, name), self._path(to_folder, to_name)
        if os.path.lexists(source) and not os.path.isdir(source) and not os.path.lexists(target):
            os.link(source, target, follow_symlinks=False)

    @rule(folder=folders, name=names, points_to=st.sampled_from([b"a", b"../..", b"/etc", b"nowhere\xfe"]))
    def symlink(self, folder: bytes, name: bytes, points_to: bytes) -> None:
        path = self._path(folder, name)
        self._clear(path)
        os.symlink(points_to, path)

    @rule(folder=folders, name=names, mode=st.sampled_from([0o600, 0o4755, 0o000, 0o444]), key=st.sampled_from("ab"))
    def change_metadata(self, folder: bytes, name: bytes, mode: int, key: str) -> None:
        path = self._path(folder, name)
        if os.path.isfile(path) and not os.path.islink(path) and os.geteuid() == 0:
            os.setxattr(path, f"user.{key}", b"%o" % mode)
            os.chmod(path, mode)
            os.utime(path, ns=(0, 1_000_000_007))

    @rule(folder=folders, name=names)
    def fifo(self, folder: bytes, name: bytes) -> None:
        path = self._path(folder, name)
        if not os.path.lexists(path):
            os.mkfifo(path)

    @rule(hints=st.lists(st.tuples(folders, names), max_size=4))
    def capture_hinted(self, hints: list[tuple[bytes, bytes]]) -> None:
        """Hints may be wrong, late or incomplete: they never do harm."""
        self.member._hints |= {folder + b"/" + name if folder else name for folder, name in hints}
        self._do(self.member.capture())

    @rule()
    def capture_and_restore(self) -> None:
        self._do(self.member.capture(full=True))
        restored = self.top / "restored"
        self.journal.fold.restore(restored)
        assert picture(restored) == picture(self.root)
        shutil.rmtree(restored)
        listed = {digest for entry in self.journal.fold.decoded().values() for digest in entry.digests}
        assert listed == self.journal.fold.chunks.keys(), "chunks are kept that no entry lists"

    @rule()
    def restart(self) -> None:
        self._do(self.member.stop())
        self.member = self._member()

    @precondition(lambda self: self.journal.fails_before_put is None)
    @rule(puts=st.none() | st.integers(0, 2), durables=st.none() | st.integers(0, 2), lose=st.booleans())
    def crash_in_capture(self, puts: int | None, durables: int | None, lose: bool) -> None:
        self.journal.fails_before_put, self.journal.fails_before_durable = puts, durables
        with contextlib.suppress(Cut):
            self._do(self.member.capture(full=True))
        self.journal.fails_before_put = self.journal.fails_before_durable = None
        if lose:
            self._lose_what_was_not_durable()
        self._do(self.member.stop())
        self.member = self._member()

    def _lose_what_was_not_durable(self) -> None:
        kept = [run for run in self.journal.runs if run[0] <= self.journal.durable]
        lost = FoldingJournal()
        for _, changes in kept:
            lost.put(changes)
        lost.durable = lost.lsn
        assert lost.lsn == self.journal.durable
        self.journal = lost

    @invariant()
    def the_index_claims_no_more_than_is_durable(self) -> None:
        if hasattr(self, "member"):
            assert self.member.applied_lsn <= self.journal.durable


TestTree = Tree.TestCase
TestTree.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
