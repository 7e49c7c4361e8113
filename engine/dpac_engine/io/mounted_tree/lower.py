"""What a checkpoint holds of a directory: the layer that is only read.

Names come from the index of the image alone, so that a tree of any size is there at once; entries and content are read when
somebody asks for them, and every chunk is checked against its hash.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Protocol

from dpac_api.errors import Corruption, NotFound
from dpac_engine.core.entries import CHUNK_BYTES, DIGEST_BYTES, ROOT, Entry, EntryType, decode_entry, digest_of
from dpac_engine.io.members.tree_restore import IMPLIED_FOLDER, verified

CHUNKS_BYTES_MAX = 32 * 2**20
ENTRIES_MAX = 16_384
_FIRST_LISTED = 2
_SHARED = 1 << 62
_IMPLIED = 1 << 61
_AFTER_SLASH = b"0"
"""The byte that follows `/`: what lies below a folder sorts before it."""
_Shared = tuple[tuple[int, int], bytes]


class StoredTree(Protocol):
    """Where entries and chunks lie (`core.image.TreeImage`, `LocalCopy`)."""

    def paths(self) -> list[bytes]:
        """Every path that has an entry, sorted."""

    def read_entry(self, path: bytes) -> bytes:
        """The encoded entry of one of them."""

    def read_chunk(self, digest: bytes) -> bytes:
        """The content with that hash."""


class Lower:
    """A tree that does not change; safe for threads. The root's path is empty.

    Reading raises errors of the one tree: Corruption for what is damaged, Temporary while the target is away.
    """

    def __init__(self, stored: StoredTree) -> None:
        self.stored = stored
        """May be replaced by another place that holds the same."""
        self._paths = [path for path in stored.paths() if path != ROOT]
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._chunks_bytes = 0
        self._lock = threading.Lock()
        self._links: Counter[_Shared] | None = None

    # ------------------------------------------------------------ names

    def has(self, path: bytes) -> bool:
        """Whether anything is there: an entry, or a folder that one implies."""
        return self._listed(path) is not None or self._implied(path)

    def _listed(self, path: bytes) -> int | None:
        at = bisect_left(self._paths, path)
        return at if at < len(self._paths) and self._paths[at] == path else None

    def _implied(self, path: bytes) -> bool:
        below = path + b"/"
        at = bisect_left(self._paths, below)
        return at < len(self._paths) and self._paths[at].startswith(below)

    def children(self, folder: bytes) -> Iterator[bytes]:
        """The names in a folder. Corruption for one that no folder can have."""
        prefix = folder + b"/" if folder else b""
        at, seen = bisect_left(self._paths, prefix), set[bytes]()
        while at < len(self._paths) and (path := self._paths[at]).startswith(prefix):
            name, _, below = path[len(prefix) :].partition(b"/")
            if name in (b"", b".", b"..") or b"\0" in name:
                raise Corruption(f"The entry {path!r} is no path below the member's root.")
            if name not in seen:
                seen.add(name)
                yield name
            at = bisect_left(self._paths, prefix + name + _AFTER_SLASH, at) if below else at + 1

    # ------------------------------------------------------------ entries

    def entry(self, path: bytes) -> Entry:
        """The entry of a path that is there; a folder that others imply has a made one."""
        with self._lock:
            known = self._entries.get(path)
            if known is not None:
                self._entries.move_to_end(path)
                return known
        entry = self._decoded(path)
        with self._lock:
            self._entries[path] = entry
            while len(self._entries) > ENTRIES_MAX:
                self._entries.popitem(last=False)
        return entry

    def _decoded(self, path: bytes) -> Entry:
        if path and self._listed(path) is None:
            return IMPLIED_FOLDER
        try:
            value = self.stored.read_entry(path or ROOT)
        except (NotFound, KeyError):
            return IMPLIED_FOLDER
        entry = decode_entry(value, lambda digest: verified(self.stored.read_chunk(digest), digest))
        if entry.type is EntryType.FILE:
            _check_pieces(path, entry)
        elif not path and entry.type is not EntryType.DIRECTORY:
            raise Corruption("The entry of the member's root is no folder.")
        return entry

    def number(self, path: bytes) -> int:
        """The inode number, the same at every mount of the checkpoint; names of one file that were captured alike share it."""
        if not path:
            return 1
        at = self._listed(path)
        if at is None:
            return _IMPLIED | _number_of(path)
        shared = _shared(self.entry(path))
        return at + _FIRST_LISTED if shared is None else _SHARED | _number_of(repr(shared).encode())

    def links(self, path: bytes) -> int:
        """How many names a file has. Reads every entry, at the first call for one that has others."""
        shared = _shared(self.entry(path))
        if shared is None:
            return 1
        if self._links is None:
            found = (_shared(self.entry(each)) for each in self._paths)
            self._links = Counter(each for each in found if each is not None)
        return self._links[shared]

    # ------------------------------------------------------------ content

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer where it ends."""
        entry = self.entry(path)
        at, end = offset, min(offset + length, entry.size)
        parts = []
        while at < end:
            position, within = divmod(at, CHUNK_BYTES)
            stop = min(end, (position + 1) * CHUNK_BYTES)
            digest = _digest_at(entry, position)
            parts.append(bytes(stop - at) if digest is None else self._chunk(digest)[within : within + stop - at])
            if len(parts[-1]) != stop - at:
                raise Corruption(f"{path!r} lists a chunk that is too short. Verify the target it came from.")
            at = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _chunk(self, digest: bytes) -> bytes:
        with self._lock:
            known = self._chunks.get(digest)
            if known is not None:
                self._chunks.move_to_end(digest)
                return known
        chunk = verified(self.stored.read_chunk(digest), digest)
        with self._lock:
            if digest not in self._chunks:
                self._chunks[digest] = chunk
                self._chunks_bytes += len(chunk)
                while self._chunks_bytes > CHUNKS_BYTES_MAX:
                    self._chunks_bytes -= len(self._chunks.popitem(last=False)[1])
        return chunk


def _number_of(name: bytes) -> int:
    return int.from_bytes(digest_of(name)[:7], "big")


def _shared(entry: Entry) -> _Shared | None:
    """What two names of one file that were captured alike have in common; None for a file of one name."""
    if entry.inode is None:
        return None
    return entry.inode, digest_of(repr(entry).encode())


def _check_pieces(path: bytes, entry: Entry) -> None:
    positions = -(-entry.size // CHUNK_BYTES)
    count = positions if entry.runs is None else sum(run for _, run in entry.runs)
    if count * DIGEST_BYTES != len(entry.chunks):
        raise Corruption(f"The entry of {path!r}, {entry.size} bytes, lists {len(entry.chunks)} bytes of hashes.")


def _digest_at(entry: Entry, position: int) -> bytes | None:
    """The hash of the chunk at a position; None in a hole."""
    at = position
    if entry.runs is not None:
        before = 0
        for first, count in entry.runs:
            if first <= position < first + count:
                at = before + position - first
                break
            before += count
        else:
            return None
    return entry.chunks[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
