"""A volume compared with what a target holds of it, so that its seed sends only what differs.

Where reading at the target is cheap, its bytes are read (`HeldContent`). Where each byte read is paid for or comes from far
away, indexes are: they have hashes of what is stored (`HeldHashes`).

Both tell by the state up to the target's cursor. A part that was found equal is, at any later LSN, what that state and the log
behind it make of it, whatever is written there in the meantime; so both may read the volume while it is written to.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain

from dpac_api.errors import Corruption, NotFound
from dpac_engine.control.seeding import READ_BYTES, VolumeSource
from dpac_engine.core.difference import differing_runs
from dpac_engine.core.extents import ZEROES, Piece
from dpac_engine.core.image import StoredRun, VolumeImage
from dpac_engine.core.lacking_units import LackingUnits
from dpac_engine.core.ranges import Range, joined, widened, without
from dpac_engine.core.stream_hashes import StreamHashes
from dpac_engine.io.daemon_thread import DaemonThread

log = logging.getLogger(__name__)

COMPARED_BYTES = 4096
"""What differs from bytes that are known is told in blocks of this size."""
STEP_BYTES = 64 * 2**20
"""So much is compared by hashes at once; the leg's log is shipped in between."""


class HeldContent:
    """A `HeldVolume` that reads what the target holds, in the leg's thread."""

    def __init__(self, image: VolumeImage, thread: DaemonThread) -> None:
        self._image = image
        self._thread = thread
        self.compared_bytes = self.equal_bytes = 0

    async def explore(self, volume: VolumeSource) -> bool:  # noqa: ARG002 - it reads while it is sent
        """See `HeldVolume`: there is nothing to learn beforehand."""
        return True

    async def wanted(self, begin: int, end: int, allocated: Sequence[Range]) -> list[Range]:
        """See `HeldVolume`: what either of the two has."""
        # Whole blocks: else what changed in one block counts for two.
        return widened([*allocated, *_stored(self._image, begin, end)], COMPARED_BYTES, begin, end)

    async def differing(self, offset: int, data: bytes) -> list[Range]:
        """See `HeldVolume`; all of it if the target's bytes are damaged."""
        try:
            then = await self._thread.run(self._image.read, offset, len(data))
        except (NotFound, Corruption) as error:
            log.warning("the target's bytes at %d are sent anew: %s", offset, error.message)
            return [(offset, len(data))]
        found = [(offset + run.begin, run.end - run.begin) for run in differing_runs(then, data, COMPARED_BYTES)]
        self.compared_bytes += len(data)
        self.equal_bytes += len(data) - sum(length for _, length in found)
        return found


class HeldHashes:
    """A `HeldVolume` that knows the hashes of what the target holds, 64 KiB of a segment's block stream each.

    They are compared segment by segment, each index read once, before anything is sent. What has no hash, or shares a unit with
    data that was overwritten since, counts as different.
    """

    def __init__(self, image: VolumeImage, thread: DaemonThread) -> None:
        self._image = image
        self._thread = thread
        self._runs = image.runs()
        self._lacking = LackingUnits(image.map)
        self._segment = ""
        self._hashes = StreamHashes(b"", 0)
        self.compared_bytes = self.equal_bytes = 0

    async def explore(self, volume: VolumeSource) -> bool:
        """See `HeldVolume`."""
        left = STEP_BYTES
        while left > 0:
            run: StoredRun | None = await self._thread.run(next, self._runs, None)
            if run is None:
                return True
            left -= run.length
            await self._compare(volume, run)
        return False

    async def _compare(self, volume: VolumeSource, run: StoredRun) -> None:
        if run.segment != self._segment:
            self._segment, self._hashes = run.segment, await self._thread.run(_hashes_of, run)
        content = _Content()
        if self._hashes.digests:
            await content.read_from(volume, run.places)
        lacking = await self._thread.run(self._hashes.lacking, run.places, content.read)
        self._lacking.mark(lacking)
        self.compared_bytes += run.length
        self.equal_bytes += run.length - sum(piece.length for piece in lacking)

    async def wanted(self, begin: int, end: int, allocated: Sequence[Range]) -> list[Range]:
        """See `HeldVolume`: what has other hashes, and what is allocated where the target has zeroes."""
        return await self._thread.run(self._wanted, begin, end, allocated)

    def _wanted(self, begin: int, end: int, allocated: Sequence[Range]) -> list[Range]:
        beside = without(allocated, _stored(self._image, begin, end))
        # Whole blocks: a unit begins anywhere, but a volume is read by sectors.
        return widened(chain(self._lacking.ranges(begin, end), beside), COMPARED_BYTES, begin, end)

    async def differing(self, offset: int, data: bytes) -> list[Range]:
        """See `HeldVolume`: of what was wanted, all that the target has bytes for, and where it has zeroes, what is not zero."""
        stored = _stored(self._image, offset, offset + len(data))
        found = list(stored)
        for begin, length in without([(offset, len(data))], stored):
            now = data[begin - offset : begin - offset + length]
            found += [
                (begin + run.begin, run.end - run.begin) for run in differing_runs(bytes(length), now, COMPARED_BYTES)
            ]
        return joined(found)


class _Content:
    """Parts of a volume, read as a seed reads."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._parts: list[memoryview] = []

    async def read_from(self, volume: VolumeSource, places: Sequence[Piece]) -> None:
        """Read the places, neighbours at once. OSError of the volume."""
        ranges = ((place.offset, place.length) for place in places)
        for offset, length in widened(ranges, COMPARED_BYTES, 0, volume.size_bytes):
            end = offset + length
            starts = range(offset, end, READ_BYTES)
            parts = [(await volume.read_for_seed(at, min(READ_BYTES, end - at)))[1] for at in starts]
            self._begins.append(offset)
            self._parts.append(memoryview(b"".join(parts)))

    def read(self, offset: int, length: int) -> memoryview:
        """Of the places that were read (a `ReadDevice`)."""
        at = bisect_right(self._begins, offset) - 1
        begin = offset - self._begins[at]
        return self._parts[at][begin : begin + length]


def _stored(image: VolumeImage, begin: int, end: int) -> list[Range]:
    pieces = image.map.lookup(begin, end - begin)
    return [(piece.offset, piece.length) for piece in pieces if piece.source != ZEROES]


def _hashes_of(run: StoredRun) -> StreamHashes:
    """Those of its segment; none if they cannot be read. Blocks; Temporary if the target is away."""
    try:
        return run.hashes()
    except (NotFound, Corruption) as error:
        log.warning("what lies in segment %s is sent anew: %s", run.segment, error.message)
        return StreamHashes(b"", 0)
