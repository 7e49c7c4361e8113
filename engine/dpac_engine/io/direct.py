"""Large writes past the page cache (O_DIRECT).

What a copy or a restore writes is not read again soon: through the page cache it costs a copy of each byte, pushes out what
applications use, and is held up by the kernel's throttling of dirty pages. Where a file system does not offer it, callers
write as ever.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

ALIGNMENT_BYTES = 4096
"""Of offset, length and memory: enough for every disk and file system in use."""
BUFFER_BYTES = 4 * 2**20
_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def opened_direct(descriptor: int) -> Iterator[int | None]:
    """The same open file for direct writes; None where that is not offered. Raises OSError."""
    try:
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        # Without /proc, or on a file system that has no such thing.
        if error.errno not in (*_NOT_OFFERED, errno.ENOENT):
            raise
        yield None
        return
    try:
        yield direct
    finally:
        os.close(direct)


def aligned_buffer(length: int) -> memoryview:
    """Memory of at most `BUFFER_BYTES` from which direct writes can be made; freed with its last view."""
    return memoryview(mmap.mmap(-1, max(ALIGNMENT_BYTES, min(length, BUFFER_BYTES))))


def write_direct(direct: int, data: bytes | memoryview, offset: int, buffer: memoryview) -> int:
    """Write as much of the beginning of `data` as is aligned, at an aligned offset; how much that was.

    0 or less than could be where the disk wants a greater alignment. Raises OSError.
    """
    view, written = memoryview(data), 0
    whole = len(view) - len(view) % ALIGNMENT_BYTES
    while written < whole and not offset % ALIGNMENT_BYTES:
        length = min(whole - written, len(buffer))
        buffer[:length] = view[written : written + length]
        try:
            count = os.pwrite(direct, buffer[:length], offset + written)
        except OSError as error:
            if error.errno in _NOT_OFFERED:
                break
            raise
        written += count
        if count % ALIGNMENT_BYTES:
            break
    return written
