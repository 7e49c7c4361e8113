"""Images: what a group's members were at a checkpoint, as the fold of the records before it.

An image holds maps, no data; `read` asks the segments for blocks when bytes are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dpac_api.errors import Corruption, NotFound
from dpac_engine.core.extents import ZEROES, ExtentMap, Int64Array, Piece, fold
from dpac_engine.core.records import Flags, Keyspace, Kind
from dpac_engine.core.segment import RowArray
from dpac_engine.core.stream_hashes import ReadDevice, StreamHashes

RUN_BYTES = 4 * 2**20
"""Of a segment's block stream, read at once; a multiple of every block size."""
GAP_BYTES_MAX = 256 * 1024
"""Dead bytes that are read with what lies around them: less than another request costs."""
_DATA_KINDS = (Kind.WRITE, Kind.FILL)
_DEVICE_KINDS = (Kind.WRITE, Kind.FILL, Kind.ZERO, Kind.TRIM)


class IndexedSegment(Protocol):
    """What an image needs of a segment: its rows, its keys, and its block stream."""

    @property
    def rows(self) -> RowArray:
        """(n,) of dtype `segment.ROW`."""

    @property
    def keys(self) -> Sequence[tuple[int, bytes]]:
        """(key space, key) of each put and delete row, in order."""

    @property
    def name(self) -> str:
        """What it is called at its target, where its content never changes; empty for what lies in memory."""

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the block stream; Corruption if they are damaged."""

    def read_once(self, position: int, length: int) -> bytes:
        """The same for who reads everything, from end to end: nothing of it is kept."""


class HashedSegment(IndexedSegment, Protocol):
    """One of which an image is made."""

    def hashes(self) -> StreamHashes:
        """Of the block stream."""


class Span(NamedTuple):
    """Bytes `[begin, end)` of a segment's block stream."""

    begin: int
    end: int


class MemberRows(NamedTuple):
    """Rows of one member from all segments, oldest first. Shapes (n,); `key_index` -1 where a row has no key."""

    kind: Int64Array
    flags: Int64Array
    lsn: Int64Array
    stamp: Int64Array
    offset: Int64Array
    length: Int64Array
    source: Int64Array
    position: Int64Array
    payload_bytes: Int64Array
    key_index: Int64Array

    def picked(self, which: Int64Array | slice) -> MemberRows:
        """Some of the rows, in the given order."""
        return MemberRows(*(field[which] for field in self))


def member_rows(segments: Sequence[IndexedSegment], ordinal: int, lsn: int) -> MemberRows:
    """The member's rows that a checkpoint at `lsn` holds, oldest first; what came before its last reset is left out."""
    rows = rows_between(segments, ordinal, 0, lsn)
    return rows.picked(rows.kind != Kind.RESET)


def rows_between(segments: Sequence[IndexedSegment], ordinal: int, from_lsn: int, to_lsn: int) -> MemberRows:
    """The member's rows in a range, oldest first, from its last reset there on (that included).

    A seed row at an LSN is older than the log's record there: it is part of the state before it, so the range
    is `[from_lsn, to_lsn)` for the log and `(from_lsn, to_lsn]` for seeds (from 0: all).
    """
    # All segments' rows in one array: a history has many small segments, and each array operation costs.
    everything = [segment.rows for segment in segments]
    if not everything:
        return MemberRows(*([np.empty(0, np.int64)] * len(MemberRows._fields)))
    rows: RowArray = np.concatenate(everything)
    source = np.repeat(np.arange(len(everything)), [len(part) for part in everything])
    lsns, seed = rows["lsn"].astype(np.int64), (rows["flags"] & Flags.SEED) != 0
    mine = (rows["member"] == ordinal) & ((lsns < to_lsn) | seed & (lsns == to_lsn))
    if from_lsn:
        mine &= (lsns >= from_lsn) & ~seed | (lsns > from_lsn) & seed
    key_index = _key_indexes(everything, rows)[mine]
    rows, source = rows[mine], source[mine]
    names = ("kind", "flags", "lsn", "stamp", "offset", "length", None, "position", "payload_bytes")
    columns = [(source if name is None else rows[name]).astype(np.int64) for name in names]
    found = MemberRows(*(*columns, key_index))
    if seed[mine].any() or (np.diff(found.lsn) < 0).any():
        found = found.picked(np.lexsort(((found.flags & Flags.SEED) == 0, found.lsn)))
    resets = np.flatnonzero(found.kind == Kind.RESET)
    return found.picked(slice(int(resets[-1]), None)) if len(resets) else found


