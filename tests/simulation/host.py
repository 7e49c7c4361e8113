"""A host's disk as the engine meets it: the calls it makes of `os`, `pathlib`, `mmap` and `shutil`, on a `PowerCutDisk`.

Every call may be the last: `crash_in` counts them down, and the one at which it ends is done in part. Faults of the disk:
`full` (no room for anything new of the group's), `failing_syncs` (EIO, once for each), and rot of what lies on it.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.powercut.disk import PAGE_BYTES, SECTOR_BYTES, Node, PowerCutDisk
from tests.simulation.world import Ended, World

WRITE_NS = 300_000
SYNC_NS = 20_000_000
_descriptors = itertools.count(1 << 30)
"""Never used twice, since what is closed late must not close another's; and should one reach the real `os`, it is no file."""


class Status(NamedTuple):
    """What `os.stat_result` says of a file."""

    st_size: int
    st_mtime_ns: int
    st_ino: int
    st_dev: int = 1
    st_mode: int = stat.S_IFREG | 0o600


class Host:
    """One machine. Processes on it come and go; `world` is the one that runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.disk = PowerCutDisk()
        self.crash_in = 0
        """The process ends at the so manieth call that changes something; 0: it does not."""
        self._reserved: set[int] = set()
        self._room_pages: int | None = None
        self.failing_syncs = 0
        self.boots = 1
        self._open: dict[int, tuple[Node, str]] = {}
        self._maps: dict[int, bytearray] = {}
        self.watches: list[tuple[str, Callable[[bytes], None]]] = []
        """(root, who is told of a path below it that changed): of the process that runs."""

    @property
    def boot_id(self) -> str:
        """As the kernel has it."""
        return f"{self.boots}"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)  # constants, strerror

    # ------------------------------------------------------------------ lives

    def restart(self, power_cut_seed: int | None, *, forget_maps: bool = False) -> None:
        """The process ended; by a loss of power if there is a seed for what that leaves. `forget_maps`: read the disk anew."""
        self._open.clear()
        self.watches.clear()
        self.crash_in = self.failing_syncs = 0
        self._room_pages = None
        if power_cut_seed is not None:
            self.disk = self.disk.after_power_cut(power_cut_seed)
            self.boots += 1
        if power_cut_seed is not None or forget_maps:
            self._maps.clear()

    def _call(self, most_ns: int) -> bool:
        """Before a call that changes something; True if the process ends in the middle of it."""
        self.world.pause(most_ns)
        if self.crash_in:
            self.crash_in -= 1
            return self.crash_in == 0
        return False

    def _crash(self) -> None:
        self.world.note("the process ends in the middle of a call")
        self.world.dead = True
        raise Ended

    # ------------------------------------------------------------------ descriptors

    def open(self, path: object, flags: int, mode: int = 0o777) -> int:
        """See `os.open`."""
        self.world.check()
        name = str(path)
        try:
            node = self.disk.find(name)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            if self._call(WRITE_NS):
                self._crash()
            node = self.disk.make(name, stat.S_IFREG | mode)
        if flags & os.O_TRUNC and node.size:
            self._truncate(node, 0)
        return self.hand_out(node, name)

    def hand_out(self, node: Node, name: str) -> int:
        """A descriptor of it."""
        descriptor = next(_descriptors)
        self._open[descriptor] = (node, name)
        return descriptor

    def close(self, descriptor: int) -> None:
        """See `os.close`. One of an earlier life is closed already."""
        self._open.pop(descriptor, None)

    def node(self, descriptor: int) -> Node:
        """What a descriptor leads to."""
        self.world.check()
        if descriptor not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[descriptor][0]

    def fstat(self, descriptor: int) -> Status:
        """See `os.fstat`."""
        return _status(self.node(descriptor))

    def fchmod(self, descriptor: int, mode: int) -> None:
        """See `os.fchmod`."""
        self.node(descriptor)

    def flock(self, descriptor: int, _: int) -> None:
        """See `fcntl.flock`: nobody else is on this host."""
        self.node(descriptor)

    # ------------------------------------------------------------------ content

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """See `os.pread`."""
        return self.disk.read(self.node(descriptor), offset, length)

    def preadv(self, descriptor: int, buffers: list[bytearray], offset: int, _: int = 0) -> int:
        """See `os.preadv`; one buffer."""
        found = self.pread(descriptor, len(buffers[0]), offset)
        buffers[0][: len(found)] = found
        return len(found)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        """See `os.pwrite`."""
        node = self.node(descriptor)
        ends = self._call(WRITE_NS)
        if self._lacks_room(name := self._open[descriptor][1], node, offset, len(data)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        part = bytes(data)
        if ends:
            part = part[: self.world.chance.randrange(len(part) // SECTOR_BYTES + 1) * SECTOR_BYTES]
        self._store(node, offset, part)
        if ends:
            self._crash()
        return len(part)

    def pwritev(self, descriptor: int, parts: list[bytes | memoryview], offset: int) -> int:
        """See `os.pwritev`."""
        return self.pwrite(descriptor, b"".join(parts), offset)

    def _store(self, node: Node, offset: int, data: bytes) -> None:
        self.disk.write(node, offset, data, self.world.now_ns)
        mapped = self._maps.get(node.number)
        if mapped is not None:
            mapped[offset : offset + len(data)] = data

    def _lacks_room(self, name: str, node: Node, offset: int, length: int) -> bool:
        # What the group keeps lies on one disk, the volumes on others.
        if self._room_pages is None or "/group/" not in name or node.number in self._reserved:
            return False
        pages = range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        wanted = sum(page not in node.pages for page in pages)
        return wanted > 0 and self._pages_below(self.disk.find("/host/group")) + wanted > self._room_pages

    def _pages_below(self, node: Node) -> int:
        own = -(-node.size // PAGE_BYTES) if node.number in self._reserved else len(node.pages)
        return own + sum(self._pages_below(child) for child in node.names.values())

    @property
    def full(self) -> bool:
        """Nothing more fits on the disk of the group's folder than what is deleted there."""
        return self._room_pages is not None

    def fill(self, room_pages: int | None) -> None:
        """So many pages are left there; None: as many as anybody wants."""
        self._room_pages = None if room_pages is None else self._pages_below(self.disk.find("/host/group")) + room_pages

    def ftruncate(self, descriptor: int, size: int) -> None:
        """See `os.ftruncate`."""
        if self._call(WRITE_NS):
            self._crash()
        self._truncate(self.node(descriptor), size)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        """See `os.posix_fallocate`."""
        node = self.node(descriptor)
        if self._call(WRITE_NS):
            self._crash()
        if self._lacks_room(name := self._open[descriptor][1], node, offset, length):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if self.fstat(descriptor).st_size < offset + length:
            self._truncate(node, offset + length)
        self._reserved.add(node.number)

    def _truncate(self, node: Node, size: int) -> None:
        self.disk.truncate(node, size, self.world.now_ns)

    def punch_hole(self, descriptor: int, offset: int, length: int) -> None:
        """See `io.holes.punch_hole`."""
        if length > 0:
            node = self.node(descriptor)
            ends = self._call(WRITE_NS)
            self.disk.zero(node, offset, length, self.world.now_ns)
            if ends:
                self._crash()

    def data_ranges(self, descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See `io.holes.data_ranges`; what is all zeroes counts as a hole, as it may."""
        node = self.node(descriptor)
        for page in sorted(page for page, content in node.pages.items() if any(content)):
            begin, stop = max(page * PAGE_BYTES, start), min((page + 1) * PAGE_BYTES, end, node.size)
            if begin < stop:
                yield begin, stop

    def mmap(self, descriptor: int, length: int, **_: object) -> bytearray:
        """See `mmap.mmap`: what is written by calls shows in it."""
        node = self.node(descriptor)
        if node.number not in self._maps:
            self._maps[node.number] = bytearray(self.disk.read(node, 0, length).ljust(length, b"\0"))
        return self._maps[node.number]

    # ------------------------------------------------------------------ syncing

    def fsync(self, descriptor: int, *, data_only: bool = False) -> None:
        """See `os.fsync`."""
        node = self.node(descriptor)
        if self._call(SYNC_NS):
            self._crash()
        if self.failing_syncs and self._open[descriptor][1].endswith(".spool"):
            self.failing_syncs -= 1
            self.world.note("a sync of the spool fails")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.disk.sync(node, data_only=data_only)

    def fdatasync(self, descriptor: int) -> None:
        """See `os.fdatasync`."""
        self.fsync(descriptor, data_only=True)

    # ------------------------------------------------------------------ names

    def replace(self, old: object, new: object) -> None:
        """See `os.replace`."""
        if self._call(WRITE_NS):
            self._crash()
        self.disk.rename(str(old), str(new))

    def unlink(self, path: object) -> None:
        """See `os.unlink`."""
        if self._call(WRITE_NS):
            self._crash()
        self.disk.remove(str(path))

    def mkdir(self, path: object) -> None:
        """See `os.mkdir`."""
        if self._call(WRITE_NS):
            self._crash()
        self.disk.make(str(path), stat.S_IFDIR | 0o700)

    def rmtree(self, path: object, ignore_errors: bool = False) -> None:
        """See `shutil.rmtree`."""
        try:
            names = sorted(self.disk.find(str(path)).names)
        except FileNotFoundError:
            if not ignore_errors:
                raise
            return
        for name in names:
            child = f"{path}/{name}"
            if self.disk.find(child).is_folder:
                self.rmtree(child)
            else:
                self.unlink(child)
        self.unlink(path)

    def status(self, path: object) -> Status:
        """See `os.stat`."""
        self.world.check()
        return _status(self.disk.find(str(path)))

    def statvfs(self, _: object) -> SimpleNamespace:
        """See `os.statvfs`: volumes have all the room they want."""
        return SimpleNamespace(f_bavail=2**40, f_frsize=PAGE_BYTES)

    # ------------------------------------------------------------------ rot

    def rot(self, node: Node, offset: int, chance: Random) -> None:
        """A bit of the medium, and of what was cached from it, is another one."""
        page, at = divmod(offset, PAGE_BYTES)
        content = bytearray(node.pages.get(page, bytes(PAGE_BYTES)))
        content[at] ^= 1 << chance.randrange(8)
        node.pages[page] = node.synced_pages[page] = bytes(content)
        if node.number in self._maps:
            self._maps[node.number][offset] = content[at]


def _status(node: Node) -> Status:
    return Status(node.size, node.mtime_ns, node.number)


_host: Host | None = None


def enter(host: Host | None) -> None:
    """From now on paths and `proxy` are of this host."""
    global _host
    _host = host


def current() -> Host:
    """The host in use."""
    assert _host is not None
    return _host


class Proxy:
    """A module that leads to the host in use."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current() if _host is not None else os, name)


class HostPath(PurePosixPath):
    """`pathlib.Path` on the host in use."""

    def stat(self) -> Status:
        """See `pathlib.Path.stat`."""
        return current().status(self)

    def exists(self) -> bool:
        """See `pathlib.Path.exists`."""
        try:
            self.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_dir(self) -> bool:
        """See `pathlib.Path.is_dir`."""
        return self.exists() and current().disk.find(str(self)).is_folder

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """See `pathlib.Path.mkdir`."""
        try:
            current().mkdir(self)
        except FileExistsError:
            if not exist_ok:
                raise

    def glob(self, pattern: str) -> list[HostPath]:
        """See `pathlib.Path.glob`; of names in the folder."""
        names = current().disk.find(str(self)).names if self.exists() else {}
        return [self / name for name in sorted(names) if fnmatch(name, pattern)]

    def unlink(self, missing_ok: bool = False) -> None:
        """See `pathlib.Path.unlink`."""
        try:
            current().unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, new: object) -> None:
        """See `pathlib.Path.rename`."""
        current().replace(self, new)

    def read_bytes(self) -> bytes:
        """See `pathlib.Path.read_bytes`."""
        node = current().disk.find(str(self))
        current().world.check()
        return current().disk.read(node, 0, node.size)


class OpenedFile:
    """`open(descriptor, "wb")`."""

    def __init__(self, descriptor: int, *_: object, **__: object) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> OpenedFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        """Written at the begin."""
        current().pwrite(self._descriptor, data, 0)
