"""Everything a directory member's journal holds by now, for a target that joins later.

The journal's old records may be gone, so chunks are read again from the files. What has changed since is captured
on the way, as ever. The promise: every chunk that the entries list was handed out, or put into the journal after the
call began; so a target that takes the hand-out first and the journal from the call's beginning next lacks nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from dpac_api.errors import DpacError, Temporary
from dpac_engine.core.entries import digest_of, encode_entry
from dpac_engine.core.records import KeyChange, Keyspace
from dpac_engine.io.members.beneath import Beneath
from dpac_engine.io.members.capture import Capture, Seeding
from dpac_engine.io.members.chunks import Chunk
from dpac_engine.io.members.tree_index import TreeIndex

_ROUNDS_MAX = 8
_PATHS_PER_CAPTURE = 256
_ENTRIES_PER_BATCH = 1_000
_CHUNKS_PER_BATCH = 16

Recapture = Callable[[list[bytes], Seeding], Awaitable[None]]
"""Captures the paths even if they seem unchanged, serialised with every other capture."""
ReadChunk = Callable[[bytes], Awaitable[bytes]]


async def everything(
    capture: Capture, root: Path, recapture: Recapture, lock: asyncio.Lock, read_chunk: ReadChunk | None
) -> AsyncIterator[list[KeyChange]]:
    """Batches of puts: chunks first, then all entries of one moment.

    `read_chunk` is asked for a chunk of a version that is no longer in the files: a file that keeps changing, or
    cannot be read now. Temporary, naming the file, where that is missing or has none.
    """
    has: set[bytes] = set()
    capture.seedings.append(has)
    try:
        # Most files are as they were captured: their chunks are read without holding up captures.
        for path in _paths_missing(capture.index, has):
            async for batch in _read_as_captured(path, capture, root, has):
                yield batch
        for _ in range(_ROUNDS_MAX):
            missing = _paths_missing(capture.index, has)
            if not missing:
                break
            async for batch in _read_again(missing, has, recapture):
                yield batch
        # Chunks of a version that only the journal has; then entries, with nothing captured between the two.
        entries: list[KeyChange] | None = None
        while entries is None:
            for path in _paths_missing(capture.index, has):
                async for batch in _fetch(path, capture.index, has, read_chunk):
                    yield batch
            async with lock:
                if not _paths_missing(capture.index, has):
                    entries = await capture.in_thread(lambda: _entries(capture.index))
    finally:
        # By identity: sets of equal content are different seedings.
        capture.seedings[:] = [other for other in capture.seedings if other is not has]
    for at in range(0, len(entries), _ENTRIES_PER_BATCH):
        yield entries[at : at + _ENTRIES_PER_BATCH]


def _paths_missing(index: TreeIndex, has: set[bytes]) -> list[bytes]:
    """Paths of which a chunk is neither handed out nor in the journal since."""
    return sorted(path for path, row in list(index.rows.items()) if not has.issuperset(row.entry.digests))


async def _read_as_captured(
    path: bytes, capture: Capture, root: Path, has: set[bytes]
) -> AsyncIterator[list[KeyChange]]:
    """The file's chunks, as far as it still holds them: their hashes tell."""
    row = capture.index.rows.get(path)
    if row is None or row.covered or row.signature is None:
        return
    pieces = [piece for piece in row.entry.pieces() if piece[2] not in has]
    for at in range(0, len(pieces), _CHUNKS_PER_BATCH):
        some = pieces[at : at + _CHUNKS_PER_BATCH]
        chunks = await capture.in_thread(lambda some=some: _matching(root, path, some))  # type: ignore[misc]
        # A chunk that was deleted from the journal meanwhile is not of this tree any more.
        chunks = [chunk for chunk in chunks if chunk[0] in capture.index]
        if not chunks:
            return
        has.update(digest for digest, _ in chunks)
        yield [KeyChange(Keyspace.CHUNK, digest, content) for digest, content in chunks]


def _matching(root: Path, path: bytes, pieces: list[tuple[int, int, bytes]]) -> list[Chunk]:
    found: dict[bytes, bytes] = {}
    try:
        with Beneath(root) as tree:
            fd = tree.open(path, os.O_RDONLY)
            try:
                for offset, length, digest in pieces:
                    content = os.pread(fd, length, offset)
                    if digest_of(content) == digest:
                        found[digest] = content
            finally:
                os.close(fd)
    except OSError:
        pass  # what cannot be read here is captured anew
    return list(found.items())


async def _read_again(paths: list[bytes], has: set[bytes], recapture: Recapture) -> AsyncIterator[list[KeyChange]]:
    handed: asyncio.Queue[list[Chunk] | None] = asyncio.Queue(maxsize=2)
    left = False

    async def give(chunks: list[Chunk]) -> None:
        if chunks and not left:
            await handed.put(chunks)

    async def read() -> None:
        try:
            for at in range(0, len(paths), _PATHS_PER_CAPTURE):
                if not left:
                    await recapture(paths[at : at + _PATHS_PER_CAPTURE], Seeding(has, give))
        finally:
            if not left:
                await handed.put(None)

    reading = asyncio.ensure_future(read())
    try:
        while (chunks := await handed.get()) is not None:
            has.update(digest for digest, _ in chunks)
            yield [KeyChange(Keyspace.CHUNK, digest, content) for digest, content in chunks]
        await reading
    finally:
        # A consumer that leaves early must not keep the capture waiting for it.
        left = True
        while not handed.empty():
            handed.get_nowait()
        await asyncio.wait([reading])


async def _fetch(
    path: bytes, index: TreeIndex, has: set[bytes], read_chunk: ReadChunk | None
) -> AsyncIterator[list[KeyChange]]:
    row = index.rows.get(path)
    for digest in row.entry.digests if row is not None else ():
        if digest in has:
            continue
        try:
            if read_chunk is None:
                raise Temporary("no other copy of it can be read here")
            content = await read_chunk(digest)
        except DpacError as error:
            name = path.decode(errors="backslashreplace")
            raise Temporary(
                f"{name!r} cannot be copied to the new target yet: its last stable version is not in the file any more "
                f"({error.message}). Let it rest for a moment, or use a blueprint for what keeps writing it."
            ) from error
        has.add(digest)
        yield [KeyChange(Keyspace.CHUNK, digest, content)]


def _entries(index: TreeIndex) -> list[KeyChange]:
    """Every entry, after the chunks of the chunk lists."""
    lists: list[KeyChange] = []
    entries: list[KeyChange] = []
    for path, row in sorted(index.rows.items()):
        encoded = encode_entry(row.entry)
        lists += [KeyChange(Keyspace.CHUNK, digest, part) for digest, part in encoded.lists]
        entries.append(KeyChange(Keyspace.ENTRY, path, encoded.value))
    return lists + entries
