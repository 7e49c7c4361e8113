"""One capture: scan, read, journal, index, in this order, with the event loop never blocked.

A small capture is one run of the journal. A larger one puts its chunks ahead, which says nothing to a reader who has
no entry that lists them, and all its entries in the last run: no mark divides what a capture saw.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from dpac_engine.core.entries import EntryType
from dpac_engine.core.ports import Clock, JournalWriter
from dpac_engine.core.records import KeyChange, Keyspace
from dpac_engine.io.blueprints.blueprint import Blueprint
from dpac_engine.io.members.beneath import Beneath
from dpac_engine.io.members.chunks import PIECE_BYTES, Chunk
from dpac_engine.io.members.reading import Reader
from dpac_engine.io.members.scan import Difference, Scan
from dpac_engine.io.members.tree_index import Plan, Root, Row, TreeIndex

RUN_BYTES_MAX = 8 * 2**20
"""Content beyond this is put ahead of a capture's last run."""
_AHEAD_BYTES_MAX = 64 * 2**20
"""Content put ahead waits until what was put before it is durable, so that the spool's page cache stays small."""

_Result = TypeVar("_Result")


class RootGone(Exception):
    """The member's folder is not there, or is not the one that was captured: nothing may be concluded from it."""


@dataclass
class Findings:
    """What a capture could not take as it is, by path."""

    unstable: dict[bytes, str] = field(default_factory=dict)
    unreadable: dict[bytes, str] = field(default_factory=dict)
    plain: dict[bytes, str] = field(default_factory=dict)

    def forget(self, paths: Iterable[bytes]) -> None:
        """These paths were looked at again."""
        for path in paths:
            self.unstable.pop(path, None)
            self.unreadable.pop(path, None)
            self.plain.pop(path, None)


@dataclass
class Seeding:
    """A capture that also hands out the chunks of the paths it reads, for a new target."""

    has: set[bytes]
    """Chunks the new target has, or gets by the journal."""
    give: Callable[[list[Chunk]], Awaitable[None]]


@dataclass
class _Work:
    """A capture under way; used by one thread at a time."""

    tree: Beneath
    root: Root
    difference: Difference
    reader: Reader
    reading: Generator[list[Chunk], None, None]
    full: bool

    def close(self) -> None:
        """Close every file."""
        self.reading.close()
        self.tree.close()


