"""A volume at a checkpoint, opened for use: an image that is read, under an overlay that takes the writes.

The overlay lies in two files that survive a restart of the worker: `data`, sparse, of the device's size, and `bitmap`, a
bit per 4 KiB block that is in it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from dpac_engine.core.image import VolumeImage
from dpac_engine.io.files import sync_folder, write_all
from dpac_engine.io.holes import punch_hole
from dpac_engine.io.nbd.export import Change, Extent, as_os_error

BLOCK_BYTES = 4096


class MountedVolume:
    """An `Export` of a checkpoint; writes stay in `folder`."""

    read_only = False
    durable_acks = False
    congested = False

    def __init__(self, image: VolumeImage, folder: Path, loop: asyncio.AbstractEventLoop, executor: Executor) -> None:
        self.size_bytes = image.size_bytes
        self._image = image
        self._loop = loop
        self._executor = executor
        self._clients: list[Callable[[], None]] = []
        blocks = -(-self.size_bytes // BLOCK_BYTES)
        self._data = _sparse(folder / "data", blocks * BLOCK_BYTES)
        self._bitmap_file = _sparse(folder / "bitmap", -(-blocks // 8))
        sync_folder(folder)
        self._bitmap = mmap.mmap(self._bitmap_file, -(-blocks // 8))

    def _has(self, block: int) -> bool:
        return bool(self._bitmap[block >> 3] >> (block & 7) & 1)

    def submit(self, changes: Sequence[Change]) -> None:
        """See `Export.submit`. A write of less than a block reads the rest of it from the image at once."""
        for _, offset, length, data in changes:
            end, at = offset + length, offset
            while at < end:
                block = at // BLOCK_BYTES
                whole = (end - at) // BLOCK_BYTES if at % BLOCK_BYTES == 0 else 0
                stop = at + whole * BLOCK_BYTES if whole else min(end, (block + 1) * BLOCK_BYTES)
                if not whole and not self._has(block):
                    self._bring(block)
                self._put(at, stop - at, None if data is None else data[at - offset : stop - offset])
                at = stop

    def _put(self, offset: int, length: int, data: memoryview | None) -> None:
        if data is None:
            punch_hole(self._data, offset, length)
        else:
            write_all(self._data, [data], offset)
        self._note(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))

    def _note(self, first: int, end: int) -> None:
        """Blocks `[first, end)` are in the overlay from now on; a discarded gigabyte is 262,144 of them."""
        whole, stop = -(-first // 8), end // 8
        if whole < stop:
            self._bitmap[whole:stop] = b"\xff" * (stop - whole)
        for block in (*range(first, min(whole * 8, end)), *range(max(stop * 8, min(whole * 8, end)), end)):
            self._bitmap[block >> 3] |= 1 << (block & 7)

    def _bring(self, block: int) -> None:
        start = block * BLOCK_BYTES
        os.pwrite(self._data, self._read_image(start, min(BLOCK_BYTES, self.size_bytes - start)), start)

    def flush(self, done: Callable[[OSError | None], None]) -> None:
        """See `Export.flush`."""
        future = self._loop.run_in_executor(self._executor, self._sync)
        future.add_done_callback(lambda outcome: done(as_os_error(outcome.exception())))

    def _sync(self) -> None:
        os.fdatasync(self._data)
        self._bitmap.flush()

    def read_now(self, offset: int, length: int) -> bytes | None:
        """See `Export.read_now`: only what lies in the overlay is at hand."""
        if all(self._has(block) for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))):
            return os.pread(self._data, length, offset)
        return None

    def read_blocking(self, offset: int, length: int) -> bytes:
        """See `Export.read_blocking`. Raises OSError (EIO) for damaged stored bytes: they are never served."""
        out, at, end = bytearray(), offset, offset + length
        while at < end:
            block = at // BLOCK_BYTES
            mine = self._has(block)
            stop = min((block + 1) * BLOCK_BYTES, end)
            while stop < end and self._has(stop // BLOCK_BYTES) == mine:
                stop = min(stop + BLOCK_BYTES, end)
            out += os.pread(self._data, stop - at, at) if mine else self._read_image(at, stop - at)
            at = stop
        return bytes(out)

    def _read_image(self, offset: int, length: int) -> bytes:
        try:
            return self._image.read(offset, length)
        except Exception as error:
            raise OSError(5, f"the checkpoint cannot be read at {offset}: {error}") from error

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
                add(stop - at, not self._has(at // BLOCK_BYTES))
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
        self._bitmap.close()
        os.close(self._bitmap_file)
        data, self._data = self._data, -1  # whoever still comes meets EBADF, not another file
        os.close(data)


def _sparse(path: Path, size_bytes: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_size != size_bytes:
        os.ftruncate(descriptor, size_bytes)
    return descriptor
