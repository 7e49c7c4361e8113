"""Bringing a live volume back to a checkpoint: what differs is written as a client would write it.

Every change goes through the journal, so that targets follow, checkpoints go on, and what is interrupted leaves the
volume's former content with the beginning of the changes. Whoever calls this keeps clients away.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterator, Sequence

from dpac_api.errors import Invalid
from dpac_engine.core.difference import RangeChange, differing_runs
from dpac_engine.core.extents import ZEROES
from dpac_engine.core.image import VolumeImage
from dpac_engine.io.members.tally import Tally
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.nbd.export import Change, ChangeKind

PIECE_BYTES = 4 * 2**20
PIECES_AHEAD = 4
"""Read and compared at the same time."""
BLOCK_BYTES = 4096
"""Compared and written as a whole."""


async def rewind_volume(volume: Volume, image: VolumeImage, changed: Sequence[RangeChange], tally: Tally) -> None:
    """Make the volume what `image` is; only `changed` may differ. Where the image ends earlier, zeroes follow.

    Durable here when it returns. Invalid, with nothing changed, if the disk lacks the room; OSError if the volume fails or
    is detached; Corruption where the image is damaged.
    """
    tally.total_bytes = sum(length for _, length in changed)
    await asyncio.to_thread(_require_room, volume, image, changed)
    comparing: deque[asyncio.Task[tuple[int, list[Change]]]] = deque()
    try:
        for offset, length in _pieces(changed):
            comparing.append(asyncio.create_task(asyncio.to_thread(_differing, volume, image, offset, length)))
            if len(comparing) > PIECES_AHEAD:
                await _write(volume, await comparing.popleft(), tally)
        while comparing:
            await _write(volume, await comparing.popleft(), tally)
    finally:
        for task in comparing:
            task.cancel()
    await _flushed(volume)


def _pieces(changed: Sequence[RangeChange]) -> Iterator[tuple[int, int]]:
    for offset, length in changed:
        for at in range(offset, offset + length, PIECE_BYTES):
            yield at, min(PIECE_BYTES, offset + length - at)


def _require_room(volume: Volume, image: VolumeImage, changed: Sequence[RangeChange]) -> None:
    disk = os.statvfs(volume.path)
    free = disk.f_bavail * disk.f_frsize
    stored = sum(
        piece.length
        for offset, length in changed
        for piece in image.map.lookup(offset, length)
        if piece.source != ZEROES
    )
    if stored <= free:
        return
    # A hole in the file takes room only where it is filled; looked at only now, as it asks the file system.
    there = sum(
        extent.length
        for offset, length in changed
        for extent in volume.extents_blocking(offset, length)
        if not extent.hole
    )
    if stored - there > free:
        raise Invalid(
            f"Going back may need {stored - there} bytes more for {volume.path}, and its disk has {free} free. Make room. Nothing was "
            "changed."
        )


def _differing(volume: Volume, image: VolumeImage, offset: int, length: int) -> tuple[int, list[Change]]:
    """(bytes compared, the changes that make the range as it was). Blocks."""
    stored = any(piece.source != ZEROES for piece in image.map.lookup(offset, length))
    if not stored and all(extent.hole for extent in volume.extents_blocking(offset, length)):
        return length, []
    then, now = image.read(offset, length), volume.read_blocking(offset, length)
    return length, [
        Change(ChangeKind.TRIM, offset + run.begin, run.end - run.begin, None)
        if run.zeroes
        else Change(ChangeKind.WRITE, offset + run.begin, run.end - run.begin, memoryview(then)[run.begin : run.end])
        for run in differing_runs(now, then, BLOCK_BYTES)
    ]


async def _write(volume: Volume, found: tuple[int, list[Change]], tally: Tally) -> None:
    length, changes = found
    if changes:
        await volume.has_room()
        volume.submit(changes)
    tally.done_bytes += length
    tally.bytes_written += sum(change.length for change in changes if change.kind == ChangeKind.WRITE)
    tally.bytes_zeroed += sum(change.length for change in changes if change.kind != ChangeKind.WRITE)


async def _flushed(volume: Volume) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(error: OSError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    volume.flush(settle)
    await done