def _key_indexes(segments: Sequence[RowArray], rows: RowArray) -> Int64Array:
    """For each put and delete among `rows`, all rows of the segments, which of its segment's keys it has; else -1."""
    keyed = (rows["kind"] == Kind.PUT) | (rows["kind"] == Kind.DELETE)
    before = np.cumsum(keyed) - keyed
    lengths = np.array([len(part) for part in segments])
    firsts = np.cumsum(lengths) - lengths
    at_first = np.append(before, 0)[firsts]  # an empty last segment has no first row
    return np.where(keyed, before - np.repeat(at_first, lengths), -1).astype(np.int64)


class StoredRun(NamedTuple):
    """Bytes that lie together in a segment, of which a device is made at one place or several, or that are chunks of a tree."""

    segment: str
    """Its name; empty if it has none."""
    places: list[Piece]
    """In the order of their positions."""
    read: Callable[[int, int], bytes]
    hashes: Callable[[], StreamHashes]
    """Of its segment."""

    @property
    def length(self) -> int:
        """How much of the device they are."""
        return sum(piece.length for piece in self.places)

    def lacking(self, hashes: StreamHashes, read_device: ReadDevice) -> list[StoredRun]:
        """What is left of it for a device that holds something already (`StreamHashes.lacking`)."""
        return [self._replace(places=part) for part in _parts(hashes.lacking(self.places, read_device))]

    def content(self) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) of each place, by one read; Corruption if what is stored is damaged."""
        begin = self.places[0].position
        stored = memoryview(self.read(begin, self.places[-1].position + self.places[-1].length - begin))
        for piece in self.places:
            at = piece.position - begin
            yield piece.offset, stored[at : at + piece.length]


class VolumeImage:
    """A device at a checkpoint. `size_bytes` is its size then."""

    def __init__(self, segments: Sequence[HashedSegment], ordinal: int, lsn: int) -> None:
        self._segments = segments
        rows = member_rows(segments, ordinal, lsn)
        sizes = rows.length[rows.kind == Kind.RESIZE]
        if not len(sizes):
            raise NotFound(f"Member {ordinal} has no recorded size before LSN {lsn}: it was not yet protected then.")
        self.size_bytes = int(sizes[-1])
        device = np.isin(rows.kind, _DEVICE_KINDS)
        data = np.isin(rows.kind[device], _DATA_KINDS)
        starts = rows.offset[device]
        self.map: ExtentMap = fold(
            starts,
            starts + rows.length[device],
            np.where(data, rows.source[device], ZEROES),
            rows.position[device],
            self.size_bytes,
        )

    def read(self, offset: int, length: int) -> bytes:
        """The bytes `[offset, offset + length)`; Corruption if what is stored is damaged."""
        pieces = list(self.map.lookup(offset, length))
        if len(pieces) == 1 and pieces[0].length == length and pieces[0].source != ZEROES:
            return self._segments[pieces[0].source].read(pieces[0].position, length)
        out = bytearray(length)
        for piece in pieces:
            if piece.source != ZEROES:
                begin = piece.offset - offset
                out[begin : begin + piece.length] = self._segments[piece.source].read(piece.position, piece.length)
        return bytes(out)

    def reads(self, source: int, spans: Sequence[Span]) -> bool:
        """Whether the device is made of bytes in `spans` of the segment `source`."""
        mine = self.map.sources == source
        begins = self.map.positions[mine]
        ends = begins + (self.map.ends - self.map.starts)[mine]
        return any(bool(((begins < span.end) & (ends > span.begin)).any()) for span in spans)

    def runs(self) -> Iterator[StoredRun]:
        """All that is stored of it, the newest segment first, each from its beginning to its end: no block twice."""
        sources, starts, positions = self.map.sources, self.map.starts, self.map.positions
        lengths = self.map.ends - starts
        order = np.lexsort((positions, -sources))
        order = order[sources[order] != ZEROES]
        columns = (column[order].tolist() for column in (starts, lengths, sources, positions))
        stored = (piece for extent in zip(*columns, strict=True) for piece in _cut(*extent))
        return _runs(self._segments, stored)

    def extents(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is stored, in order; the rest reads as zeroes."""
        for piece in self.map.pieces():
            if piece.source != ZEROES:
                yield piece.offset, piece.length


