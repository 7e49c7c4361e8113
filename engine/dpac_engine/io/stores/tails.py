"""Tails on a file system: preallocated files that are appended to, beside the objects of a `FilesystemStore`."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from pathlib import Path

from dpac_api.errors import Conflict
from dpac_engine.io.files import make_folder, sync_folder, write_all
from dpac_engine.io.stores.filesystem import SCRATCH, mapped

_ZEROES = bytes(2**20)


class FilesystemTails:
    """Tails below `root`, under keys that begin with `prefix` (a `ports.TailStore`).

    The next file is made ready in the background while one is in use, so that a FLUSH does not wait for it.
    """

    def __init__(self, root: Path, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        self._spare: tuple[int, Path] | None = None
        self._making = threading.Lock()

    def open_tail(self, key: str, size_bytes: int) -> FilesystemTail:
        """See `TailStore.open_tail`."""
        path = self._root / f"{self._prefix}{key}"
        with mapped(f"write {key}", self._root):
            aside = self._take_spare(size_bytes) or self._allocate(secrets.token_hex(16), size_bytes)
            try:
                make_folder(path.parent, 0o777)
                os.link(aside, path)
                sync_folder(path.parent)
            except FileExistsError:
                raise Conflict(f"Object {key} exists already in {self._root}.") from None
            finally:
                aside.unlink(missing_ok=True)
            return FilesystemTail(path, self._root)

    def prepare(self, size_bytes: int) -> None:
        """See `TailStore.prepare`."""
        if self._spare is None and self._making.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):
                    # One name a group, so that what a killed process left does not pile up; never its file, which may be a tail.
                    name = f"{self._prefix.replace('/', '-')}spare"
                    (self._root / SCRATCH / name).unlink(missing_ok=True)
                    self._spare = (size_bytes, self._allocate(name, size_bytes))
            finally:
                self._making.release()

    def close(self) -> None:
        """See `TailStore.close`."""
        spare, self._spare = self._spare, None
        if spare is not None:
            with contextlib.suppress(OSError):
                spare[1].unlink(missing_ok=True)

    def _take_spare(self, size_bytes: int) -> Path | None:
        spare, self._spare = self._spare, None
        if spare is not None and spare[0] == size_bytes and spare[1].exists():
            return spare[1]
        return None

    def _allocate(self, name: str, size_bytes: int) -> Path:
        # Written, not only reserved, as in the spool: else each fdatasync would change the file system's own records.
        scratch = self._root / SCRATCH
        scratch.mkdir(exist_ok=True)
        path = scratch / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for at in range(0, size_bytes, len(_ZEROES)):
                piece = _ZEROES[: size_bytes - at]
                if os.pwrite(descriptor, piece, at) != len(piece):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)
        return path


class FilesystemTail:
    """One tail, open for appending (a `ports.TailFile`)."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._root = root
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, offset: int, data: bytes) -> None:
        """See `TailFile.write`. A file whose name is gone, with its target or without, takes nothing any more."""
        with mapped(f"write {self._path.name}", self._root):
            write_all(self._descriptor, [data], offset)
            os.fdatasync(self._descriptor)
            if os.stat(self._path).st_ino != os.fstat(self._descriptor).st_ino:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))

    def close(self) -> None:
        """See `TailFile.close`."""
        os.close(self._descriptor)
