"""A mounted tree as a file system: lookups through changes to the checkpoint, and changes that leave the checkpoint alone.

Paths are relative to the root, which is empty; the kernel has checked permissions. Everything raises OSError; what cannot be
read of the checkpoint raises errors of the one tree.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from dpac_engine.core.entries import CHUNK_BYTES, DIGEST_BYTES, EntryType
from dpac_engine.io.files import make_folder
from dpac_engine.io.members.beneath import split
from dpac_engine.io.mounted_tree.content import DATA, Content, make_content
from dpac_engine.io.mounted_tree.lower import Lower
from dpac_engine.io.mounted_tree.nodes import NOTHING, Name, Node, NodeStore

_ROOT = 1
_FIRST_NEW = 1 << 60
_RECENT_MAX = 4096
"""Nodes that nobody holds but that were looked up of late."""
_TYPE_BITS = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
}
_TYPES = {bits: kind for kind, bits in _TYPE_BITS.items()}


class Listed(NamedTuple):
    """What a folder has."""

    name: bytes
    number: int
    type_bits: int


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class MountedTree:
    """One mount's file system. Safe for threads: changes come one at a time, content is read and written side by side."""

    def __init__(self, lower: Lower, folder: Path, boot: str) -> None:
        """`folder`, which is there, holds what is changed."""
        self._lower = lower
        self._folder = folder
        self._boot = boot
        self._owner = None if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        """Whose everything is; None: as it was captured."""
        self._store = NodeStore(folder)
        self._nodes, self._names = self._store.nodes, self._store.names
        self._clean: WeakValueDictionary[int, Node] = WeakValueDictionary()
        self._recent: OrderedDict[int, Node] = OrderedDict()
        self._opens: Counter[int] = Counter()
        self._contents: dict[int, Content] = {}
        self._lock = threading.RLock()
        self._next = max([_FIRST_NEW, *(n + 1 for n in self._nodes if n < 2 * _FIRST_NEW)])
        self._drop_leftovers()

    def _drop_leftovers(self) -> None:
        """Files that had no name any more, or were not entered yet, when the last run ended."""
        self._store.commit((), [number for number, node in self._nodes.items() if node.links <= 0])
        for number in [number for number, node in self._nodes.items() if node.links <= 0]:
            del self._nodes[number]
        make_folder(self._folder / "content")
        for place in (self._folder / "content").iterdir():
            node = self._nodes.get(int(place.name))
            if node is None or not node.changed:
                shutil.rmtree(place)

    # ------------------------------------------------------------ lookup

    def find(self, path: bytes) -> Node:
        """What a path names; ENOENT, ENOTDIR."""
        with self._lock:
            node = self._root()
            for name in path.split(b"/") if path else ():
                node = self._child(node, name)
            return node

    def _root(self) -> Node:
        return self._known(_ROOT) or self._from_lower(b"")

    def _known(self, number: int) -> Node | None:
        return self._nodes.get(number) or self._clean.get(number)

    def _child(self, folder: Node, name: bytes) -> Node:
        if folder.type is not EntryType.DIRECTORY:
            raise _error(errno.ENOTDIR)
        number = self._names.get(folder.number, {}).get(name)
        if number is not None:
            if number == NOTHING:
                raise _error(errno.ENOENT)
            return self._nodes[number]
        path = self._lower_path(folder, name)
        if path is None:
            raise _error(errno.ENOENT)
        return self._from_lower(path)

    def _lower_path(self, folder: Node, name: bytes) -> bytes | None:
        """Where the checkpoint has a name; None if it does not."""
        if folder.source is None:
            return None
        path = folder.source + b"/" + name if folder.source else name
        return path if self._lower.has(path) else None

    def _from_lower(self, path: bytes) -> Node:
        number = self._lower.number(path)
        known = self._known(number)
        if known is None:
            entry = self._lower.entry(path)
            uid, gid = self._owner or (entry.uid, entry.gid)
            known = self._clean[number] = Node(
                number=number,
                type=entry.type,
                mode=entry.mode,
                uid=uid,
                gid=gid,
                mtime_ns=entry.mtime_ns,
                ctime_ns=entry.mtime_ns,
                links=1 if entry.inode is None else 2,  # at least: how many is known once they are counted
                target=entry.target,
                device=entry.device,
                xattrs=dict(entry.xattrs),
                source=path,
                source_bytes=entry.size,
                lower_bytes=entry.size,
            )
        self._recent[number] = known
        self._recent.move_to_end(number)
        if len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)
        return known

    def status(self, node: Node) -> dict[str, int]:
        """See stat(2)."""
        size, mtime_ns, blocks = node.source_bytes, node.mtime_ns, 0
        if node.type is EntryType.SYMLINK:
            size = len(node.target)
        elif node.type is EntryType.FILE and node.changed:
            found = os.stat(self._place(node) / DATA)
            size, mtime_ns = found.st_size, found.st_mtime_ns
            blocks = max(found.st_blocks, -(-min(node.lower_bytes, size) // 512))
        elif node.type is EntryType.FILE and node.source is not None:
            stored = len(self._lower.entry(node.source).chunks) // DIGEST_BYTES * CHUNK_BYTES
            blocks = -(-min(stored, size) // 512)
        ctime_ns = max(node.ctime_ns, mtime_ns) if node.changed else node.ctime_ns
        return {
            "st_ino": node.number, "st_mode": _TYPE_BITS[node.type] | node.mode, "st_size": size,
            "st_nlink": 1 if node.type is EntryType.DIRECTORY else max(node.links, 0), "st_uid": node.uid,
            "st_gid": node.gid, "st_mtime": mtime_ns, "st_atime": mtime_ns, "st_ctime": ctime_ns,
            "st_blocks": blocks, "st_blksize": 131_072, "st_rdev": os.makedev(*node.device) if node.device else 0,
        }  # fmt: skip

    def listing(self, folder: Node) -> Iterator[Listed]:
        """What a folder has."""
        with self._lock:
            own = dict(self._names.get(folder.number, {}))
            known = {number: self._nodes[number] for number in own.values() if number != NOTHING}
        for name, number in own.items():
            if number != NOTHING:
                yield Listed(name, number, _TYPE_BITS[known[number].type])
        if folder.source is None:
            return
        for name in self._lower.children(folder.source):
            if name not in own:
                path = folder.source + b"/" + name if folder.source else name
                yield Listed(name, self._lower.number(path), _TYPE_BITS[self._lower.entry(path).type])

    # ------------------------------------------------------------ names

    def make(self, path: bytes, mode: int, uid: int, gid: int, target: bytes = b"", device: int = 0) -> Node:
        """Make what `mode` says; EEXIST."""
        with self._lock:
            folder, name = self._free(path)
            kind = _TYPES[stat.S_IFMT(mode) or stat.S_IFREG]
            permissions = stat.S_IMODE(mode)
            if folder.mode & stat.S_ISGID:
                gid = folder.gid
                permissions |= stat.S_ISGID if kind is EntryType.DIRECTORY else 0
            now = time.time_ns()
            number, self._next = self._next, self._next + 1
            places = (os.major(device), os.minor(device)) if device else None
            node = Node(number, kind, permissions, uid, gid, now, now, 1, target, places)
            if kind is EntryType.FILE:
                node.changed = True
                make_content(self._place(node), 0)
            self._enter([self._named(folder, name, node)], [node, self._modified(folder, now)])
            return node

    def link(self, node: Node, path: bytes) -> None:
        """Give a file another name; EEXIST."""
        with self._lock:
            folder, name = self._free(path)
            self._own(node)
            node.links += 1
            node.ctime_ns = now = time.time_ns()
            self._enter([self._named(folder, name, node)], [node, self._modified(folder, now)])

    def remove(self, path: bytes, *, folder: bool) -> None:
        """Remove a name: of an empty folder, or of anything else."""
        with self._lock:
            parent, name = self._parent(path)
            node = self._child(parent, name)
            self._check_removable(node, folder=folder)
            now = time.time_ns()
            changed, gone = self._unlinked(node, now)
            self._enter([self._unnamed(parent, name)], [*changed, self._modified(parent, now)], gone)

    def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """See rename(2); EEXIST if it shall not replace."""
        with self._lock:
            (old_folder, old_name), (folder, name) = self._parent(old), self._parent(new)
            node, there = self._child(old_folder, old_name), self._at(folder, name)
            if there is node:
                return
            now = time.time_ns()
            changed, gone = list[Node](), list[Node]()
            if there is not None:
                if not replace:
                    raise _error(errno.EEXIST)
                self._check_removable(there, folder=node.type is EntryType.DIRECTORY)
                changed, gone = self._unlinked(there, now)
            self._own(node)
            node.ctime_ns = now
            names = [self._unnamed(old_folder, old_name), self._named(folder, name, node)]
            folders = [self._modified(old_folder, now), self._modified(folder, now)]
            self._enter(names, [node, *changed, *folders], gone)

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        folder, name = split(path)
        return self.find(folder), name

    def _at(self, folder: Node, name: bytes) -> Node | None:
        try:
            return self._child(folder, name)
        except FileNotFoundError:
            return None

    def _free(self, path: bytes) -> tuple[Node, bytes]:
        folder, name = self._parent(path)
        if self._at(folder, name) is not None:
            raise _error(errno.EEXIST)
        return folder, name

    def _check_removable(self, node: Node, *, folder: bool) -> None:
        if folder and node.type is not EntryType.DIRECTORY:
            raise _error(errno.ENOTDIR)
        if not folder and node.type is EntryType.DIRECTORY:
            raise _error(errno.EISDIR)
        if folder and next(self.listing(node), None) is not None:
            raise _error(errno.ENOTEMPTY)

    def _unlinked(self, node: Node, now: int) -> tuple[list[Node], list[Node]]:
        """(changed, gone) of a node that loses a name."""
        self._own(node)
        node.links -= 1
        node.ctime_ns = now
        return ([node], []) if node.links > 0 else ([], [node])

    def _named(self, folder: Node, name: bytes, node: Node) -> Name:
        return folder.number, name, node.number

    def _unnamed(self, folder: Node, name: bytes) -> Name:
        return folder.number, name, None if self._lower_path(folder, name) is None else NOTHING

    def _modified(self, folder: Node, now: int) -> Node:
        self._own(folder)
        folder.mtime_ns = folder.ctime_ns = now
        return folder

    def _own(self, node: Node) -> None:
        """From now on the node is kept here, not looked up at the checkpoint, and how many names it has is exact."""
        if node.links > 0 and node.number not in self._nodes:
            if node.source is not None and node.type is not EntryType.DIRECTORY:
                node.links = self._lower.links(node.source)
            self._nodes[node.number] = node

    def _enter(self, names: Sequence[Name], nodes: Sequence[Node], gone: Sequence[Node] = ()) -> None:
        """Commit; only then names lead elsewhere."""
        self._store.commit(nodes, [node.number for node in gone], names)
        self._nodes.update({node.number: node for node in nodes})
        for folder, name, number in names:
            if number is None:
                self._names.get(folder, {}).pop(name, None)
            else:
                self._names.setdefault(folder, {})[name] = number
        for node in gone:
            self._nodes.pop(node.number, None)
            self._clean[node.number] = node  # whoever has it open keeps it
            self._names.pop(node.number, None)
            self._let_go(node)

    # ------------------------------------------------------------ attributes

    def change(self, node: Node, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """See chmod(2) and chown(2)."""
        with self._lock:
            self._own(node)
            node.mode = node.mode if mode is None else stat.S_IMODE(mode)
            node.uid, node.gid = node.uid if uid is None else uid, node.gid if gid is None else gid
            node.ctime_ns = time.time_ns()
            self._keep(node)

    def set_time(self, node: Node, mtime_ns: int) -> None:
        """See utimensat(2)."""
        with self._lock:
            self._own(node)
            node.mtime_ns, node.ctime_ns = mtime_ns, time.time_ns()
            if node.changed:
                os.utime(self._place(node) / DATA, ns=(mtime_ns, mtime_ns))
            self._keep(node)

    def set_xattr(self, node: Node, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """See setxattr(2), and removexattr(2) for None."""
        with self._lock:
            if (value is None or flags & os.XATTR_REPLACE) and name not in node.xattrs:
                raise _error(errno.ENODATA)
            if flags & os.XATTR_CREATE and name in node.xattrs:
                raise _error(errno.EEXIST)
            self._own(node)
            kept = {key: kept for key, kept in node.xattrs.items() if key != name}
            node.xattrs = kept if value is None else {**kept, name: value}
            node.ctime_ns = time.time_ns()
            self._keep(node)

    def _keep(self, node: Node) -> None:
        """Commit a node's attributes; one without a name is not kept."""
        if node.links > 0:
            self._store.commit([node])

    # ------------------------------------------------------------ content

    def open(self, node: Node) -> None:
        """Somebody has it open, until `release`."""
        with self._lock:
            self._opens[node.number] += 1

    def release(self, node: Node) -> None:
        """See `open`."""
        with self._lock:
            self._opens[node.number] -= 1
            if not self._opens[node.number]:
                del self._opens[node.number]
                if (content := self._contents.pop(node.number, None)) is not None:
                    content.close()
                self._let_go(node)

    def _let_go(self, node: Node) -> None:
        """Delete the content of a file that has no name and that nobody has open."""
        if node.links <= 0 and node.changed and not self._opens[node.number]:
            node.changed = False
            shutil.rmtree(self._place(node), ignore_errors=True)

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """See pread(2); of a file that is open."""
        if node.changed:
            return self._content(node).read(offset, length)
        return self._lower.read(node.source or b"", offset, length)

    def write(self, node: Node, offset: int, data: bytes) -> None:
        """See pwrite(2)."""
        self._changing(node).write(offset, data)

    def zero(self, node: Node, offset: int, length: int, *, extend: bool) -> None:
        """See fallocate(2)."""
        self._changing(node).zero(offset, length, extend=extend)

    def extend(self, node: Node, size_bytes: int) -> None:
        """See fallocate(2)."""
        self._changing(node).extend(size_bytes)

    def truncate(self, node: Node, size_bytes: int) -> None:
        """See truncate(2)."""
        self.open(node)
        try:
            content = self._changing(node)
            content.truncate(size_bytes)
            with self._lock:
                self._keep_cut(node, content)
        finally:
            self.release(node)

    def _keep_cut(self, node: Node, content: Content) -> None:
        if content.lower_bytes != node.lower_bytes:
            node.lower_bytes = content.lower_bytes
            self._keep(node)

    def _changing(self, node: Node) -> Content:
        if not node.changed:
            with self._lock:
                self._own(node)
                if not node.changed:
                    self._take_content(node)
        return self._content(node)

    def _take_content(self, node: Node) -> None:
        place = self._place(node)
        shutil.rmtree(place, ignore_errors=True)
        make_content(place, node.source_bytes)
        os.utime(place / DATA, ns=(node.mtime_ns, node.mtime_ns))
        node.changed = True
        try:
            self._keep(node)
        except OSError:
            node.changed = False
            raise

    def _content(self, node: Node) -> Content:
        content = self._contents.get(node.number)
        if content is not None:
            return content
        with self._lock:
            if node.number not in self._contents:
                path = node.source or b""
                content = Content(
                    self._place(node),
                    lambda offset, length: self._lower.read(path, offset, length),
                    node.source_bytes,
                    node.lower_bytes,
                    self._boot,
                )
                self._contents[node.number] = content
                self._keep_cut(node, content)
            return self._contents[node.number]

    def _place(self, node: Node) -> Path:
        return self._folder / "content" / str(node.number)

    def sync(self, node: Node) -> None:
        """See fsync(2): what was written, and every name and attribute."""
        if node.changed and node.number in self._opens:
            self._content(node).sync()
        self._store.sync()

    def disk(self) -> os.statvfs_result:
        """The disk that takes what is changed."""
        return os.statvfs(self._folder)

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            for content in self._contents.values():
                content.close()
            self._contents.clear()
            self._store.close()
