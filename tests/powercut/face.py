"""The FUSE face of a `PowerCutDisk`, and the process that serves it.

    python -m tests.powercut.face MOUNTPOINT

Commands come as lines of JSON on standard input, answers go to standard output:

    {"cut": SEED, "log": FILE}    from here on the mount shows what a power cut leaves; FILE tells what came before it
    {"new": true}                 an empty disk

Who has something open during a cut goes on seeing the old disk, which nobody else does. The kernel caches no names and no
attributes here, and no content beyond an open, so that nothing of the old disk is seen by whoever comes after.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import mfusepy

from tests.powercut.disk import PAGE_BYTES, SYNC_ATTRIBUTE, UNSYNCED_ATTRIBUTE, Node, PowerCutDisk

_PUNCH_HOLE, _KEEP_SIZE = 2, 1


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """One operation at a time; errors of the model carry their number to the kernel."""

    @wraps(method)
    def locked(self: Face, *arguments: Any) -> Any:
        with self.mutex:
            try:
                return method(self, *arguments)
            except FileNotFoundError:
                raise mfusepy.FuseOSError(errno.ENOENT) from None
            except FileExistsError:
                raise mfusepy.FuseOSError(errno.EEXIST) from None
            except NotADirectoryError:
                raise mfusepy.FuseOSError(errno.ENOTDIR) from None

    return locked


class Face(mfusepy.Operations):  # type: ignore[misc]
    """A file is known by its handle once it is open: it may have no name any more."""

    use_ns = True

    def __init__(self, disk: PowerCutDisk) -> None:
        self.disk = disk
        self.mutex = threading.RLock()
        self._open: dict[int, Node] = {}
        self._handles = 0

    def _of(self, path: str | None, handle: int | None) -> Node:
        if handle in self._open:
            return self._open[handle]
        if path is None:
            raise FileNotFoundError
        return self.disk.find(path)

    def _handle(self, node: Node) -> int:
        self._handles += 1
        self._open[self._handles] = node
        return self._handles

    @_alone
    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        """See stat(2)."""
        node = self._of(path, fh)
        return {
            "st_ino": node.number, "st_mode": node.mode, "st_nlink": max(node.links, 1), "st_size": node.size,
            "st_uid": node.uid, "st_gid": node.gid, "st_mtime": node.mtime_ns, "st_ctime": node.mtime_ns,
            "st_atime": node.mtime_ns, "st_blocks": len(node.pages) * PAGE_BYTES // 512, "st_blksize": PAGE_BYTES,
        }  # fmt: skip

    @_alone
    def readdir(self, path: str, fh: int) -> Iterator[Any]:
        """See readdir(3)."""
        folder = self.disk.find(path)
        nodes = {".": folder, "..": folder, **folder.names}
        return iter([(name, {"st_ino": node.number, "st_mode": node.mode}, 0) for name, node in nodes.items()])

    def _make(self, path: str, mode: int, target: str = "") -> Node:
        node = self.disk.make(path, mode, target)
        node.uid, node.gid, _ = mfusepy.fuse_get_context()
        node.mtime_ns = node.synced_mtime_ns = time.time_ns()
        return node

    @_alone
    def create(self, path: str, mode: int, flags: int = 0) -> int:
        """See open(2) with O_CREAT."""
        return self._handle(self._make(path, stat.S_IFREG | (mode & 0o7777)))

    @_alone
    def mknod(self, path: str, mode: int, dev: int) -> None:
        """See mknod(2): sockets too."""
        self._make(path, mode if stat.S_IFMT(mode) else stat.S_IFREG | mode)

    @_alone
    def mkdir(self, path: str, mode: int) -> None:
        """See mkdir(2)."""
        self._make(path, stat.S_IFDIR | (mode & 0o7777))

    @_alone
    def symlink(self, target: str, source: str) -> None:
        """See symlink(2); `target` is the new name."""
        self._make(target, stat.S_IFLNK | 0o777, source)

    @_alone
    def readlink(self, path: str) -> str:
        """See readlink(2)."""
        return self.disk.find(path).target

    @_alone
    def link(self, target: str, source: str) -> None:
        """See link(2); `target` is the new name."""
        self.disk.link(self.disk.find(source), target)

    @_alone
    def unlink(self, path: str) -> None:
        """See unlink(2)."""
        self.disk.remove(path)

    @_alone
    def rmdir(self, path: str) -> None:
        """See rmdir(2)."""
        self.disk.remove(path)

    @_alone
    def rename(self, old: str, new: str) -> None:
        """See rename(2)."""
        self.disk.rename(old, new)

    @_alone
    def open(self, path: str, flags: int) -> int:
        """See open(2)."""
        node = self.disk.find(path)
        if flags & os.O_TRUNC:
            self.disk.truncate(node, 0, time.time_ns())
        return self._handle(node)

    @_alone
    def release(self, path: str | None, fh: int) -> None:
        """The last close of a handle."""
        self._open.pop(fh, None)

    @_alone
    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        """See pread(2)."""
        return self.disk.read(self._of(path, fh), offset, size)

    @_alone
    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        """See pwrite(2)."""
        self.disk.write(self._of(path, fh), offset, data, time.time_ns())
        return len(data)

    @_alone
    def truncate(self, path: str | None, length: int, fh: int | None = None) -> None:
        """See truncate(2)."""
        self.disk.truncate(self._of(path, fh), length, time.time_ns())

    @_alone
    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fh: int) -> int:
        """See fallocate(2): holes only."""
        if mode != _PUNCH_HOLE | _KEEP_SIZE:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)
        self.disk.zero(self._of(path, fh), offset, size, time.time_ns())
        return 0

    @_alone
    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        """See fsync(2), fdatasync(2), and msync(2) of a shared mapping, which comes as the latter."""
        self.disk.sync(self._of(path, fh), data_only=bool(datasync))
        return 0

    @_alone
    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        """See fsync(2) of a folder."""
        self.disk.sync(self.disk.find(path))
        return 0

    @_alone
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """SYNC_ATTRIBUTE; no other can be set."""
        if name != SYNC_ATTRIBUTE:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)
        self.disk.sync_all()
        return 0

    @_alone
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """UNSYNCED_ATTRIBUTE; there is no other."""
        if name != UNSYNCED_ATTRIBUTE:
            raise mfusepy.FuseOSError(errno.ENODATA)
        return str(self.disk.find(path).unsynced_bytes).encode()

    @_alone
    def chmod(self, path: str, mode: int) -> int:
        """See chmod(2)."""
        node = self.disk.find(path)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    @_alone
    def chown(self, path: str, uid: int, gid: int) -> int:
        """See chown(2)."""
        node = self.disk.find(path)
        node.uid = node.uid if uid in (-1, 2**32 - 1) else uid
        node.gid = node.gid if gid in (-1, 2**32 - 1) else gid
        return 0

    @_alone
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        """See utimensat(2)."""
        self.disk.find(path).mtime_ns = times[1] if times else time.time_ns()
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        """See statvfs(3): 64 GiB, all free."""
        blocks = 64 * 2**30 // PAGE_BYTES
        return {"f_bsize": PAGE_BYTES, "f_frsize": PAGE_BYTES, "f_blocks": blocks, "f_bfree": blocks,
                "f_bavail": blocks, "f_files": 2**20, "f_ffree": 2**20, "f_namemax": 255}  # fmt: skip


def _obey(face: Face) -> None:
    """Answer commands until standard input ends; then the mount's owner is gone, and so is the disk."""
    for line in sys.stdin:
        command = json.loads(line)
        with face.mutex:
            if "cut" in command:
                face.disk = face.disk.after_power_cut(command["cut"])
                Path(command["log"]).write_text("\n".join(face.disk.log) + "\n")
            else:
                face.disk = PowerCutDisk()
        print(json.dumps(True), flush=True)
    os._exit(0)


def main() -> None:
    """Serve a disk until it is unmounted."""
    face = Face(PowerCutDisk())
    threading.Thread(target=_obey, args=(face,), daemon=True).start()
    options = {"hard_remove": True, "use_ino": True, "attr_timeout": 0, "entry_timeout": 0, "fsname": "powercut"}
    mfusepy.FUSE(face, sys.argv[1], foreground=True, nothreads=True, **options)


if __name__ == "__main__":
    main()
