"""Holes in files: freeing ranges, finding data, and leaving holes where zeroes are written."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_ZEROES = bytes(2**20)
_SPARSE_BYTES = 65_536
"""Shorter runs of zeroes are written: a file in many pieces is slower to read."""
_SPARSE_ZEROES = memoryview(_ZEROES)[:_SPARSE_BYTES]
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


def data_runs(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is left of `data` without long runs of zeroes."""
    view, begin = memoryview(data), 0
    for at in range(0, len(view), _SPARSE_BYTES):
        part = view[at : at + _SPARSE_BYTES]
        if part == _SPARSE_ZEROES[: len(part)]:
            if at > begin:
                yield begin, at
            begin = at + len(part)
    if begin < len(view):
        yield begin, len(view)
