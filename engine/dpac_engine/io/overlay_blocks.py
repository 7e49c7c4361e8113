"""Which blocks an overlay holds: a bit for each, known again after a crash of the process and after one of the host.

`bitmap` is a map in memory that outlives the process. After a power cut a bit in it may be on disk without its block's data, so
`bitmap.synced` has the bits of blocks whose data was synced before; after the host has started anew, those count.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

_PAGE_BYTES = 4096
"""Bits are synced in pages of that size. The first page of `bitmap` names the boot in which it was written."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Of the running kernel: another one means that what was not synced may be gone."""
    return _BOOT_ID.read_text().strip()


class OverlayBlocks:
    """A set of blocks. `note` and `has` are for the event loop, `missing` and `sync` for any thread."""

    def __init__(self, folder: Path, blocks: int, boot: str) -> None:
        self._pages = max(1, -(-blocks // (8 * _PAGE_BYTES)))
        self._synced = open_sparse(folder / "bitmap.synced", self._pages * _PAGE_BYTES)
        bitmap = open_sparse(folder / "bitmap", (1 + self._pages) * _PAGE_BYTES)
        try:
            if os.pread(bitmap, _PAGE_BYTES, 0).rstrip(b"\0") != boot.encode():
                self._forget_unsynced(bitmap)
                os.pwrite(bitmap, boot.encode().ljust(_PAGE_BYTES, b"\0"), 0)
            self._bits = mmap.mmap(bitmap, (1 + self._pages) * _PAGE_BYTES)
        finally:
            os.close(bitmap)
        self._guard = threading.Lock()
        self._syncing = threading.Lock()
        self._closing = self._closed = False
        self._unsynced = set(range(self._pages)) if self._differs() else set[int]()

    def _forget_unsynced(self, bitmap: int) -> None:
        for page in range(self._pages):
            bits = os.pread(self._synced, _PAGE_BYTES, page * _PAGE_BYTES)
            if bits != os.pread(bitmap, _PAGE_BYTES, (1 + page) * _PAGE_BYTES):
                os.pwrite(bitmap, bits, (1 + page) * _PAGE_BYTES)

    def _differs(self) -> bool:
        pages = ((page, os.pread(self._synced, _PAGE_BYTES, page * _PAGE_BYTES)) for page in range(self._pages))
        return any(bits != self._page(page) for page, bits in pages)

    def _page(self, number: int) -> bytes:
        return self._bits[(1 + number) * _PAGE_BYTES : (2 + number) * _PAGE_BYTES]

    def has(self, block: int) -> bool:
        """The overlay holds the block."""
        return bool(self._bits[_PAGE_BYTES + (block >> 3)] >> (block & 7) & 1)

    def missing(self, first: int, end: int) -> npt.NDArray[np.bool_]:
        """For each block of `[first, end)` whether the overlay lacks it. Shape (end - first,)."""
        raw = self._bits[_PAGE_BYTES + (first >> 3) : _PAGE_BYTES + -(-end // 8)]
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        return np.logical_not(bits[first & 7 : (first & 7) + end - first])

    def note(self, first: int, end: int) -> None:
        """Blocks `[first, end)` are in the overlay from now on; a discarded gigabyte is 262,144 of them."""
        bits, base = self._bits, _PAGE_BYTES
        whole, stop = -(-first // 8), end // 8
        if whole < stop:
            bits[base + whole : base + stop] = b"\xff" * (stop - whole)
        for block in (*range(first, min(whole * 8, end)), *range(max(stop * 8, min(whole * 8, end)), end)):
            bits[base + (block >> 3)] |= 1 << (block & 7)
        with self._guard:
            self._unsynced.update(range(first // (8 * _PAGE_BYTES), -(-end // (8 * _PAGE_BYTES))))

    def sync(self, data: int) -> None:
        """Make the blocks noted so far, which lie in the file `data`, durable. Raises OSError: then they are not promised."""
        with self._syncing:
            if self._closed:
                raise OSError(errno.EBADF, "the overlay is closed")
            self._sync(data)
        if self._closing:
            self.close()

    def _sync(self, data: int) -> None:
        with self._guard:
            unsynced, self._unsynced = self._unsynced, set()
            pages = {page: self._page(page) for page in unsynced}
        try:
            os.fdatasync(data)
            for page, bits in pages.items():
                os.pwrite(self._synced, bits, page * _PAGE_BYTES)
            os.fdatasync(self._synced)
        except OSError:
            with self._guard:
                self._unsynced |= unsynced
            raise

    def close(self) -> None:
        """Let go of the files: at once, or when a sync that is under way has ended."""
        self._closing = True
        if self._syncing.acquire(blocking=False):
            if not self._closed:
                self._closed = True
                self._bits.close()
                os.close(self._synced)
            self._syncing.release()


def open_sparse(path: Path, size_bytes: int) -> int:
    """A file of that size, made as one hole if it is missing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_size != size_bytes:
        os.ftruncate(descriptor, size_bytes)
    return descriptor
