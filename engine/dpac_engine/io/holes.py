"""Holes in files: freeing ranges, finding data, and leaving holes where zeroes are written."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from dpac_engine.io.files import write_all

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_ZEROES = bytes(2**20)
_SPARSE_BYTES = 65_536
"""Shorter runs of zeroes are written: a file in many pieces is slower to read."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a range read as zeroes and free its space (fallocate(2)); by writing zeroes where that is not offered."""
    if length <= 0:
        return
    if _libc.fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    end = offset + length
    while offset < end:
        offset += os.pwrite(descriptor, _ZEROES[: min(len(_ZEROES), end - offset)], offset)


def data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(begin, stop) of what is not a hole in `[start, end)` of a file, in order (SEEK_DATA, SEEK_HOLE)."""
    at = start
    while at < end:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                yield at, end
                return
            raise
        if begin >= end:
            return
        stop = min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
        yield max(begin, at), stop
        at = stop


def write_sparse(descriptor: int, data: bytes, offset: int) -> None:
    """Write into a file that is a hole there, leaving long runs of zeroes out of it. Raises OSError."""
    view, begin = memoryview(data), 0
    for at in range(0, len(data), _SPARSE_BYTES):
        part = view[at : at + _SPARSE_BYTES]
        if part == _ZEROES[: len(part)]:
            if at > begin:
                write_all(descriptor, [view[begin:at]], offset + begin)
            begin = at + len(part)
    if begin < len(data):
        write_all(descriptor, [view[begin:]], offset + begin)
