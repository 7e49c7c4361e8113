"""What directory members ask of the operating system, on the simulated host: calls relative to folders, SQLite, inotify.

A tree lies on a disk of its own that loses nothing, since what an application loses with its host is not dpac's; the index lies on the group's.
File systems stamp files with a clock of 4 ms: two changes within one tick bear one time.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from dpac_engine.io.files import replace_file
from tests.powercut.disk import Node
from tests.simulation import host, world

CALL_NS = 3_000_000
TICK_NS = 4_000_000
_SECTOR = 512


def tick_ns() -> int:
    """What a file that changes now is stamped with."""
    return world.current().now_ns // TICK_NS * TICK_NS


class FullStatus(NamedTuple):
    """What `os.stat_result` says of anything in a tree. Nothing there but writes and renames changes a file: one time does for two."""

    st_mode: int
    st_ino: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_nlink: int
    st_blocks: int
    st_dev: int = 7
    st_uid: int = 1000
    st_gid: int = 1000
    st_rdev: int = 0


def _status(node: Node) -> FullStatus:
    blocks = -(-node.size // _SECTOR)
    return FullStatus(node.mode, node.number, node.size, node.mtime_ns, node.mtime_ns, 1 + node.is_folder, blocks)


class Entry(NamedTuple):
    """What `os.scandir` gives."""

    name: str
    node: Node

    def stat(self, *, follow_symlinks: bool) -> FullStatus:
        """See `os.DirEntry.stat`."""
        assert not follow_symlinks
        return _status(self.node)


class TreeCalls:
    """The module `os`, for what reads trees."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)  # constants, fsencode, strerror

    def _at(self, path: Any, dir_fd: int | None) -> Node:
        world.current().pause(CALL_NS)
        if dir_fd is None:
            return host.current().disk.find(os.fsdecode(path))
        folder = host.current().node(dir_fd)
        name = os.fsdecode(path)
        if name == "..":
            return folder  # of the same file system, which is all that is asked of it
        if not folder.is_folder:
            raise NotADirectoryError(name)
        if name not in folder.names:
            raise FileNotFoundError(name)
        return folder.names[name]

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """See `os.open`, for reading."""
        node = self._at(path, dir_fd)
        if flags & os.O_DIRECTORY and not node.is_folder:
            raise NotADirectoryError(os.fsdecode(path))
        return host.current().hand_out(node, os.fsdecode(path))

    def dup(self, descriptor: int) -> int:
        """See `os.dup`."""
        return host.current().hand_out(host.current().node(descriptor), "")

    def close(self, descriptor: int) -> None:
        """See `os.close`."""
        host.current().close(descriptor)

    def fstat(self, descriptor: int) -> FullStatus:
        """See `os.fstat`."""
        return _status(host.current().node(descriptor))

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> FullStatus:
        """See `os.stat`."""
        return _status(self._at(path, dir_fd))

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """See `os.pread`."""
        node = host.current().node(descriptor)
        world.current().pause(CALL_NS)
        return host.current().disk.read(node, offset, length)

    @contextmanager
    def scandir(self, descriptor: int) -> Iterator[Iterator[Entry]]:
        """See `os.scandir`: names are listed at once, what they are is looked at one by one."""
        world.current().pause(CALL_NS)
        listed = sorted(host.current().node(descriptor).names.items())

        def entries() -> Iterator[Entry]:
            for name, node in listed:
                world.current().pause(CALL_NS)
                yield Entry(name, node)

        yield entries()

    def listdir(self, descriptor: int) -> list[str]:
        """See `os.listdir`."""
        return sorted(host.current().node(descriptor).names)

    def listxattr(self, at: object, *, follow_symlinks: bool) -> list[str]:
        """See `os.listxattr`: there are none."""
        return []


class Index:
    """An SQLite connection whose file lies on the simulated host: what is committed is there after a kill and a loss of power."""

    def __init__(self, path: host.HostPath) -> None:
        self._path = path
        self._content = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if path.exists():
            self._content.deserialize(path.read_bytes())

    def execute(self, statement: str) -> Any:
        """See `sqlite3.Connection.execute`."""
        done = self._content.execute(statement)
        if statement == "COMMIT":
            self._store()
        return done

    def _store(self) -> None:
        try:
            replace_file(self._path, self._content.serialize())  # type: ignore[arg-type]
        except OSError as error:
            raise sqlite3.OperationalError("database or disk is full") from error

    @property
    def in_transaction(self) -> bool:
        """See `sqlite3.Connection.in_transaction`."""
        return self._content.in_transaction

    def executemany(self, statement: str, rows: Any) -> Any:
        """See `sqlite3.Connection.executemany`."""
        return self._content.executemany(statement, rows)

    def executescript(self, statements: str) -> Any:
        """See `sqlite3.Connection.executescript`."""
        return self._content.executescript(statements)

    def close(self) -> None:
        """See `sqlite3.Connection.close`."""
        self._content.close()


def _connect(path: host.HostPath, **_: object) -> Index:
    return Index(path)


class Watch:
    """`watch.TreeWatch`: hints come late, and some are lost; now and then the watch is."""

    def __init__(
        self, root: object, folders: Sequence[bytes] | None, gather_ms: int, hinted: Callable[[set[bytes] | None], None]
    ) -> None:
        self.folders = folders
        self._gather_ns = gather_ms * 10**6
        self._hinted = hinted
        self._root = str(root)

    def start(self) -> None:
        """See `TreeWatch.start`."""
        host.current().watches.append((self._root, self._changed))

    def stop(self) -> None:
        """See `TreeWatch.stop`."""
        watches = host.current().watches
        watches[:] = [each for each in watches if each[1] != self._changed]

    def _changed(self, path: bytes) -> None:
        at = world.current()
        kind = at.chance.random()
        if kind < 0.1:
            return

        def tell() -> None:
            at.sleep(self._gather_ns / 1e9)
            self._hinted(None if kind < 0.12 else {path})

        at.spawn(tell)


OS: Any = TreeCalls()
SQLITE = SimpleNamespace(connect=_connect, Error=sqlite3.Error, Connection=Index)
TIME = SimpleNamespace(
    sleep=lambda seconds: world.current().sleep(seconds),
    clock_gettime_ns=lambda _: world.current().now_ns,
    CLOCK_REALTIME=time.CLOCK_REALTIME,
)
"""The module `time`, for what reads files."""
FOLDER_MODE = stat.S_IFDIR | 0o755
FILE_MODE = stat.S_IFREG | 0o644
