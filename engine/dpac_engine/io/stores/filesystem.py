"""The filesystem store: objects as files below a folder, durable when a call returns."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from dpac_api.errors import Conflict, Denied, DpacError, Invalid, NotFound, Temporary
from dpac_engine.core.ports import TargetMissing
from dpac_engine.io.direct import aligned_buffer, opened_direct, write_direct
from dpac_engine.io.files import make_folder, sync_folder, write_all

_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
SCRATCH = ".tmp"
"""Unfinished objects lie here, outside every listing."""
DIRECT_BYTES_MIN = 2**20
"""Objects from this size on are written past the page cache."""


class FilesystemStore:
    """Objects below `root`: written aside, synced, then linked to their name, so that none is ever seen half."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[Path] = set()
        """Folders whose names this store has synced."""
        self._root_identity: tuple[int, int] | None = None

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        path = self._path(key)
        with mapped(f"write {key}", self.root), self._written_aside(path, data) as aside:
            os.replace(aside, path)
            sync_folder(path.parent)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`: `link` fails where the name is taken, atomically, on NFS too."""
        path = self._path(key)
        with mapped(f"write {key}", self.root), self._written_aside(path, data) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                raise Conflict(f"Object {key} exists already in {self.root}.") from None
            sync_folder(path.parent)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        with mapped(f"read {key}", self.root), self._here(key).open("rb", buffering=0) as file:
            wanted = os.fstat(file.fileno()).st_size - offset if length is None else length
            parts: list[bytes] = []
            while wanted > 0:
                part = os.pread(file.fileno(), wanted, offset)
                if not part:
                    break
                parts.append(part)
                wanted -= len(part)
                offset += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        with mapped(f"read {key}", self.root):
            return self._here(key).stat().st_size

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        with mapped(f"list {prefix}", self.root):
            self._require_same_root()
            folder, _, _ = prefix.rpartition("/")
            found = sorted(_files_below(self.root / folder, f"{folder}/" if folder else ""))
        return iter([key for key in found if key.startswith(prefix) and key > start_after])

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        path = self._path(key)
        with mapped(f"delete {key}", self.root), contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)

    def _path(self, key: str) -> Path:
        if len(key) > 512 or not _KEY.fullmatch(key) or ".." in key.split("/") or key.startswith(SCRATCH):
            raise Invalid(f"{key!r} is not an object key: parts of letters, digits, '.', '_' and '-', joined by '/'.")
        return self.root / key

    def _make_folders(self, folder: Path) -> None:
        # Their names are made durable, even if another process made them: an object must not vanish with its folder.
        if folder == self.root or (folder in self._durable and folder.is_dir()):
            return
        self._make_folders(folder.parent)
        make_folder(folder, 0o777)
        self._durable.add(folder)

    def _here(self, key: str) -> Path:
        self._require_same_root()
        return self._path(key)

    def _require_same_root(self) -> None:
        """TargetMissing if the folder is another one than before: what was mounted there is gone, or something was mounted
        over it. What lies there now is not this store."""
        found = os.stat(self.root)
        identity = (found.st_dev, found.st_ino)
        self._root_identity = self._root_identity or identity
        if identity != self._root_identity:
            raise TargetMissing(f"The folder {self.root} is not the one that was opened. Mount what belongs there.")

    @contextlib.contextmanager
    def _written_aside(self, path: Path, data: bytes | memoryview) -> Iterator[Path]:
        self._require_same_root()
        scratch = self.root / SCRATCH
        scratch.mkdir(exist_ok=True)  # never `root` itself: a mount that is away must not be written beneath
        self._make_folders(path.parent)
        aside = scratch / secrets.token_hex(16)
        try:
            with aside.open("xb", buffering=0) as file:
                written = _written_directly(file.fileno(), data) if len(data) >= DIRECT_BYTES_MIN else 0
                if written < len(data):
                    write_all(file.fileno(), [memoryview(data)[written:]], written)
                os.fsync(file.fileno())
            yield aside
        finally:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()


def _written_directly(descriptor: int, data: bytes | memoryview) -> int:
    with opened_direct(descriptor) as direct:
        return 0 if direct is None else write_direct(direct, data, 0, aligned_buffer(len(data)))


def _files_below(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if prefix or entry.name != SCRATCH:
                yield from _files_below(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"


@contextlib.contextmanager
def mapped(what: str, root: Path) -> Iterator[None]:
    """Errors of the operating system as errors of the tree."""
    try:
        yield
    except FileNotFoundError as error:
        if not root.is_dir():
            raise TargetMissing(f"Cannot {what}: the folder {root} is missing. Mount or create it.") from error
        raise NotFound(f"Cannot {what}: it is not in {root}.") from error
    except PermissionError as error:
        raise Denied(f"Cannot {what} in {root}: {error.strerror}. Give the backend's user access to it.") from error
    except DpacError:
        raise
    except OSError as error:
        hint = "Free space on it." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the disk or mount."
        raise Temporary(f"Cannot {what} in {root}: {error.strerror}. {hint}") from error
