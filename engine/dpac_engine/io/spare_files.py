"""Spare files: preallocated files of one size, made ahead or taken back from their last use, so that who needs one never
waits for a disk."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

KEPT = 2
"""Used files kept for their next use at least."""
_ZEROES = bytes(2**20)


class SpareFiles:
    """Those of one folder, by names that end in `.spare`. One thread uses it; another one, of its own, makes files."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._made = 0
        self._making: threading.Thread | None = None
        found = sorted(folder.glob("*.spare"))
        self._ready = [path for path in found if is_whole(path, size_bytes)]
        for path in set(found).difference(self._ready):
            path.unlink()

    def __len__(self) -> int:
        return len(self._ready)

    def take(self, path: Path, written_bytes: int) -> None:
        """Put a file at `path`: a spare, else a new one, so much of it written as `allocate` does it; 0: its space reserved.
        Its name is not durable yet. Raises OSError."""
        if self._ready:
            os.replace(self._ready.pop(), path)
        elif written_bytes:
            allocate(path, self._size_bytes, written_bytes)
        else:
            reserve(path, self._size_bytes)

    def give_back(self, path: Path, kept_max: int) -> None:
        """Keep a used file for its next use, unless there are `kept_max` already."""
        if len(self._ready) >= kept_max:
            path.unlink()
            return
        spare = path.with_suffix(".spare")
        os.replace(path, spare)
        self._ready.append(spare)

    def trim(self) -> None:
        """Let go of more than are `KEPT`."""
        while len(self._ready) > KEPT:
            self._ready.pop().unlink()

    def clear(self) -> None:
        """Let go of all."""
        self.join()
        self._ready = []
        for path in self._folder.glob("*.spare"):
            path.unlink()

    def make_ahead(self, *, written: bool) -> None:
        """See that there is one, made on a thread: `written` whole, or reserved. A full disk shows when the file is needed."""
        if self._ready or self._making is not None:
            return
        self._made += 1
        path = self._folder / f"new-{self._made}.spare"
        self._making = threading.Thread(target=self._make, args=(path, written), name="spare", daemon=True)
        self._making.start()

    def _make(self, path: Path, written: bool) -> None:
        try:
            if written:
                allocate(path, self._size_bytes, self._size_bytes)
            else:
                reserve(path, self._size_bytes)
            self._ready.append(path)
        except OSError:
            pass
        finally:
            self._making = None

    @property
    def making(self) -> bool:
        """A file is being made."""
        return self._making is not None

    def join(self) -> None:
        """Wait for the file that is being made."""
        if (making := self._making) is not None:
            making.join()


def is_whole(path: Path, size_bytes: int) -> bool:
    """Whether all of it was allocated: a crash may have left a file that was just being made."""
    return path.stat().st_size == size_bytes


def reserve(path: Path, size_bytes: int) -> None:
    """Make a file of zeroes at once, for which there is room. Raises OSError, and leaves no file then.

    A file system turns reserved space into written space at the first sync after a write there, by a commit of its
    journal: what is `allocate`d is better for who syncs often.
    """
    with _made(path) as descriptor:
        os.posix_fallocate(descriptor, 0, size_bytes)


def allocate(path: Path, size_bytes: int, written_bytes: int) -> None:
    """Make a file of zeroes, so much of it durably written; the rest takes room as it is written. Raises OSError, and
    leaves no file then."""
    written_bytes = min(written_bytes, size_bytes)
    with _made(path) as descriptor:
        for at in range(0, written_bytes, len(_ZEROES)):
            piece = _ZEROES[: written_bytes - at]
            if os.pwrite(descriptor, piece, at) != len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)


@contextlib.contextmanager
def _made(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()  # others need what room it took, the group's state above all
        raise
    finally:
        os.close(descriptor)
