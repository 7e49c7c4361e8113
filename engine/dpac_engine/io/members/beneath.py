"""Reaching paths beneath a folder without ever following a symlink.

Names are opened one component at a time with O_NOFOLLOW, so neither a link that someone puts into a tree while it is
read, nor an entry of a damaged journal, leads outside of it. Paths may be longer than PATH_MAX.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Self

_FOLDERS_OPEN_MAX = 64
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def split(path: bytes) -> tuple[bytes, bytes]:
    """Folder and name of a relative path; the folder is empty for a name right below the root."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


class Beneath:
    """The tree below `root`; paths are relative bytes, empty for the root itself. For one thread at a time.

    Raises OSError as `os.open` does: NotADirectoryError (or ELOOP) where a component is not a real folder.
    """

    def __init__(self, root: Path | bytes) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        self.forget()
        os.close(self.root_fd)

    def forget(self) -> None:
        """Close the folders kept open, so that each is looked up anew."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def folder(self, path: bytes) -> int:
        """A descriptor of the folder; valid until the next call, owned by this object."""
        if not path:
            return self.root_fd
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        known = path
        names: list[bytes] = []
        while known and known not in self._open:
            known, name = split(known)
            names.append(name)
        fd = self._open[known] if known else self.root_fd
        while names:
            name = names.pop()
            known = known + b"/" + name if known else name
            fd = os.open(name, _OPEN_FOLDER, dir_fd=fd)
            self._open[known] = fd
            # The newest is never the one evicted, so `fd` stays valid for the next step.
            if len(self._open) > _FOLDERS_OPEN_MAX:
                os.close(self._open.popitem(last=False)[1])
        return fd

    def lstat(self, path: bytes) -> os.stat_result:
        """What lies at the path itself."""
        if not path:
            return os.fstat(self.root_fd)
        folder, name = split(path)
        return os.stat(name, dir_fd=self.folder(folder), follow_symlinks=False)

    def open(self, path: bytes, flags: int, mode: int = 0) -> int:
        """A descriptor that the caller closes. Never waits: a FIFO put there meanwhile does not block."""
        if not path:
            return os.dup(self.root_fd)
        folder, name = split(path)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(name, flags, mode, dir_fd=self.folder(folder))

    def readlink(self, path: bytes) -> bytes:
        """Where the symlink points."""
        folder, name = split(path)
        return os.readlink(name, dir_fd=self.folder(folder))

    def by_proc(self, path: bytes) -> bytes:
        """A name for calls that take no folder descriptor; valid until the next call."""
        if not path:
            return b"/proc/self/fd/%d" % self.root_fd
        folder, name = split(path)
        return b"/proc/self/fd/%d/%s" % (self.folder(folder), name)