def _cut(offset: int, length: int, source: int, position: int) -> Iterator[Piece]:
    """An extent, cut where the runs of its segment end."""
    end = position + length
    while position < end:
        part = min(end, position - position % RUN_BYTES + RUN_BYTES) - position
        yield Piece(offset, part, source, position)
        offset, position = offset + part, position + part


def _together(one: Piece, other: Piece) -> bool:
    """Whether one read gets both: they are of the same part of a segment, in order, and not much lies between."""
    return (
        one.source == other.source
        and (one.position + one.length <= other.position or one[1:] == other[1:])
        and one.position // RUN_BYTES == other.position // RUN_BYTES
        and other.position - (one.position + one.length) < GAP_BYTES_MAX
    )


def _parts(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in their order, those together that are read at once."""
    places: list[Piece] = []
    for piece in pieces:
        if places and not _together(places[-1], piece):
            yield places
            places = []
        places.append(piece)
    if places:
        yield places


def _runs(segments: Sequence[HashedSegment], pieces: Iterable[Piece]) -> Iterator[StoredRun]:
    for places in _parts(pieces):
        segment = segments[places[0].source]
        yield StoredRun(segment.name, places, segment.read_once, segment.hashes)


class _Value(NamedTuple):
    source: int
    position: int
    length: int


class TreeImage:
    """A key-value member at a checkpoint."""

    def __init__(self, segments: Sequence[HashedSegment], ordinal: int, lsn: int) -> None:
        self._segments = segments
        rows = member_rows(segments, ordinal, lsn)
        keyed = rows.key_index >= 0
        self._sources, self._positions, self._lengths = (
            column[keyed] for column in (rows.source, rows.position, rows.payload_bytes)
        )
        self._newest = _newest(segments, rows.kind[keyed], self._sources, rows.key_index[keyed])

    def _values(self, keyspace: Keyspace | None = None) -> Int64Array:
        """The rows of the values that count; (n,) positions in the columns."""
        of = self._newest.items()
        return np.array([row for key, row in of if keyspace is None or key[0] == keyspace], np.int64)

    def _value(self, keyspace: Keyspace, key: bytes) -> _Value | None:
        row = self._newest.get((keyspace, key))
        if row is None:
            return None
        return _Value(self._sources.item(row), self._positions.item(row), self._lengths.item(row))

    def reads(self, source: int, spans: Sequence[Span]) -> bool:
        """Whether a value is made of bytes in `spans` of the segment `source`."""
        rows = self._values()
        rows = rows[self._sources[rows] == source]
        begins, ends = self._positions[rows], self._positions[rows] + self._lengths[rows]
        return any(bool(((begins < span.end) & (ends > span.begin)).any()) for span in spans)

    def _read(self, value: _Value) -> bytes:
        return self._segments[value.source].read(value.position, value.length)

    def paths(self) -> list[bytes]:
        """Every path, sorted; known from the indexes alone."""
        return sorted(key for keyspace, key in self._newest if keyspace == Keyspace.ENTRY)

    def _entry(self, path: bytes) -> _Value:
        value = self._value(Keyspace.ENTRY, path)
        if value is None:
            raise KeyError(path)
        return value

    def read_entry(self, path: bytes) -> bytes:
        """The encoded entry of a path in `paths`, else KeyError; Corruption if it is damaged."""
        return self._read(self._entry(path))

    def place(self, path: bytes) -> tuple[int, int]:
        """Where the entry is stored; equal for two images of one reader if they hold the very same one."""
        value = self._entry(path)
        return id(self._segments[value.source]), value.position

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """(path, encoded entry) of every file, sorted by path."""
        for path in self.paths():
            yield path, self.read_entry(path)

    def chunk_place(self, digest: bytes) -> tuple[int, int]:
        """Where a chunk is stored; chunks that are read in the order of their places are read from end to end."""
        value = self._value(Keyspace.CHUNK, digest)
        return (value.source, value.position) if value is not None else (-1, 0)

    def chunks(self) -> list[tuple[bytes, int]]:
        """(hash, length) of every chunk, in the order in which they are stored."""
        keys = [key for keyspace, key in self._newest if keyspace == Keyspace.CHUNK]
        rows = self._values(Keyspace.CHUNK)
        order = np.lexsort((self._positions[rows], self._sources[rows]))
        return list(zip([keys[at] for at in order.tolist()], self._lengths[rows[order]].tolist(), strict=True))

    def runs(self, digests: Sequence[bytes]) -> Iterator[StoredRun]:
        """What is stored of some chunks, in the order in which they are asked for; what lies together is of one run.

        The `offset` of a place is the chunk's position in `digests`. A chunk that is missing is in no run.
        """
        found = ((at, self._value(Keyspace.CHUNK, digest)) for at, digest in enumerate(digests))
        pieces = (Piece(at, value.length, value.source, value.position) for at, value in found if value is not None)
        return _runs(self._segments, pieces)

    def stored_bytes(self) -> int:
        """How much all chunks are."""
        return int(self._lengths[self._values(Keyspace.CHUNK)].sum())

    def read_chunk(self, digest: bytes) -> bytes:
        """The content with that BLAKE3; Corruption if it is not stored."""
        value = self._value(Keyspace.CHUNK, digest)
        if value is None:
            raise Corruption(f"Chunk {digest.hex()} is referenced at this checkpoint but not stored.")
        return self._read(value)


def _newest(
    segments: Sequence[IndexedSegment], kinds: Int64Array, sources: Int64Array, key_indexes: Int64Array
) -> dict[tuple[int, bytes], int]:
    """Which of some rows, oldest first, has the value of each key that is there after them.

    A mount waits for this, and keeps it: no object is made for a row, but what is made of all of them at once.
    """
    keys = [key for segment in segments for key in segment.keys]
    lengths = np.array([len(segment.keys) for segment in segments], np.int64)
    at = (np.cumsum(lengths) - lengths)[sources] + key_indexes
    if not np.array_equal(at, np.arange(len(keys))):
        keys = [keys[index] for index in at.tolist()]
    newest = dict(zip(keys, range(len(keys)), strict=True))
    deletes = set(np.flatnonzero(kinds == Kind.DELETE).tolist())
    return {key: row for key, row in newest.items() if row not in deletes} if deletes else newest


class Image:
    """A group at a checkpoint: its members by ordinal."""

    def __init__(self, segments: Callable[[], Sequence[HashedSegment]], lsn: int) -> None:
        self._load = segments
        self._loaded: Sequence[HashedSegment] | None = None
        self.lsn = lsn

    @property
    def segments(self) -> Sequence[HashedSegment]:
        """The segments the image is made of, opened at the first use."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def volume(self, ordinal: int) -> VolumeImage:
        """The volume with that ordinal; NotFound if it was not protected yet."""
        return VolumeImage(self.segments, ordinal, self.lsn)

    def tree(self, ordinal: int) -> TreeImage:
        """The key-value member with that ordinal."""
        return TreeImage(self.segments, ordinal, self.lsn)
