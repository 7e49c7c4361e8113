"""A disk under a file system, as a power cut leaves it: what was not synced is there, or not, or in part.

The model, which is stricter than ext4 or XFS with their defaults:

* What is written lies in a volatile cache until `sync` of that file (fsync and fdatasync: data and size). Until then each
  512-byte sector is on the medium as it was after any one of the writes since the last sync, whichever, or before all of
  them; the size likewise; what was never written within it reads as zeroes. A sector is never torn.
* The modification time is durable by fsync alone.
* A name (created, linked, renamed, removed) is durable once its folder was synced. Of the changes in one folder a
  power cut keeps a prefix; folders are independent of each other, but a rename between two of them is one step. A
  synced file whose name is not durable is lost, and so is everything below such a folder.
* Owners and modes are durable at once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

PAGE_BYTES = 4096
SECTOR_BYTES = 512
LOG_ENTRIES = 4000
SYNC_ATTRIBUTE = "user.powercut.sync"
"""Set on any file, it makes everything durable: what syncfs(2) does, of which FUSE is not told."""
UNSYNCED_ATTRIBUTE = "user.powercut.unsynced"
"""How many bytes a sync of the file would have to write."""
_ZEROES = bytes(PAGE_BYTES)
_SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(eq=False)
class Node:
    """A file, folder or symbolic link: as processes see it, and what the medium has of it."""

    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    target: str = ""
    mtime_ns: int = 0
    size: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, Node] = field(default_factory=dict)
    synced_mtime_ns: int = 0
    synced_size: int = 0
    synced_pages: dict[int, bytes] = field(default_factory=dict)
    synced_names: dict[str, Node] = field(default_factory=dict)
    unsynced_pages: dict[int, list[bytes]] = field(default_factory=dict)
    """Page -> what it held after each write since the last sync."""
    unsynced_sizes: list[int] = field(default_factory=list)
    unsynced_names: list[_NameChange] = field(default_factory=list)
    links: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it holds names."""
        return stat.S_ISDIR(self.mode)

    @property
    def unsynced_bytes(self) -> int:
        """What a sync would have to write, whole pages."""
        return len(self.unsynced_pages) * PAGE_BYTES


@dataclass(eq=False)
class _NameChange:
    """Names that change in one step: (folder, name, what it names from now on or None)."""

    changes: list[tuple[Node, str, Node | None]]


