"""A captured tree as a mount finds it at a target."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.directories.journal import Fold, FoldingJournal
from tests.directories.members import member_of, running


class StoredFold:
    """What a journal describes (a `StoredTree`)."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold

    def paths(self) -> list[bytes]:
        """See `StoredTree`."""
        return sorted(self._fold.entries)

    def read_entry(self, path: bytes) -> bytes:
        """See `StoredTree`."""
        return self._fold.entries[path]

    def read_chunk(self, digest: bytes) -> bytes:
        """See `StoredTree`."""
        return self._fold.chunks[digest]


def captured(root: Path, scratch: Path) -> StoredFold:
    """A folder, captured as it is."""
    journal = FoldingJournal()

    async def run() -> None:
        async with running(member_of(root, journal, scratch)) as member:
            await member.capture(full=True)

    asyncio.run(run())
    return StoredFold(journal.fold)
