"""Reading all of a directory at a checkpoint, to know that it can be recovered; nothing is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from dpac_api.errors import Corruption
from dpac_engine.core.entries import EntryType
from dpac_engine.io.members.read_ahead import ChunkRuns, ReadAhead, ReadChunk
from dpac_engine.io.members.tree_restore import checked, verified


def read_tree(
    entries: Iterable[tuple[bytes, bytes]],
    read_chunk: ReadChunk,
    place: Callable[[bytes], tuple[int, int]],
    progress: Callable[[int, int], None],
    runs: ChunkRuns = lambda _: iter(()),
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
    wanted = [(digest, lengths[digest]) for digest in sorted(lengths, key=place)]
    with contextlib.closing(ReadAhead(runs, read_chunk, wanted)) as ahead:
        for digest, length in wanted:
            found = len(verified(ahead.read(digest), digest))
            if found != length:
                raise Corruption(f"The chunk {digest.hex()} has {found} bytes where {length} belong.")
            done += found
            progress(done, goal)
    return done