class Capture:
    """Captures a tree. One capture at a time: the caller serialises."""

    def __init__(
        self,
        path: Path,
        journal: JournalWriter,
        clock: Clock,
        index: TreeIndex,
        blueprint: Blueprint | None,
        scratch: Path,
        executor: Executor,
    ) -> None:
        self.index = index
        self.findings = Findings()
        self.stale: dict[bytes, int | None] = {}
        """Paths whose newest state is not in the journal -> until when what is in it was the newest."""
        self.seedings: list[set[bytes]] = []
        """Chunk sets of seedings under way: what is put into the journal reaches their targets by itself."""
        self.stopping = threading.Event()
        """Set, it makes the capture under way end early, as Abandoned; what it put ahead is found again later."""
        self._path = path
        self._journal = journal
        self._clock = clock
        self._blueprint = blueprint
        self._scratch = scratch
        self._executor = executor

    async def run(self, hints: Iterable[bytes] | None, seeding: Seeding | None = None, *, force: bool = False) -> None:
        """Capture everything (`hints` None) or the hinted paths; `force` reads these even if they seem unchanged.

        When this returns, the journal is durable and the index written. RootGone if the folder is not there.
        """
        started_ns = self._clock.now_ns()
        work = await self.in_thread(lambda: self._begin(hints, started_ns, seeding, force))
        try:
            held = await self._read(work, seeding)
            plan = await self.in_thread(lambda: self._plan(work))
        finally:
            await self.in_thread(work.close)
        # What an unstable file was made of a moment ago is listed by nothing: no need to put it.
        listed = [KeyChange(Keyspace.CHUNK, *chunk) for chunk in held if plan.references[chunk[0]] > 0]
        changes = listed + plan.changes
        await self._journal.admitted()
        lsn = self._put(changes) if changes else None
        if lsn is not None or work.full:
            await self.in_thread(lambda: self._apply(plan, work, started_ns))
            await self._settle()
        else:
            await self.in_thread(lambda: self.index.apply(plan))

    async def forget(self, lsn: int) -> None:
        """The journal, up to `lsn`, holds nothing of the member any more."""
        await self._journal.wait_durable(lsn)
        self.index.clear()
        self.stale = {}
        await self.in_thread(lambda: self.index.commit(lsn))

    async def difference(self) -> Difference:
        """What a full scan finds changed right now; captures nothing."""

        def scan() -> Difference:
            with Beneath(self._path) as tree:
                return Scan(tree, self.index.rows, self._blueprint).everything()

        return await self.in_thread(scan)

    async def in_thread(self, work: Callable[[], _Result]) -> _Result:
        """Run in the member's own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    # ---------------------------------------------------------------- steps

    def _begin(self, hints: Iterable[bytes] | None, started_ns: int, seeding: Seeding | None, force: bool) -> _Work:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(mode=0o700, parents=True)
        tree, root = open_root(self._path, self.index)
        try:
            scan = Scan(tree, self.index.rows, self._blueprint)
            difference = scan.everything() if hints is None else scan.paths(hints)
            if force and hints is not None:
                difference.changed.update(dict.fromkeys(path for path in hints if path not in difference.vanished))
            self._add_other_names(difference)
            tree.forget()
            known = self.index if seeding is None else seeding.has
            reader = Reader(
                tree,
                self._path,
                self.index.rows,
                known,
                self._blueprint,
                self._scratch / "copy",
                started_ns,
                self.stopping,
            )
            return _Work(tree, root, difference, reader, reader.read(difference.changed), hints is None)
        except BaseException:
            tree.close()
            raise

    def _add_other_names(self, difference: Difference) -> None:
        """A change by one name of a file with hard links is a change of all its names."""
        for path in [*difference.changed, *difference.vanished]:
            row = self.index.rows.get(path)
            if row is not None and row.entry.inode is not None:
                names = self.index.names.get(row.entry.inode, set()) - difference.vanished
                difference.changed.update(dict.fromkeys(names))

    async def _read(self, work: _Work, seeding: Seeding | None) -> list[Chunk]:
        """Read every changed path; returns the new chunks that were not put ahead."""
        held: list[Chunk] = []
        held_bytes = ahead_bytes = 0
        while (piece := await self.in_thread(lambda: next(work.reading, None))) is not None:
            if seeding is not None:
                await seeding.give([chunk for chunk in piece if chunk[0] in self.index])
                piece = [chunk for chunk in piece if chunk[0] not in self.index]
            held += piece
            held_bytes += sum(len(content) for _, content in piece)
            if held_bytes > RUN_BYTES_MAX or (ahead_bytes and held_bytes >= PIECE_BYTES):
                lsn = self._put([KeyChange(Keyspace.CHUNK, digest, content) for digest, content in held])
                self.index.chunks_put([digest for digest, _ in held])
                ahead_bytes += held_bytes
                held, held_bytes = [], 0
                if ahead_bytes > _AHEAD_BYTES_MAX:
                    await self._journal.wait_durable(lsn)
                    ahead_bytes = 1
        return held

    def _plan(self, work: _Work) -> Plan:
        """The last run. RootGone if the folder went while it was read: then nothing is concluded."""
        try:
            now = os.stat(self._path)
        except OSError as error:
            raise RootGone(f"{self._path} went away while it was captured") from error
        if (now.st_dev, now.st_ino) != (work.root.device, work.root.inode):
            raise RootGone(f"{self._path} was replaced while it was captured")
        outcome = work.reader.outcome
        rows: dict[bytes, Row | None] = dict(outcome.rows)
        gone = {path for path, row in rows.items() if row is None and self._is_folder(path)}
        if gone:
            rows.update((path, None) for path in self.index.rows if _below_any(path, gone))
        rows.update((path, None) for path in work.difference.vanished)
        self._note(work, rows)
        for path in {**outcome.unstable, **outcome.unreadable}:
            before = self.index.rows.get(path)
            if before is not None and (as_of := self.stale.get(path)) is not None:
                stale = msgspec.structs.replace(before.entry, as_of=as_of)
                rows[path] = Row(None, stale, before.covered, before.captured_ns)
        return self.index.plan(rows)

    def _is_folder(self, path: bytes) -> bool:
        row = self.index.rows.get(path)
        return row is not None and row.entry.type is EntryType.DIRECTORY

    def _note(self, work: _Work, rows: dict[bytes, Row | None]) -> None:
        """Keep the account of what could not be captured."""
        outcome = work.reader.outcome
        failed = {**outcome.unstable, **outcome.unreadable, **work.difference.findings}
        if work.full:
            # A plain file that did not change was not read again; it is still one.
            kept = {path: why for path, why in self.findings.plain.items() if path in self.index.rows}
            self.findings = Findings(plain=kept)
            self.stale = {path: as_of for path, as_of in self.stale.items() if path in failed}
        for path in [*rows, *failed]:
            self.findings.forget([path])
            if path not in failed:
                self.stale.pop(path, None)
        for path in failed:
            if path in self.index.rows:
                row = self.index.rows[path]
                self.stale.setdefault(path, row.entry.as_of or max(row.captured_ns, self.index.scanned_ns or 0))
            elif path in outcome.unstable:
                self.stale.setdefault(path, self.index.scanned_ns)
        self.findings.unstable.update(outcome.unstable)
        self.findings.unreadable.update({**outcome.unreadable, **work.difference.findings})
        self.findings.plain.update(outcome.plain)

    def _put(self, changes: list[KeyChange]) -> int:
        lsn = self._journal.put(changes)
        self.index.journal_lsn = lsn
        put = [change.key for change in changes if change.keyspace == Keyspace.CHUNK and change.value is not None]
        gone = [change.key for change in changes if change.keyspace == Keyspace.CHUNK and change.value is None]
        for has in self.seedings:
            has.update(put)
            has.difference_update(gone)
        return lsn

    def _apply(self, plan: Plan, work: _Work, started_ns: int) -> None:
        self.index.apply(plan)
        self.index.root = work.root
        if work.full:
            self.index.scanned_ns = started_ns

    async def _settle(self) -> None:
        """Write the index once the journal has what it claims."""
        lsn = self.index.journal_lsn
        if lsn > self.index.applied_lsn:
            await self._journal.wait_durable(lsn)
        await self.in_thread(lambda: self.index.commit(lsn))


def open_root(path: Path, index: TreeIndex) -> tuple[Beneath, Root]:
    """The member's folder, if it is there and is what was captured before; else RootGone.

    Another folder than before is taken for a mount that is missing if it is empty, or if a file system was mounted
    there before and none is now. Otherwise it was replaced on purpose.
    """
    try:
        tree = Beneath(path)
    except OSError as error:
        raise RootGone(f"{path} cannot be opened ({error.strerror})") from error
    try:
        found = os.fstat(tree.root_fd)
        mounted = os.stat("..", dir_fd=tree.root_fd).st_dev != found.st_dev
        root = Root(found.st_dev, found.st_ino, mounted)
        _check_root(path, tree, root, index)
    except BaseException:
        tree.close()
        raise
    return tree, root


def _check_root(path: Path, tree: Beneath, root: Root, index: TreeIndex) -> None:
    before = index.root
    if before is None or len(index.rows) < 2 or (before.device, before.inode) == (root.device, root.inode):
        return
    if before.mounted and not root.mounted:
        raise RootGone(f"{path} was a mounted file system and is not any more; mount it again")
    if not os.listdir(tree.root_fd):
        raise RootGone(f"{path} is another folder than before, and empty; if that is meant, create a file in it")


def _below_any(path: bytes, folders: set[bytes]) -> bool:
    at = path.rfind(b"/")
    while at > 0:
        if path[:at] in folders:
            return True
        at = path.rfind(b"/", 0, at)
    return False
