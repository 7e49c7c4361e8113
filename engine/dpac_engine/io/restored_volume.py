"""The file that a restore writes a volume into: sparse, past the page cache where that is offered, by many threads."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from dpac_engine.io.direct import ALIGNMENT_BYTES, BUFFER_BYTES, aligned_buffer, opened_direct, write_direct
from dpac_engine.io.files import write_all
from dpac_engine.io.holes import data_runs


class RestoredVolume:
    """A file of `size_bytes` that is, or becomes, a volume. `write` may be called by several threads. Raises OSError."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._opened = ExitStack()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._opened.callback(os.close, self._descriptor)
        try:
            os.truncate(self._descriptor, size_bytes)
            self._direct = self._opened.enter_context(opened_direct(self._descriptor))
        except BaseException:
            self._opened.close()
            raise
        self._of_thread = threading.local()

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

    def write(self, offset: int, data: memoryview) -> None:
        """Write where the file is a hole, or holds the same already; long runs of zeroes are left out."""
        for begin, end in data_runs(data):
            self._write(offset + begin, data[begin:end])

    def _write(self, offset: int, data: memoryview) -> None:
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
