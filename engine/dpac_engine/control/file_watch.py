"""Looks whether a volume's file is still what lies at its path, and whether anybody else changes it.

The volume writes to the file it opened, whatever becomes of the name: clients lose nothing. But what lies at the path
then is something else, and what others write to the file is in no journal.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from dpac_engine.io.members.volume import Volume
from dpac_engine.io.members.volume_file import Signature, signature_of

Whereabouts = Literal["", "missing", "replaced"]


class FileWatch:
    """The look-out for one attached volume."""

    def __init__(self, path: Path, volume: Volume) -> None:
        self._path = path
        self._volume = volume
        self._rested: tuple[int, Signature] | None = None
        self.whereabouts: Whereabouts = ""
        """What has become of the path since the volume was attached."""

    async def look(self) -> str:
        """Look again. Says what somebody else did to the file since the last look; empty for nothing that can be told.

        A change shows in size or modification time between two looks between which the volume itself wrote nothing: one that
        falls together with the volume's own writes cannot be told from them.
        """
        volume = self._volume
        writes, resting = volume.writes, volume.resting
        at_path, opened = await asyncio.to_thread(lambda: (signature_of(self._path), volume.signature()))
        self.whereabouts = _whereabouts(at_path, opened)
        if not resting or volume.writes != writes:
            self._rested = None
            return ""
        before, self._rested = self._rested, (writes, opened)
        if before is None or before[0] != writes or before[1] == opened:
            return ""
        if opened.size_bytes != before[1].size_bytes:
            return f"its size went from {before[1].size_bytes} to {opened.size_bytes} bytes"
        return "it was written to"


def _whereabouts(at_path: Signature | None, opened: Signature) -> Whereabouts:
    if at_path is None:
        return "missing"
    return "" if (at_path.device, at_path.inode) == (opened.device, opened.inode) else "replaced"
