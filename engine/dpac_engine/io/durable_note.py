"""A word for the next life: how far a spool is durable, left before a volume's file takes what is.

`state.json` tells that too, but late, for it is synced. This is not: it lies in the page cache, so that after a kill it is exact, and
after a loss of power it may be older, or gone. Whatever it says was durable when it was written.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from pathlib import Path

import xxhash

NAME = "durable"
_LSN = struct.Struct("<Q")
_CHECK = struct.Struct("<Q")


class DurableNote:
    """Of one spool, for any thread; blocks."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lsn = 0
        self._lock = threading.Lock()

    def leave(self, lsn: int) -> None:
        """Everything before `lsn` is durable. A disk that does not take it keeps what was said before, which stays true."""
        with self._lock, contextlib.suppress(OSError):
            if lsn > self._lsn:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    body = _LSN.pack(lsn)
                    os.pwrite(descriptor, body + _CHECK.pack(xxhash.xxh3_64_intdigest(body)), 0)
                finally:
                    os.close(descriptor)
                self._lsn = lsn


def read(folder: Path) -> int:
    """What was said last of the spool in `folder`; 0 if nothing is to be read."""
    try:
        content = (folder / NAME).read_bytes()
    except OSError:
        return 0
    body, check = content[: _LSN.size], content[_LSN.size :]
    if len(check) != _CHECK.size or _CHECK.unpack(check)[0] != xxhash.xxh3_64_intdigest(body):
        return 0
    return int(_LSN.unpack(body)[0])
