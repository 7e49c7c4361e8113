"""A changed file's content: what was written, over what the checkpoint holds of it.

`data` is a sparse file, always of the file's present size and with the time of its last change. Of the first `lower_bytes` those
4 KiB blocks that are not marked as written are read from the checkpoint: a write copies no more of a file than the block it begins
and ends in, however large the file is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from dpac_engine.io.files import sync_folder, write_all
from dpac_engine.io.holes import punch_hole
from dpac_engine.io.overlay_blocks import OverlayBlocks, open_sparse

BLOCK_BYTES = 4096
DATA = "data"
ReadLower = Callable[[int, int], bytes]
"""(offset, length) -> that of the checkpoint; fewer bytes where its file ends."""


def make_content(folder: Path, size_bytes: int) -> None:
    """Make what a file's content needs: a file of holes, over which the checkpoint is seen until it is written.

    Durable if the checkpoint has anything of it: lost by a power cut it would have that content cut off.
    """
    folder.mkdir(mode=0o700)
    descriptor = open_sparse(folder / DATA, size_bytes)
    try:
        if size_bytes:
            os.fsync(descriptor)
            sync_folder(folder)
            sync_folder(folder.parent)
    finally:
        os.close(descriptor)


class Content:
    """One file's, while somebody has it open. `write`, `truncate` and `zero` come one at a time; safe for threads."""

    def __init__(self, folder: Path, read_lower: ReadLower, source_bytes: int, lower_bytes: int, boot: str) -> None:
        """`source_bytes`: of the checkpoint's file; `lower_bytes`: as far as it was not cut off since."""
        self._data = os.open(folder / DATA, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._folder = folder
        self._read_lower = read_lower
        self._blocks = OverlayBlocks(folder, -(-source_bytes // BLOCK_BYTES), boot) if source_bytes else None
        self._lock = threading.Lock()
        self.lower_bytes = min(lower_bytes, self.size_bytes)

    @property
    def size_bytes(self) -> int:
        """The file's size now."""
        return os.fstat(self._data).st_size

    def _is_local(self, block: int) -> bool:
        return self._blocks is None or block * BLOCK_BYTES >= self.lower_bytes or self._blocks.has(block)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer at its end. Raises OSError, and what `read_lower` raises."""
        end = min(offset + length, self.size_bytes)
        if offset >= self.lower_bytes:
            return os.pread(self._data, max(end - offset, 0), offset)
        parts, at = [], offset
        while at < end:
            block = at // BLOCK_BYTES
            local = self._is_local(block)
            stop = min((block + 1) * BLOCK_BYTES, end)
            while stop < end and self._is_local(stop // BLOCK_BYTES) == local:
                stop = min(stop + BLOCK_BYTES, end)
            parts.append(os.pread(self._data, stop - at, at) if local else self._lower(at, stop - at))
            at = stop
        return b"".join(parts)

    def _lower(self, offset: int, length: int) -> bytes:
        found = self._read_lower(offset, min(length, max(self.lower_bytes - offset, 0)))
        return found + bytes(length - len(found))

    def write(self, offset: int, data: bytes) -> None:
        """Write. Raises OSError, and what `read_lower` raises: then nothing was written."""
        with self._lock:
            self._take(offset, len(data))
            write_all(self._data, [data], offset)
            self._note(offset, len(data))

    def zero(self, offset: int, length: int, *, extend: bool) -> None:
        """Make a range read as zeroes; beyond the file's end only if it shall `extend`."""
        with self._lock:
            end = offset + length if extend else min(offset + length, self.size_bytes)
            if end > offset:
                self._take(offset, end - offset)
                if end > self.size_bytes:
                    os.ftruncate(self._data, end)
                punch_hole(self._data, offset, end - offset)
                self._note(offset, end - offset)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least that large."""
        with self._lock:
            if size_bytes > self.size_bytes:
                os.ftruncate(self._data, size_bytes)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off there, or extend it by zeroes. `lower_bytes` may have become smaller."""
        with self._lock:
            os.ftruncate(self._data, size_bytes)
            self.lower_bytes = min(self.lower_bytes, size_bytes)

    def _take(self, offset: int, length: int) -> None:
        """Bring the blocks that a change begins and ends in, as far as it leaves some of them as they are."""
        end = offset + length
        for block in {offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES}:
            start, stop = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
            if (start < offset or end < min(stop, self.lower_bytes)) and not self._is_local(block):
                kept = min(stop, self.lower_bytes) - start
                write_all(self._data, [self._lower(start, kept)], start)
                self._note(start, kept)

    def _note(self, offset: int, length: int) -> None:
        end = min(offset + length, self.lower_bytes)
        if self._blocks is not None and end > offset:
            self._blocks.note(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES))

    def sync(self) -> None:
        """Make it durable. Raises OSError."""
        if self._blocks is not None:
            self._blocks.sync(self._data)
        else:
            os.fsync(self._data)
        sync_folder(self._folder)
        sync_folder(self._folder.parent)

    def close(self) -> None:
        """Let go of the files."""
        if self._blocks is not None:
            self._blocks.close()
        os.close(self._data)