class PowerCutDisk:
    """Files in memory. Not for threads: whoever shares it among them locks."""

    def __init__(self) -> None:
        self._next_number = 1
        self.root = self._node(stat.S_IFDIR | 0o755)
        self.log: deque[str] = deque(maxlen=LOG_ENTRIES)
        """The newest operations, for whoever asks what a cut came after."""

    def _node(self, mode: int) -> Node:
        self._next_number += 1
        return Node(self._next_number - 1, mode)

    # ------------------------------------------------------------------ names

    def find(self, path: str) -> Node:
        """What a path names; no symbolic link is followed. FileNotFoundError or NotADirectoryError."""
        node = self.root
        for name in path.strip("/").split("/"):
            if not name:
                continue
            if not node.is_folder:
                raise NotADirectoryError(path)
            if name not in node.names:
                raise FileNotFoundError(path)
            node = node.names[name]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        folder, _, name = path.rstrip("/").rpartition("/")
        return self.find(folder), name

    def make(self, path: str, mode: int, target: str = "") -> Node:
        """A new file, folder, link or socket, by its `mode`. FileExistsError if the name is taken."""
        node = self._node(mode)
        node.target, node.size = target, len(target)
        node.synced_size = node.size
        self.link(node, path)
        return node

    def link(self, node: Node, path: str) -> None:
        """Give a node a (further) name. FileExistsError if it is taken."""
        folder, name = self._place(path)
        if name in folder.names:
            raise FileExistsError(path)
        self._change(f"name {path} = {node.number}", [(folder, name, node)])

    def remove(self, path: str) -> None:
        """Take a name away. OSError if it names a folder that is not empty."""
        folder, name = self._place(path)
        if self.find(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._change(f"remove {path}", [(folder, name, None)])

    def rename(self, old: str, new: str) -> None:
        """Move a name, atomically, over whatever `new` was. OSError if that is a folder that is not empty."""
        node = self.find(old)
        old_folder, old_name = self._place(old)
        new_folder, new_name = self._place(new)
        there = new_folder.names.get(new_name)
        if there is node:
            return
        if there is not None and there.names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), new)
        self._change(f"rename {old} {new}", [(old_folder, old_name, None), (new_folder, new_name, node)])

    def _change(self, what: str, changes: list[tuple[Node, str, Node | None]]) -> None:
        self.log.append(what)
        change = _NameChange(changes)
        for folder, name, node in changes:
            gone = folder.names.pop(name, None)
            if gone is not None:
                gone.links -= 1
            if node is not None:
                folder.names[name] = node
                node.links += 1
        for folder in {id(folder): folder for folder, _, _ in changes}.values():
            folder.unsynced_names.append(change)

    # ------------------------------------------------------------------ content

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Bytes, fewer at the end."""
        length = max(0, min(length, node.size - offset))
        first, end = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
        found = b"".join([node.pages.get(page, _ZEROES) for page in range(first, end)])
        return found[offset - first * PAGE_BYTES :][:length]

    def write(self, node: Node, offset: int, data: bytes, now_ns: int) -> None:
        """Write into the cache."""
        self.log.append(f"write {node.number} {offset}+{len(data)}")
        at, end = offset, offset + len(data)
        while at < end:
            page, begin = divmod(at, PAGE_BYTES)
            stop = min(PAGE_BYTES, begin + end - at)
            part = data[at - offset : at - offset + stop - begin]
            if len(part) < PAGE_BYTES:
                old = node.pages.get(page, _ZEROES)
                part = old[:begin] + part + old[stop:]
            self._set_page(node, page, part)
            at += stop - begin
        if end > node.size:
            self._set_size(node, end)
        node.mtime_ns = now_ns

    def zero(self, node: Node, offset: int, length: int, now_ns: int) -> None:
        """Punch a hole: the range reads as zeroes, the size stays."""
        self.log.append(f"zero {node.number} {offset}+{length}")
        size, length = node.size, max(0, min(length, node.size - offset))
        for page in [page for page in node.pages if page * PAGE_BYTES < offset + length]:
            begin = max(offset - page * PAGE_BYTES, 0)
            stop = min(offset + length - page * PAGE_BYTES, PAGE_BYTES)
            if begin < stop:
                old = node.pages[page]
                self._set_page(node, page, old[:begin] + bytes(stop - begin) + old[stop:])
        assert node.size == size
        node.mtime_ns = now_ns

    def truncate(self, node: Node, size: int, now_ns: int) -> None:
        """Set the size."""
        if size < node.size:
            self.zero(node, size, node.size - size, now_ns)
        self.log.append(f"truncate {node.number} {size}")
        self._set_size(node, size)
        node.mtime_ns = now_ns

    def _set_page(self, node: Node, page: int, content: bytes) -> None:
        if content == _ZEROES:
            content = _ZEROES  # one object for all of them: preallocated files cost nothing
        node.pages[page] = content
        node.unsynced_pages.setdefault(page, []).append(content)

    def _set_size(self, node: Node, size: int) -> None:
        node.size = size
        node.unsynced_sizes.append(size)

    # ------------------------------------------------------------------ syncing

    def sync(self, node: Node, *, data_only: bool = False) -> None:
        """fsync, or fdatasync with `data_only`, of a file or a folder."""
        self.log.append(f"{'fdatasync' if data_only else 'fsync'} {node.number}")
        for page in node.unsynced_pages:
            node.synced_pages[page] = node.pages[page]
        node.unsynced_pages.clear()
        node.unsynced_sizes.clear()
        node.synced_size = node.size
        if not data_only:
            node.synced_mtime_ns = node.mtime_ns
        if node.unsynced_names:
            self._keep(node.unsynced_names[-1])

    def sync_all(self) -> None:
        """syncfs: everything."""
        for node in self.nodes():
            self.sync(node)

    def _keep(self, change: _NameChange) -> None:
        """Bring a change of names, and every one before it in its folders, to the medium."""
        for folder, _, _ in change.changes:
            while change in folder.unsynced_names and folder.unsynced_names[0] is not change:
                self._keep(folder.unsynced_names[0])
        for folder, name, node in change.changes:
            folder.synced_names.pop(name, None)
            if node is not None:
                folder.synced_names[name] = node
        for folder, _, _ in change.changes:
            if change in folder.unsynced_names:
                folder.unsynced_names.remove(change)

    def nodes(self) -> Iterator[Node]:
        """Every node that has a name, once."""
        seen, left = {id(self.root)}, [self.root]
        while left:
            node = left.pop()
            yield node
            for child in node.names.values():
                if id(child) not in seen:
                    seen.add(id(child))
                    left.append(child)

    # ------------------------------------------------------------------ the cut

    def after_power_cut(self, seed: int) -> PowerCutDisk:
        """What a machine that starts again would find; this disk is used up. Seed 0 keeps nothing that was not synced."""
        chance = Random(seed)
        names_share, data_share = (chance.choice(_SHARES), chance.choice(_SHARES)) if seed else (0.0, 0.0)
        self.log.append(f"power cut, seed {seed}: keeps {names_share} of names, {data_share} of data")
        for folder in [node for node in self.nodes() if node.is_folder]:
            count = _some(chance, names_share, len(folder.unsynced_names))
            if count:
                self._keep(folder.unsynced_names[count - 1])
        left = PowerCutDisk()
        left.log = self.log
        left._next_number = self._next_number
        left.root = self._survivor(self.root, chance, data_share, {})
        return left

    def _survivor(self, node: Node, chance: Random, share: float, known: dict[int, Node]) -> Node:
        if node.number in known:
            known[node.number].links += 1
            return known[node.number]
        new = known[node.number] = Node(node.number, node.mode, node.uid, node.gid, node.target, links=1)
        kept = chance.random() < share
        new.mtime_ns = new.synced_mtime_ns = node.mtime_ns if kept else node.synced_mtime_ns
        sizes = [node.synced_size, *node.unsynced_sizes]
        new.size = new.synced_size = sizes[_some(chance, share, len(sizes) - 1)]
        pages = dict(node.synced_pages)
        for page, versions in node.unsynced_pages.items():
            pages[page] = _torn(chance, share, [node.synced_pages.get(page, _ZEROES), *versions])
        end, rest = divmod(new.size, PAGE_BYTES)
        if end in pages:
            pages[end] = pages[end][:rest].ljust(PAGE_BYTES, b"\0")
        new.pages = {page: content for page, content in pages.items() if page * PAGE_BYTES < new.size}
        new.synced_pages = dict(new.pages)
        for name, child in sorted(node.synced_names.items()):
            new.names[name] = new.synced_names[name] = self._survivor(child, chance, share, known)
        return new


def _some(chance: Random, share: float, count: int) -> int:
    """How many of so many changes in a row are kept."""
    if share in (0.0, 1.0) or not count:
        return round(share) * count
    return chance.choice([0, count, chance.randint(0, count)])


def _torn(chance: Random, share: float, versions: list[bytes]) -> bytes:
    """A page of which every sector is of any one version."""
    last = len(versions) - 1
    if share in (0.0, 1.0):
        return versions[round(share) * last]
    sectors = []
    for at in range(0, PAGE_BYTES, SECTOR_BYTES):
        kept = 0 if chance.random() >= share else chance.choice([last, chance.randint(1, last)])
        sectors.append(versions[kept][at : at + SECTOR_BYTES])
    return b"".join(sectors)
