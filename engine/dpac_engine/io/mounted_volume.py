"""A volume at a checkpoint, opened for use: an image that is read, under an overlay that takes the writes.

The overlay is the sparse file `data`, of the device's size, and the set of those 4 KiB blocks that are in it
(`io/overlay_blocks.py`). It survives a restart of the worker. `io/hydration.py` copies the image into it behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import numpy as np

from dpac_engine.core.extents import ExtentMap, Int64Array, fold
from dpac_engine.io.files import sync_folder, write_all
from dpac_engine.io.holes import punch_hole
from dpac_engine.io.nbd.export import Change, Extent, as_os_error
from dpac_engine.io.overlay_blocks import OverlayBlocks, boot_id, open_sparse

BLOCK_BYTES = 4096
HYDRATED = "hydrated"
"""This file in the overlay's folder says that the image is in the overlay whole, and of which size the device is."""


class DeviceImage(Protocol):
    """What lies under the overlay (`core.image.VolumeImage`)."""

    size_bytes: int
    map: ExtentMap

    def read(self, offset: int, length: int) -> bytes:
        """The bytes; raises what says why they cannot be read."""


class Zeroes:
    """What is under an overlay that holds the whole image: nothing but zeroes. It needs no target."""

    def __init__(self, size_bytes: int) -> None:
        none: Int64Array = np.empty(0, np.int64)
        self.size_bytes = size_bytes
        self.map = fold(none, none, none, none, size_bytes)

    def read(self, offset: int, length: int) -> bytes:  # noqa: ARG002 - zero wherever it is
        """See `DeviceImage`."""
        return bytes(length)


def hydrated_size(folder: Path) -> int | None:
    """The device's size if the overlay in the folder needs no image any more, else None."""
    try:
        return int((folder / HYDRATED).read_text())
    except FileNotFoundError:
        return None


