"""Reading changed paths into entries and chunks: the part of a capture that looks at content."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Container, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpac_engine.core.entries import FILE_BYTES_MAX, ROOT, Entry, EntryType
from dpac_engine.io.blueprints.blueprint import Blueprint, Copied, NotCovered, Unsettled
from dpac_engine.io.members.beneath import Beneath, split
from dpac_engine.io.members.chunks import (
    TIMESTAMP_TICK_NS,
    Chunk,
    ChunkSink,
    Content,
    Moved,
    check_same,
    check_still,
    read_content,
    settled_status,
)
from dpac_engine.io.members.scan import HEAD_BYTES, Signature, log_signature, own_signature
from dpac_engine.io.members.tree_index import Row

_ATTEMPTS = 3
_PAUSE_SECONDS = 0.05
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_TYPES = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFIFO: EntryType.FIFO,
    stat.S_IFSOCK: EntryType.SOCKET,
    stat.S_IFCHR: EntryType.CHARACTER_DEVICE,
    stat.S_IFBLK: EntryType.BLOCK_DEVICE,
}

Pieces = Generator[list[Chunk], None, "Row | None"]


@dataclass
class Outcome:
    """What reading made of the paths."""

    rows: dict[bytes, Row | None] = field(default_factory=dict)
    """Path -> how it is now; None: it is gone, with everything below it."""
    unstable: dict[bytes, str] = field(default_factory=dict)
    """Path -> why no stable version could be read."""
    unreadable: dict[bytes, str] = field(default_factory=dict)
    """Path -> why it cannot be read at all (permissions, I/O errors, limits)."""
    plain: dict[bytes, str] = field(default_factory=dict)
    """Path -> why the blueprint could not copy it, so that it was read as a plain file."""


class Reader:
    """Reads paths of one capture. For one thread; `outcome` is complete once `read` is exhausted."""

    def __init__(
        self,
        tree: Beneath,
        root: Path,
        before: Mapping[bytes, Row],
        known: Container[bytes],
        blueprint: Blueprint | None,
        scratch: Path,
        now_ns: int,
        stopping: threading.Event,
    ) -> None:
        self.outcome = Outcome()
        self._tree = tree
        self._root = root
        self._root_device = os.fstat(tree.root_fd).st_dev
        self._before = before
        self._blueprint = blueprint
        self._scratch = scratch
        self._now_ns = now_ns
        self._sink = ChunkSink(known, stopping)
        self._by_inode: dict[tuple[int, int], Row] = {}

    def read(self, paths: Iterable[bytes]) -> Generator[list[Chunk], None, None]:
        """Read every path; yields pieces of new chunks, about 4 MiB each, the last one maybe empty."""
        for path in paths:
            try:
                row = yield from self._stable(path)
                self.outcome.rows[path] = row
            except (Moved, Unsettled) as error:
                self.outcome.unstable[path] = str(error) or "kept changing while it was read"
            except OSError as error:
                self.outcome.unreadable[path] = f"cannot be read: {error.strerror or error}"
            except NotCovered as error:  # a limit that no attempt changes
                self.outcome.unreadable[path] = str(error)
        yield self._sink.take()

    def _stable(self, path: bytes) -> Pieces:
        for attempt in range(_ATTEMPTS):
            try:
                return (yield from self._one(path))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (Moved, Unsettled):
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_SECONDS)
            except OSError as error:
                # A link was put in the place of the file or of a folder above it: what was there is gone.
                if error.errno != errno.ELOOP:
                    raise
                if attempt == _ATTEMPTS - 1:
                    raise Moved from error
        raise AssertionError("the last attempt returns or raises")

    def _one(self, path: bytes) -> Pieces:
        at = b"" if path == ROOT else path
        found = self._tree.lstat(at)
        if stat.S_ISREG(found.st_mode):
            return (yield from self._file(path))
        entry = Entry(
            type=_TYPES[stat.S_IFMT(found.st_mode)],
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns,
            xattrs=_xattrs(self._tree.by_proc(at)),
            target=self._tree.readlink(at) if stat.S_ISLNK(found.st_mode) else b"",
            device=_device(found),
            inode=self._shared_inode(found),
        )
        return Row(own_signature(found, self._root_device), entry, False, self._now_ns)

    def _file(self, path: bytes) -> Pieces:
        fd = self._tree.open(path, os.O_RDONLY)
        try:
            found, settled = settled_status(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Moved
            if found.st_size > FILE_BYTES_MAX:
                raise NotCovered(f"is larger than the {FILE_BYTES_MAX} bytes a file may have")
            inode = self._shared_inode(found)
            signature = own_signature(found, self._root_device) if settled else None
            same = self._by_inode.get(inode) if inode is not None else None
            if same is not None and signature is not None and same.signature == signature:
                return same
            if self._blueprint is not None and self._blueprint.recognises(os.pread(fd, HEAD_BYTES, 0)):
                try:
                    return (yield from self._data_file(path, found, settled, _xattrs(fd)))
                except NotCovered as error:
                    self.outcome.plain[path] = f"captured as a plain file: {error}"
            content = yield from read_content(fd, found, self._sink)
            xattrs = _xattrs(fd)
            if not settled:
                check_same(fd, found, content)
            check_still(fd, found)
        finally:
            os.close(fd)
        row = Row(signature, _file_entry(found, content, xattrs, inode=inode), False, self._now_ns)
        if inode is not None:
            self._by_inode[inode] = row
        return row

    def _data_file(
        self, path: bytes, found: os.stat_result, settled: bool, xattrs: tuple[tuple[bytes, bytes], ...]
    ) -> Pieces:
        """The blueprint's copy, under the data file's own name, mode and owner."""
        assert self._blueprint is not None
        signature = self._signature_with_logs(path, found) if settled else None
        copied = self._copy(self._blueprint, path)
        try:
            fd = os.open(copied.file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                content = yield from read_content(fd, status, self._sink)
            finally:
                os.close(fd)
        finally:
            copied.file.unlink(missing_ok=True)
        entry = _file_entry(found, content, xattrs, size=status.st_size, mtime_ns=copied.mtime_ns)
        return Row(signature, entry, True, self._now_ns)

    def _copy(self, blueprint: Blueprint, path: bytes) -> Copied:
        try:
            return blueprint.copy(os.path.join(os.fsencode(self._root), path), self._scratch)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # Nothing is wrong with the file: until it is copied, what is captured is older than it.
            raise Unsettled(f"there is no room for a copy of it in {self._scratch.parent}") from error

    def _signature_with_logs(self, path: bytes, found: os.stat_result) -> Signature | None:
        assert self._blueprint is not None
        signature = own_signature(found, self._root_device)
        folder, name = split(path)
        for log in self._blueprint.logs(name):
            try:
                beside = self._tree.lstat(folder + b"/" + log if folder else log)
            except FileNotFoundError:
                continue
            if beside.st_mtime_ns > time.clock_gettime_ns(time.CLOCK_REALTIME) - TIMESTAMP_TICK_NS:
                return None  # it may change again within this tick of the clock: read it again the next time
            signature += log_signature(beside)
        return signature

    def _shared_inode(self, found: os.stat_result) -> tuple[int, int] | None:
        if found.st_nlink < 2 or stat.S_ISDIR(found.st_mode):
            return None
        return (0 if found.st_dev == self._root_device else found.st_dev, found.st_ino)


def _file_entry(
    found: os.stat_result,
    content: Content,
    xattrs: tuple[tuple[bytes, bytes], ...],
    *,
    size: int | None = None,
    mtime_ns: int | None = None,
    inode: tuple[int, int] | None = None,
) -> Entry:
    return Entry(
        type=EntryType.FILE,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns if mtime_ns is None else mtime_ns,
        xattrs=xattrs,
        inode=inode,
        size=found.st_size if size is None else size,
        chunks=content.chunks,
        runs=content.runs,
        sparse=content.sparse,
    )


def _device(found: os.stat_result) -> tuple[int, int] | None:
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return None
    return (os.major(found.st_rdev), os.minor(found.st_rdev))


def _xattrs(at: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes that this process may read, sorted."""
    follow = isinstance(at, int)
    try:
        names = os.listxattr(at, follow_symlinks=follow)
    except OSError:
        return ()
    found: list[tuple[bytes, bytes]] = []
    for name in sorted(os.fsencode(name) for name in names):
        try:
            found.append((name, os.getxattr(at, name, follow_symlinks=follow)))
        except OSError:
            continue
    return tuple(found)
