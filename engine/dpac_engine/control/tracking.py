"""Bitmap tracking: what a leg that fell out of the spool will have to be told, without the spool waiting for it.

While a leg is lost, each of its volumes has a dirty bitmap here. It begins with what the spool still holds behind the leg's
cursor, and every change is noted in it. A bitmap is durable before the records that told the same may be recycled, so
that after a crash bitmap and spool together know every change.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpac_api.errors import Corruption
from dpac_engine.core.bitmap import DirtyBitmap, decode_bitmap
from dpac_engine.core.records import Header, Kind
from dpac_engine.io.files import make_folder, replace_file
from dpac_engine.io.nbd.export import Change
from dpac_engine.io.spool import Spool

log = logging.getLogger(__name__)

_DEVICE = (Kind.WRITE, Kind.ZERO, Kind.TRIM)


class Tracking:
    """The dirty bitmaps of one group, by leg and member. Everything but file work runs on the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bitmaps: dict[str, dict[int, DirtyBitmap]] = {}
        self._noting: set[str] = set()
        self._stale: set[tuple[str, int]] = set()
        self._storing = asyncio.Lock()

    def note(self, ordinal: int, changes: Sequence[Change]) -> None:
        """A volume changed; called for every batch."""
        for leg in self._noting:
            bitmap = self._bitmaps[leg].get(ordinal)
            if bitmap is not None:
                self._stale.add((leg, ordinal))
                for _, offset, length, _ in changes:
                    bitmap.mark(offset, length)

    async def begin(self, leg: str, spool: Spool, from_lsn: int, sizes: Mapping[int, int]) -> bool:
        """Track for a leg what changed since its cursor; durable when this returns. `sizes`: ordinal -> bytes.

        False if it cannot be told any more: then the leg is seeded anew in full.
        """
        known = self._bitmaps.setdefault(leg, {})
        for ordinal, size_bytes in sizes.items():
            known.setdefault(ordinal, DirtyBitmap(size_bytes)).grow(size_bytes)
        self._noting.add(leg)  # before the spool is looked at, so that nothing falls between
        try:
            found = await asyncio.to_thread(_changes_in, spool, from_lsn, spool.head_lsn, sizes)
            for ordinal, bitmap in found.items():
                known[ordinal].merge(bitmap)
            self._stale |= {(leg, ordinal) for ordinal in known}
            await self.store()
        except (KeyError, Corruption, OSError) as error:
            log.error("leg %s cannot be tracked by bitmaps: %s", leg, error)
            await self.end(leg)
            return False
        return True

    async def store(self) -> None:
        """Make every bit so far durable. Raises OSError."""
        async with self._storing:
            stale, self._stale = self._stale, set()
            wanted = {
                (leg, ordinal): bitmap for leg, ordinal in stale if (bitmap := self._bitmaps.get(leg, {}).get(ordinal))
            }
            try:
                await asyncio.to_thread(self._store, wanted)
            except OSError:
                self._stale |= stale
                raise

    def _store(self, bitmaps: Mapping[tuple[str, int], DirtyBitmap]) -> None:
        for (leg, ordinal), bitmap in bitmaps.items():
            path = self._path(leg, ordinal)
            make_folder(self._folder)
            make_folder(path.parent)
            replace_file(path, bitmap.encode())

    def _path(self, leg: str, ordinal: int) -> Path:
        return self._folder / leg / f"{ordinal}.bitmap"

    def load(self, leg: str, noting: bool, found: Iterable[tuple[Header, memoryview]]) -> None:
        """Take back the bitmaps of an earlier run; blocks. `found`: the records that they may lack.

        A bitmap that is missing or damaged is left out: its volume is seeded in full.
        """
        bitmaps: dict[int, DirtyBitmap] = {}
        for path in (self._folder / leg).glob("*.bitmap"):
            try:
                bitmaps[int(path.stem)] = decode_bitmap(path.read_bytes())
            except Corruption as error:
                log.error("%s: %s", path, error.message)
        self._bitmaps[leg] = bitmaps
        if not noting:
            return
        self._noting.add(leg)
        for header, _ in found:
            bitmap = bitmaps.get(header.member)
            if bitmap is None:
                continue
            if header.kind == Kind.RESIZE:
                bitmap.grow(header.length)
            elif header.kind in _DEVICE:
                bitmap.mark(header.offset, header.length)
        self._stale |= {(leg, ordinal) for ordinal in bitmaps}

    def pause(self, leg: str) -> None:
        """The leg's log tells from now on what changes; the bits stay until their blocks are at the target."""
        self._noting.discard(leg)

    def dirty(self, leg: str, ordinal: int) -> DirtyBitmap | None:
        """What the target lacks of a volume; None if that is not known."""
        return self._bitmaps.get(leg, {}).get(ordinal)

    def dirty_bytes(self, leg: str) -> int:
        """What a resync of the leg reads at most, of volumes."""
        return sum(bitmap.dirty_bytes for bitmap in self._bitmaps.get(leg, {}).values())

    async def done(self, leg: str, ordinal: int) -> None:
        """The target has all of a volume again."""
        if self._bitmaps.get(leg, {}).pop(ordinal, None) is not None:
            await asyncio.to_thread(self._path(leg, ordinal).unlink, True)

    async def end(self, leg: str) -> None:
        """Nothing is tracked for the leg any more."""
        self._noting.discard(leg)
        self._bitmaps.pop(leg, None)
        await asyncio.to_thread(self.drop, leg)

    def drop(self, leg: str) -> None:
        """Remove what an earlier run noted for a leg that is gone. Blocks."""
        shutil.rmtree(self._folder / leg, ignore_errors=True)


def _changes_in(spool: Spool, from_lsn: int, to_lsn: int, sizes: Mapping[int, int]) -> dict[int, DirtyBitmap]:
    bitmaps = {ordinal: DirtyBitmap(size_bytes) for ordinal, size_bytes in sizes.items()}
    for batch in spool.read(from_lsn, to_lsn):
        headers = batch.headers
        device = np.isin(headers["kind"], _DEVICE)
        for ordinal, bitmap in bitmaps.items():
            mine = headers[device & (headers["member"] == ordinal)]
            if len(mine):
                bitmap.mark_many(mine["offset"].astype(np.int64), mine["length"].astype(np.int64))
    return bitmaps