class MountedVolume:
    """An `Export` of a checkpoint; writes stay in `folder`."""

    read_only = False
    durable_acks = False
    congested = False

    def __init__(
        self,
        image: DeviceImage,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        boot: str | None = None,
    ) -> None:
        self.size_bytes = image.size_bytes
        self.folder = folder
        self.reads_blocking = 0
        """Reads that clients did beyond the overlay so far."""
        self._image = image
        self._loop = loop
        self._executor = executor
        self._clients: list[Callable[[], None]] = []
        blocks = -(-self.size_bytes // BLOCK_BYTES)
        self._data = open_sparse(folder / "data", blocks * BLOCK_BYTES)
        self._blocks = OverlayBlocks(folder, blocks, boot_id() if boot is None else boot)
        sync_folder(folder)

    def submit(self, changes: Sequence[Change]) -> None:
        """See `Export.submit`. A write of less than a block reads the rest of it from the image at once."""
        for _, offset, length, data in changes:
            end, at = offset + length, offset
            while at < end:
                block = at // BLOCK_BYTES
                whole = (end - at) // BLOCK_BYTES if at % BLOCK_BYTES == 0 else 0
                stop = at + whole * BLOCK_BYTES if whole else min(end, (block + 1) * BLOCK_BYTES)
                if not whole and not self._blocks.has(block):
                    self._bring(block)
                self._put(at, stop - at, None if data is None else data[at - offset : stop - offset])
                at = stop

    def _put(self, offset: int, length: int, data: memoryview | None) -> None:
        if data is None:
            punch_hole(self._data, offset, length)
        else:
            write_all(self._data, [data], offset)
        self._blocks.note(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))

    def _bring(self, block: int) -> None:
        start = block * BLOCK_BYTES
        os.pwrite(self._data, self._read_image(start, min(BLOCK_BYTES, self.size_bytes - start)), start)

    def flush(self, done: Callable[[OSError | None], None]) -> None:
        """See `Export.flush`."""
        future = self._loop.run_in_executor(self._executor, self._sync)
        future.add_done_callback(lambda outcome: done(as_os_error(outcome.exception())))

    def _sync(self) -> None:
        self._blocks.sync(self._data)

    def read_now(self, offset: int, length: int) -> bytes | None:
        """See `Export.read_now`: only what lies in the overlay is at hand."""
        if all(self._blocks.has(block) for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))):
            return os.pread(self._data, length, offset)
        return None

    def read_blocking(self, offset: int, length: int) -> bytes:
        """See `Export.read_blocking`. Raises OSError (EIO) for damaged stored bytes: they are never served."""
        self.reads_blocking += 1
        out, at, end = bytearray(), offset, offset + length
        while at < end:
            block = at // BLOCK_BYTES
            mine = self._blocks.has(block)
            stop = min((block + 1) * BLOCK_BYTES, end)
            while stop < end and self._blocks.has(stop // BLOCK_BYTES) == mine:
                stop = min(stop + BLOCK_BYTES, end)
            out += os.pread(self._data, stop - at, at) if mine else self._read_image(at, stop - at)
            at = stop
        return bytes(out)

    def _read_image(self, offset: int, length: int) -> bytes:
        try:
            return self._image.read(offset, length)
        except Exception as error:
            raise OSError(5, f"the checkpoint cannot be read at {offset}: {error}") from error

    # ------------------------------------------------------------ hydration

    @property
    def stored(self) -> ExtentMap:
        """Where the image holds anything."""
        return self._image.map

    def lacking(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length) of the blocks in a range, which begins at one, that the image holds and the overlay does not."""
        first, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        held = np.zeros(end - first, bool)
        for piece in self._image.map.lookup(offset, length):
            if piece.source >= 0:
                held[piece.offset // BLOCK_BYTES - first : -(-(piece.offset + piece.length) // BLOCK_BYTES) - first] = (
                    True
                )
        wanted = np.diff(np.concatenate(([0], (held & self._blocks.missing(first, end)).view(np.int8), [0])))
        runs = zip(np.flatnonzero(wanted == 1).tolist(), np.flatnonzero(wanted == -1).tolist(), strict=True)
        stop = self.size_bytes
        return [
            ((first + begin) * BLOCK_BYTES, min((first + until) * BLOCK_BYTES, stop) - (first + begin) * BLOCK_BYTES)
            for begin, until in runs
        ]

    def read_image(self, offset: int, length: int) -> bytes:
        """What the image holds there; blocks. OSError (EIO) if it cannot be read."""
        return self._read_image(offset, length)

    def adopt(self, offset: int, data: bytes) -> None:
        """Take bytes of the image into the overlay, but for the blocks that a client wrote meanwhile."""
        for begin, length in self.lacking(offset, len(data)):
            at = begin - offset
            write_all(self._data, [memoryview(data)[at : at + length]], begin)
            self._blocks.note(begin // BLOCK_BYTES, -(-(begin + length) // BLOCK_BYTES))

    def sync(self) -> None:
        """Make what is in the overlay durable; blocks. Raises OSError."""
        self._sync()

    def need_image_no_more(self) -> None:
        """The overlay holds all of it: let go of it."""
        self._image = Zeroes(self.size_bytes)

    # ------------------------------------------------------------ what is where

    def extents_blocking(self, offset: int, length: int) -> list[Extent]:
        """See `Export.extents_blocking`."""
        found: list[Extent] = []

        def add(count: int, hole: bool) -> None:
            if found and found[-1].hole == hole:
                found[-1] = Extent(found[-1].length + count, hole, hole)
            elif count > 0:
                found.append(Extent(count, hole, hole))

        at, end = offset, offset + length
        stored = [(piece.offset, piece.length) for piece in self._image.map.lookup(offset, length) if piece.source >= 0]
        stored.append((end, 0))
        for begin, size in stored:
            while at < begin:
                stop = min((at // BLOCK_BYTES + 1) * BLOCK_BYTES, begin)
                add(stop - at, not self._blocks.has(at // BLOCK_BYTES))
                at = stop
            add(size, False)
            at = begin + size
        return found

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """See `Export.when_relieved`; never congested."""
        callback()

    def opened(self, close: Callable[[], None]) -> None:
        """See `Export.opened`."""
        self._clients.append(close)

    def closed(self, close: Callable[[], None]) -> None:
        """See `Export.closed`."""
        if close in self._clients:
            self._clients.remove(close)

    def close(self) -> None:
        """Drop clients and let go of the overlay."""
        for close in list(self._clients):
            close()
        self._blocks.close()
        data, self._data = self._data, -1  # whoever still comes meets EBADF, not another file
        os.close(data)
