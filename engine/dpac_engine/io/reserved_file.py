"""A small file that can be replaced on a full disk too: room for its next version is kept in a file beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from dpac_engine.io.files import replace_file, write_all

RESERVE_BYTES = 256 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ReservedFile:
    """One such file, for any thread. Everything blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        """Held while it is written."""
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._is_reserved = False
        """Not known of one that lies there from before: after a loss of power it may be a name without blocks."""

    def replace(self, content: Callable[[], bytes]) -> None:
        """Replace it, durably; if the disk is full, by what was reserved. Raises OSError.

        `content` is asked once nobody else writes, so that what lies there never becomes older.
        """
        with self.lock:
            data = content()
            while True:
                try:
                    replace_file(self.path, data)
                    return
                except OSError as error:
                    if error.errno not in _FULL or not self._is_reserved:
                        raise
                    self._is_reserved = False
                    self._reserve.unlink(missing_ok=True)

    def reserve(self) -> None:
        """Set room aside unless that was done; where the disk has none left, a later call does."""
        with self.lock:
            if self._is_reserved:
                return
            try:
                descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    write_all(descriptor, [bytes(RESERVE_BYTES)], 0)  # written, so that its blocks are its own
                finally:
                    os.close(descriptor)
                self._is_reserved = True
            except OSError:
                with contextlib.suppress(OSError):
                    self._reserve.unlink(missing_ok=True)
