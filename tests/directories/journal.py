"""A journal in memory that folds what a directory member puts, and checks every run as a reader would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from dpac_engine.core.entries import Entry, decode_entry
from dpac_engine.core.records import KeyChange, Keyspace
from dpac_engine.io.members.tree_restore import restore_tree


class Cut(Exception):
    """The power went: raised by a journal that was told to fail."""


class Fold:
    """The state that a prefix of the journal describes."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.chunks: dict[bytes, bytes] = {}

    def take(self, change: KeyChange) -> None:
        """Apply one change."""
        keys = self.entries if change.keyspace == Keyspace.ENTRY else self.chunks
        if change.value is None:
            del keys[change.key]
        else:
            keys[change.key] = bytes(change.value)

    def decoded(self) -> dict[bytes, Entry]:
        """Path -> entry."""
        return {path: decode_entry(value, self.chunks.__getitem__) for path, value in self.entries.items()}

    def check(self) -> None:
        """Every listed chunk is there, and no chunk is kept that nothing lists."""
        listed = {digest for entry in self.decoded().values() for digest in entry.digests}
        assert listed <= self.chunks.keys(), "an entry lists a chunk that the journal does not hold"

    def restore(self, to: Path) -> int:
        """Restore what it describes."""
        return restore_tree(self.entries.items(), self.chunks.__getitem__, to, lambda _count: None)


class FoldingJournal:
    """Implements JournalWriter. `runs` keeps every run with its LSN, `durable` the LSN that survives a crash."""

    def __init__(self) -> None:
        self.fold = Fold()
        self.runs: list[tuple[int, list[KeyChange]]] = []
        self.lsn = 0
        self.durable = 0
        self.fails_before_put: int | None = None
        """Raise Cut instead of taking this many-th put from now."""
        self.fails_before_durable: int | None = None

    def put(self, entries: Sequence[KeyChange]) -> int:
        if self.fails_before_put is not None:
            self.fails_before_put -= 1
            if self.fails_before_put < 0:
                raise Cut
        changes = [KeyChange(c.keyspace, c.key, None if c.value is None else bytes(c.value)) for c in entries]
        for change in changes:
            self.fold.take(change)
        self.fold.check()
        self.lsn += sum(64 + len(c.key) + len(c.value or b"") for c in changes)
        self.runs.append((self.lsn, changes))
        return self.lsn

    async def admitted(self) -> None:
        return

    async def wait_durable(self, lsn: int) -> None:
        if self.fails_before_durable is not None:
            self.fails_before_durable -= 1
            if self.fails_before_durable < 0:
                raise Cut
        await asyncio.sleep(0)
        self.durable = max(self.durable, lsn)

    def after(self, lsn: int) -> list[tuple[int, KeyChange]]:
        """What a restart replays: every change of the runs after `lsn`."""
        return [(end, change) for end, changes in self.runs if end > lsn for change in changes]

    def bytes_put(self) -> int:
        """Content that was put, dropped since or not."""
        return sum(len(c.value or b"") for _, changes in self.runs for c in changes if c.keyspace == Keyspace.CHUNK)
