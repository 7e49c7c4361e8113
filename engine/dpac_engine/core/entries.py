"""Entries: what a directory member's journal says about one path.

An entry is the value of a PUT in key space ENTRY; its key is the path relative to the member's root, as bytes, and
`.` for the root itself. The first byte is the version of the encoding, the rest is a msgpack map that leaves out
defaults, so that a field can be added without touching what lies in repositories.

Content is cut at multiples of 256 KiB. Each piece is a chunk: key space CHUNK, keyed by the BLAKE3 hash of its
bytes. An entry lists its chunks' hashes; the list of a file beyond 8 GiB is itself cut into chunks
(`indirect`), so that an entry stays far below the 16 MiB a value may have: the largest file is 2^48 bytes (256 TiB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

import msgspec
from blake3 import blake3

from dpac_api.errors import Corruption, Unsupported

CHUNK_BYTES = 256 * 2**10
DIGEST_BYTES = 32
ROOT = b"."
"""The key of the root's own entry."""

ENCODING_VERSION = 1
LISTED_DIGESTS_MAX = 32_768
"""An entry holds this many chunk hashes (1 MiB of them, 8 GiB of content) before the list goes into chunks."""
LIST_MAGIC = b"dpac: the chunks of a file, v1\n\n"
"""What a chunk that holds hashes starts with, so that whoever reads the journal knows it from content."""
assert len(LIST_MAGIC) == DIGEST_BYTES
RUNS_MAX = 65_536
"""A sparse file of more runs than this is listed without holes."""
FILE_BYTES_MAX = 2**48


class EntryType(StrEnum):
    """What lies at a path. The letters are format."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    FIFO = "p"
    SOCKET = "s"
    CHARACTER_DEVICE = "c"
    BLOCK_DEVICE = "b"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One path's metadata and, for a file, the chunks its content is made of."""

    type: EntryType
    mode: int
    """Permission bits, with set-user-id, set-group-id and sticky: `st_mode & 0o7777`."""
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Extended attributes that could be read, sorted by name."""
    target: bytes = b""
    """Where a symlink points, byte for byte."""
    device: tuple[int, int] | None = None
    """Major and minor number of a device."""
    inode: tuple[int, int] | None = None
    """Shared by all names of a file with hard links, None for a file with one name."""
    size: int = 0
    chunks: bytes = b""
    """Hashes of the chunks that carry data, one after the other, in the order of their positions."""
    runs: tuple[tuple[int, int], ...] | None = None
    """A sparse file: (first position, count) of the chunks that carry data; the others are holes. None: no holes."""
    sparse: bool = False
    """Blocks of zeroes within chunks are holes too, when restored."""
    as_of: int | None = None
    """Set when the file has changed since but was not stable to be read: the moment (nanoseconds since 1970) up
    to which this version is known to be the current one."""

    @property
    def digests(self) -> list[bytes]:
        """The hashes in `chunks`, one by one."""
        return [self.chunks[at : at + DIGEST_BYTES] for at in range(0, len(self.chunks), DIGEST_BYTES)]

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """(offset, length, hash) of every chunk that carries data, by rising offset; Corruption if they do not fit the size."""
        positions = (self.size + CHUNK_BYTES - 1) // CHUNK_BYTES
        runs = ((0, positions),) if self.runs is None else self.runs
        count = sum(run[1] for run in runs)
        if count * DIGEST_BYTES != len(self.chunks) or any(first + run > positions for first, run in runs):
            raise Corruption(
                f"An entry of {self.size} bytes lists {len(self.chunks)} bytes of hashes for {count} chunks."
            )
        at = 0
        for first, run in runs:
            for position in range(first, first + run):
                offset = position * CHUNK_BYTES
                yield offset, min(CHUNK_BYTES, self.size - offset), self.chunks[at : at + DIGEST_BYTES]
                at += DIGEST_BYTES


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An entry as it lies in the journal; the short names are format."""

    t: EntryType
    m: int
    u: int
    g: int
    n: int
    x: tuple[tuple[bytes, bytes], ...] = ()
    l: bytes = b""  # noqa: E741 - the field's name in the format
    d: tuple[int, int] | None = None
    i: tuple[int, int] | None = None
    s: int = 0
    c: bytes = b""
    r: tuple[tuple[int, int], ...] | None = None
    z: bool = False
    a: int | None = None
    indirect: bool = False


class Encoded(NamedTuple):
    """An entry ready for the journal: its value, and the chunks of its chunk list (none below 8 GiB)."""

    value: bytes
    lists: tuple[tuple[bytes, bytes], ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


def digest_of(content: bytes | memoryview) -> bytes:
    """The key of a chunk."""
    return blake3(content).digest()


def encode_entry(entry: Entry) -> Encoded:
    """The value of the entry's PUT, and (hash, bytes) of the chunks that hold its chunk list, if it needs any."""
    chunks, lists = entry.chunks, chunk_lists(entry)
    if lists:
        chunks = b"".join(digest for digest, _ in lists)
    stored = _Stored(
        t=entry.type,
        m=entry.mode,
        u=entry.uid,
        g=entry.gid,
        n=entry.mtime_ns,
        x=entry.xattrs,
        l=entry.target,
        d=entry.device,
        i=entry.inode,
        s=entry.size,
        c=chunks,
        r=entry.runs,
        z=entry.sparse,
        a=entry.as_of,
        indirect=bool(lists),
    )
    return Encoded(bytes([ENCODING_VERSION]) + _encoder.encode(stored), lists)


def chunk_lists(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    """(hash, bytes) of the chunks that the entry's chunk list is cut into; none where it fits the entry."""
    if len(entry.chunks) <= LISTED_DIGESTS_MAX * DIGEST_BYTES:
        return ()
    step = CHUNK_BYTES - len(LIST_MAGIC)
    parts = (LIST_MAGIC + entry.chunks[at : at + step] for at in range(0, len(entry.chunks), step))
    return tuple((digest_of(part), part) for part in parts)


def decode_entry(value: bytes | memoryview, read_chunk: Callable[[bytes], bytes]) -> Entry:
    """The entry that `value` spells; `read_chunk` is asked only for the chunk list of a file beyond 8 GiB.

    Unsupported for a version this build does not know, Corruption for bytes that are no entry.
    """
    if not value:
        raise Corruption("An entry of a directory is empty; the journal that holds it is damaged.")
    if value[0] != ENCODING_VERSION:
        raise Unsupported(
            f"An entry of a directory has encoding version {value[0]}; this build reads {ENCODING_VERSION}. Update dpac."
        )
    try:
        stored = _decoder.decode(memoryview(value)[1:])
    except msgspec.DecodeError as error:
        raise Corruption(f"An entry of a directory cannot be decoded: {error}.") from error
    chunks = stored.c
    if stored.indirect:
        lists = (read_chunk(stored.c[at : at + DIGEST_BYTES]) for at in range(0, len(stored.c), DIGEST_BYTES))
        chunks = b"".join(part[len(LIST_MAGIC) :] for part in lists)
    return Entry(
        type=stored.t,
        mode=stored.m,
        uid=stored.u,
        gid=stored.g,
        mtime_ns=stored.n,
        xattrs=stored.x,
        target=stored.l,
        device=stored.d,
        inode=stored.i,
        size=stored.s,
        chunks=chunks,
        runs=stored.r,
        sparse=stored.z,
        as_of=stored.a,
    )
