"""Hydration: a mounted volume's image is copied into its overlay behind its clients, so that it needs no target any more."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import numpy as np

from dpac_engine.core.extents import Int64Array
from dpac_engine.io.daemon_thread import DaemonThread
from dpac_engine.io.files import replace_file
from dpac_engine.io.mounted_volume import BLOCK_BYTES, HYDRATED, MountedVolume

log = logging.getLogger(__name__)

PIECE_BYTES = 2**20
SETTLE_SECONDS = 0.01
SYNC_BYTES = 64 * 2**20
"""Made durable at least so often, so that a host that starts anew need not copy it again."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
REST_FACTOR = 3.0
"""How long it rests after a piece while clients read, in times of what the piece took."""
FREE_FRACTION = 0.05
"""Of its disk is left free: the spool may lie there."""


@dataclass
class Hydration:
    """One volume's. Belongs to the event loop; `run` it as a task, and cancel that to stop."""

    name: str
    volume: MountedVolume
    turn: AbstractAsyncContextManager[object]
    """Held while the target is read: pieces of all mounts of one target come one after the other."""
    problem: str = ""
    """Why it does not go on; it tries again."""
    whole: bool = False
    _done_bytes: int = 0
    _total_bytes: int = 0
    _thread: DaemonThread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = DaemonThread(f"hydrate-{self.name}")
        self._total_bytes = self.volume.stored.data_bytes

    @property
    def fraction(self) -> float:
        """How much of what the image holds is in the overlay, 0 to 1."""
        return 1.0 if self.whole else min(self._done_bytes / max(self._total_bytes, 1), 1.0)

    async def run(self) -> None:
        """Copy all there is, in passes: what could not be read is tried again in the next."""
        try:
            failures = 0
            while not await self._pass(failures):
                failures += 1
            await self._thread.run(self._finish)
            self.whole, self.problem = True, ""
            self.volume.need_image_no_more()
        finally:
            self._thread.stop()

    async def settled(self) -> None:
        """Returns once a copy that was under way when `run` was cancelled has ended: until then it writes."""
        while self._thread.busy:  # noqa: ASYNC110 - a thread of its own, not an event
            await asyncio.sleep(SETTLE_SECONDS)

    async def _pass(self, failures: int) -> bool:
        """From the first extent to the last; False if something is left."""
        held = self.volume.stored
        data = held.sources >= 0
        starts, ends = held.starts[data], held.ends[data]
        before = np.concatenate(([0], np.cumsum(ends - starts)))
        at, unsynced, failed = 0, 0, 0
        while (place := _next(starts, ends, at)) is not None:
            at, stop = place // BLOCK_BYTES * BLOCK_BYTES, place // PIECE_BYTES * PIECE_BYTES + PIECE_BYTES
            stop = min(stop, self.volume.size_bytes)
            try:
                unsynced += await self._piece(at, stop)
                if unsynced >= SYNC_BYTES:
                    await self._thread.run(self.volume.sync)
                    unsynced = 0
                self.problem = "" if not failed else self.problem
            except OSError as error:
                self._failed(error)
                await asyncio.sleep(RETRY_SECONDS[min(failures + failed, len(RETRY_SECONDS) - 1)])
                failed += 1
            at = stop
            copied = int(before[np.searchsorted(starts, at, side="left")])
            self._done_bytes = max(self._done_bytes, copied if not failed else 0)
        return not failed

    async def _piece(self, begin: int, end: int) -> int:
        """Copy what a range lacks; bytes. Raises OSError."""
        lacking = self.volume.lacking(begin, end - begin)
        if not lacking:
            await asyncio.sleep(0)
            return 0
        first, stop = lacking[0][0], lacking[-1][0] + lacking[-1][1]
        loop, reads = asyncio.get_running_loop(), self.volume.reads_blocking
        async with self.turn:
            started = loop.time()
            data = await self._thread.run(self._read, first, stop - first)
        self.volume.adopt(first, data)
        busy = self.volume.reads_blocking != reads
        await asyncio.sleep(REST_FACTOR * (loop.time() - started) if busy else 0)
        return sum(length for _, length in lacking)

    def _read(self, offset: int, length: int) -> bytes:
        disk = os.statvfs(self.volume.folder)
        if disk.f_bavail * disk.f_frsize - length < FREE_FRACTION * disk.f_blocks * disk.f_frsize:
            raise OSError(
                28, f"{self.volume.folder} has less than {FREE_FRACTION:.0%} of its disk free: make room, or unmount"
            )
        return self.volume.read_image(offset, length)

    def _finish(self) -> None:
        self.volume.sync()
        replace_file(self.volume.folder / HYDRATED, str(self.volume.size_bytes).encode())

    def _failed(self, error: OSError) -> None:
        message = error.strerror or str(error)
        if not self.problem:
            log.warning("%s is not copied on: %s; it is tried again", self.name, message)
        self.problem = message


def _next(starts: Int64Array, ends: Int64Array, at: int) -> int | None:
    """The first stored byte from `at` on."""
    index = int(np.searchsorted(ends, at, side="right"))
    return None if index == len(starts) else max(int(starts[index]), at)
