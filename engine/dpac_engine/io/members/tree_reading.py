"""Reading all of a directory at a checkpoint, to know that it can be recovered; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dpac_api.errors import Corruption
from dpac_engine.core.entries import EntryType
from dpac_engine.io.members.tree_restore import ReadChunk, checked, verified


def read_tree(
    entries: Iterable[tuple[bytes, bytes]],
    read_chunk: ReadChunk,
    place: Callable[[bytes], tuple[int, int]],
    progress: Callable[[int, int], None],
) -> int:
    """Read every entry and, in the order in which they are stored, every chunk; returns bytes of content.

    `progress` is told (bytes read, bytes there are). Corruption if an entry or chunk is not what was written, or could not be
    restored.
    """
    lengths: dict[bytes, int] = {}
    for path, entry in checked(entries, read_chunk).items():
        for _, length, digest in entry.pieces() if entry.type is EntryType.FILE else ():
            if lengths.setdefault(digest, length) != length:
                raise Corruption(f"{path!r} lists a chunk of {lengths[digest]} bytes where {length} belong.")
    goal, done = sum(lengths.values()), 0
    for digest in sorted(lengths, key=place):
        found = len(verified(read_chunk(digest), digest))
        if found != lengths[digest]:
            raise Corruption(f"The chunk {digest.hex()} has {found} bytes where {lengths[digest]} belong.")
        done += found
        progress(done, goal)
    return done
