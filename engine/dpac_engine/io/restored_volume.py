"""The file that a restore writes a volume into: sparse, past the page cache where that is offered, by many threads."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from dpac_api.errors import Conflict, Invalid
from dpac_engine.io.direct import ALIGNMENT_BYTES, BUFFER_BYTES, aligned_buffer, opened_direct, write_direct
from dpac_engine.io.files import write_all
from dpac_engine.io.holes import data_ranges, data_runs, punch_hole


class RestoredVolume:
    """A file of `size_bytes` that is, or becomes, a volume. `fill` and `write` may be called by several threads. Raises OSError."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """A new file, or one that an earlier try began."""
        self._open(path, os.O_CREAT | os.O_NOFOLLOW)
        self._take_size(size_bytes)

    @classmethod
    def over(cls, path: Path, size_bytes: int) -> Self:
        """A file or disk that holds something else: it becomes this volume, and takes its size.

        Conflict while something else uses it; Invalid for a disk that is too small.
        """
        volume = cls.__new__(cls)
        is_disk = path.is_block_device()
        try:
            # Of a disk the kernel itself tells with O_EXCL whether it is mounted.
            volume._open(path, os.O_EXCL if is_disk else 0)
            with volume._closed_on_error():
                fcntl.flock(volume._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EWOULDBLOCK):
                raise
            raise Conflict(f"{path} is in use. Stop what uses it, then restore over it.") from error
        if not is_disk:
            volume._take_size(size_bytes)
        elif (found := os.lseek(volume._descriptor, 0, os.SEEK_END)) < size_bytes:
            volume._opened.close()
            raise Invalid(f"{path} has {found} bytes, and the volume {size_bytes}. Restore to a larger disk.")
        return volume

    def _open(self, path: Path, flags: int) -> None:
        self._of_thread = threading.local()
        self._opened = ExitStack()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
        self._opened.callback(os.close, self._descriptor)
        with self._closed_on_error():
            self._direct = self._opened.enter_context(opened_direct(self._descriptor))

    def _take_size(self, size_bytes: int) -> None:
        with self._closed_on_error():
            os.truncate(self._descriptor, size_bytes)

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def allocated_bytes(self) -> int:
        """What it takes on its disk now."""
        return os.fstat(self._descriptor).st_blocks * 512

    def read(self, offset: int, length: int) -> bytes:
        """What is there; less at the end."""
        return os.pread(self._descriptor, length, offset)

    def fill(self, offset: int, data: memoryview) -> None:
        """Write where the file is a hole, or holds the same already; long runs of zeroes are left out."""
        for begin, end in data_runs(data):
            self.write(offset + begin, data[begin:end])

    def clear(self, begin: int, end: int) -> int:
        """Make a range read as zeroes; how much of it held data before."""
        cleared = 0
        for first, stop in list(data_ranges(self._descriptor, begin, end)):
            punch_hole(self._descriptor, first, stop - first)
            cleared += stop - first
        return cleared

    def write(self, offset: int, data: memoryview) -> None:
        """Write, whatever is there."""
        head = min(-offset % ALIGNMENT_BYTES, len(data))
        if head:
            write_all(self._descriptor, [data[:head]], offset)
        if self._direct is not None and len(data) - head >= ALIGNMENT_BYTES:
            head += write_direct(self._direct, data[head:], offset + head, self._buffer())
        if head < len(data):
            write_all(self._descriptor, [data[head:]], offset + head)

    def _buffer(self) -> memoryview:
        """One for each thread."""
        if not hasattr(self._of_thread, "buffer"):
            self._of_thread.buffer = aligned_buffer(BUFFER_BYTES)
        buffer: memoryview = self._of_thread.buffer
        return buffer

    def sync(self) -> None:
        """Everything that was written is on disk when this returns."""
        os.fsync(self._descriptor)
