"""The face of a mounted tree to FUSE."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import mfusepy  # type: ignore[import-untyped]

from dpac_api.errors import DpacError
from dpac_engine.io.mounted_tree.nodes import Node
from dpac_engine.io.mounted_tree.tree import MountedTree

log = logging.getLogger(__name__)

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_NOREPLACE = 1
_NOW, _OMIT = 2**30 - 1, 2**30 - 2
_UNCHANGED = 2**32 - 1
NAME_SECONDS = 60
"""How long the kernel may keep names: nobody but it changes them. Attributes it may not: two names of a file share theirs."""


def _answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """What cannot be read of the checkpoint is EIO, and said once."""

    @wraps(method)
    def answer(self: Face, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except DpacError as error:
            self.failed(error.message)
            raise OSError(errno.EIO, error.message) from error

    return answer


def _hidden_name(path: str) -> str | None:
    name = path.rpartition("/")[2]
    return name if name.startswith(".fuse_hidden") else None


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")[1:]


class Face(mfusepy.Operations):  # type: ignore[misc]
    """What is open is known by its handle."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True

    def __init__(self, tree: MountedTree, failed: Callable[[str], None]) -> None:
        """`failed` is told why the checkpoint cannot be read."""
        self.tree = tree
        self.failed = failed
        self.ready = threading.Event()
        """Set once the kernel asks."""
        self._open: dict[int, Node] = {}
        self._hidden: dict[str, Node] = {}
        """Files that were removed while they were open: libfuse renames them, and knows them by that name until they are
        closed. Here they have none."""
        self._handles = 0
        self._lock = threading.Lock()

    def init(self, path: str) -> None:  # noqa: ARG002 - always the root
        """The mount is there."""
        self.ready.set()

    def _of(self, path: str | None, handle: int | None) -> Node:
        node = self._open.get(handle) if handle else None
        if node is not None:
            return node
        if path is None:
            raise OSError(errno.ENOENT, "it has no name any more")
        hidden = self._hidden.get(_hidden_name(path) or "")
        return self.tree.find(_bytes(path)) if hidden is None else hidden

    def _handle(self, node: Node) -> int:
        self.tree.open(node)
        with self._lock:
            self._handles += 1
            self._open[self._handles] = node
            return self._handles

    # ------------------------------------------------------------ attributes

    @_answering
    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        """See stat(2)."""
        return self.tree.status(self._of(path, fh))

    @_answering
    def chmod(self, path: str | None, mode: int, fh: int | None = None) -> int:
        """See chmod(2)."""
        self.tree.change(self._of(path, fh), mode=mode)
        return 0

    @_answering
    def chown(self, path: str | None, uid: int, gid: int, fh: int | None = None) -> int:
        """See chown(2)."""
        owner, group = (None if number in (-1, _UNCHANGED) else number for number in (uid, gid))
        self.tree.change(self._of(path, fh), uid=owner, gid=group)
        return 0

    @_answering
    def utimens(self, path: str | None, mtime_ns: int | None, fh: int | None = None) -> int:
        """See utimensat(2); None is now, -1 leaves it. When something was read nobody keeps."""
        if mtime_ns != -1:
            self.tree.set_time(self._of(path, fh), time.time_ns() if mtime_ns is None else mtime_ns)
        return 0

    @_answering
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:  # noqa: ARG002 - macOS
        """See getxattr(2)."""
        try:
            return self._of(path, None).xattrs[os.fsencode(name)]
        except KeyError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

    @_answering
    def listxattr(self, path: str) -> list[str]:
        """See listxattr(2)."""
        return [os.fsdecode(name) for name in self._of(path, None).xattrs]

    @_answering
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:  # noqa: ARG002
        """See setxattr(2)."""
        self.tree.set_xattr(self._of(path, None), os.fsencode(name), value, options)
        return 0

    @_answering
    def removexattr(self, path: str, name: str) -> int:
        """See removexattr(2)."""
        self.tree.set_xattr(self._of(path, None), os.fsencode(name), None)
        return 0

    @_answering
    def statfs(self, path: str) -> dict[str, int]:  # noqa: ARG002 - one disk for all
        """See statvfs(3): the disk that takes what is written."""
        found = self.tree.disk()
        names = (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_namemax",
        )
        return {name: getattr(found, name) for name in names}

    # ------------------------------------------------------------ names

    @_answering
    def opendir(self, path: str) -> int:
        """See opendir(3)."""
        return self._handle(self.tree.find(_bytes(path)))

    @_answering
    def readdir(self, path: str | None, fh: int) -> Iterator[Any]:
        """See readdir(3)."""
        node = self._of(path, fh)
        own = {"st_ino": node.number, "st_mode": stat.S_IFDIR}
        rest = [
            (os.fsdecode(name), {"st_ino": number, "st_mode": bits}, 0)
            for name, number, bits in self.tree.listing(node)
        ]
        return iter([(".", own, 0), ("..", own, 0), *rest])

    @_answering
    def releasedir(self, path: str | None, fh: int) -> int:
        """See closedir(3)."""
        return int(self.release(path, fh))

    def _make(self, path: str, mode: int, target: bytes = b"", device: int = 0) -> Node:
        uid, gid, _ = mfusepy.fuse_get_context()
        return self.tree.make(_bytes(path), mode, uid, gid, target, device)

    @_answering
    def create(self, path: str, mode: int, flags: int = 0) -> int:  # noqa: ARG002 - the kernel looked for it
        """See open(2) with O_CREAT."""
        return self._handle(self._make(path, stat.S_IFREG | stat.S_IMODE(mode)))

    @_answering
    def mknod(self, path: str, mode: int, dev: int) -> int:
        """See mknod(2)."""
        self._make(path, mode, device=dev)
        return 0

    @_answering
    def mkdir(self, path: str, mode: int) -> int:
        """See mkdir(2)."""
        self._make(path, stat.S_IFDIR | stat.S_IMODE(mode))
        return 0

    @_answering
    def symlink(self, target: str, source: str) -> int:
        """See symlink(2); `target` is the new name."""
        self._make(target, stat.S_IFLNK | 0o777, os.fsencode(source))
        return 0

    @_answering
    def readlink(self, path: str) -> str:
        """See readlink(2)."""
        return os.fsdecode(self.tree.find(_bytes(path)).target)

    @_answering
    def link(self, target: str, source: str) -> int:
        """See link(2); `target` is the new name."""
        self.tree.link(self.tree.find(_bytes(source)), _bytes(target))
        return 0

    @_answering
    def unlink(self, path: str) -> int:
        """See unlink(2)."""
        if (hidden := _hidden_name(path)) is not None and self._hidden.pop(hidden, None) is not None:
            return 0
        self.tree.remove(_bytes(path), folder=False)
        return 0

    @_answering
    def rmdir(self, path: str) -> int:
        """See rmdir(2)."""
        self.tree.remove(_bytes(path), folder=True)
        return 0

    @_answering
    def rename(self, old: str, new: str, flags: int = 0) -> int:
        """See renameat2(2); files are not exchanged."""
        if flags & ~_NOREPLACE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if (hidden := _hidden_name(new)) is not None:
            self._hidden[hidden] = self.tree.find(_bytes(old))
            self.tree.remove(_bytes(old), folder=False)
            return 0
        self.tree.rename(_bytes(old), _bytes(new), replace=not flags & _NOREPLACE)
        return 0

    # ------------------------------------------------------------ content

    @_answering
    def open(self, path: str, flags: int) -> int:
        """See open(2); the kernel checked what it may."""
        node = self.tree.find(_bytes(path))
        handle = self._handle(node)
        if flags & os.O_TRUNC:
            self.tree.truncate(node, 0)
        return handle

    @_answering
    def release(self, path: str | None, fh: int) -> int:  # noqa: ARG002 - it may have no name
        """The last close of a handle."""
        with self._lock:
            node = self._open.pop(fh, None)
        if node is not None:
            self.tree.release(node)
        return 0

    @_answering
    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        """See pread(2)."""
        return self.tree.read(self._of(path, fh), offset, size)

    @_answering
    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        """See pwrite(2)."""
        self.tree.write(self._of(path, fh), offset, data)
        return len(data)

    @_answering
    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        """See truncate(2)."""
        self.tree.truncate(self._of(path, fh), length)
        return 0

    @_answering
    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fh: int) -> int:
        """See fallocate(2): making holes and zeroes, and extending; space is not reserved."""
        node = self._of(path, fh)
        if mode == 0:
            self.tree.extend(node, offset + size)
        elif mode in (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
            self.tree.zero(node, offset, size, extend=not mode & _KEEP_SIZE)
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return 0

    @_answering
    def fsync(self, path: str | None, datasync: int, fh: int) -> int:  # noqa: ARG002 - the same work
        """See fsync(2), fdatasync(2), and msync(2) of a shared mapping."""
        self.tree.sync(self._of(path, fh))
        return 0

    @_answering
    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:  # noqa: ARG002 - the same work
        """See fsync(2) of a folder."""
        self.tree.sync(self._of(path, fh))
        return 0


class _Session(mfusepy.FUSE):  # type: ignore[misc]
    """Tells the face what the binding leaves out: flags of a rename, and the handle by which a file is changed."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        return int(self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags))

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        return int(self.operations.chmod(_text(path), mode, _handle_in(fip)))

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        return int(self.operations.chown(_text(path), uid, gid, _handle_in(fip)))

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        return int(self.operations.truncate(_text(path), length, _handle_in(fip)))

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        return int(
            self.operations.utimens(_text(path), _moment(buf.contents.modtime) if buf else None, _handle_in(fip))
        )


def _text(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def _handle_in(fip: Any) -> int | None:
    return int(fip.contents.fh) if fip else None


def _moment(spec: Any) -> int | None:
    """Nanoseconds since 1970; None: now, -1: as it is."""
    if spec.tv_nsec in (_NOW, _OMIT):
        return None if spec.tv_nsec == _NOW else -1
    return int(spec.tv_sec * 10**9 + spec.tv_nsec)


def serve(face: Face, mountpoint: str) -> None:
    """Mount and serve until it is unmounted, in this thread. RuntimeError if it cannot be mounted."""
    everybody = {"allow_other": True} if os.geteuid() == 0 else {}
    _Session(
        face,
        mountpoint,
        foreground=True,
        fsname="dpac",
        subtype="dpac",
        default_permissions=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=NAME_SECONDS,
        **everybody,
    )
