"""Images: which rows count at a checkpoint, at the edges."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dpac_api.errors import Corruption, NotFound
from dpac_engine.core.image import RUN_BYTES, TreeImage, VolumeImage
from dpac_engine.core.records import Flags, Keyspace, Kind
from dpac_engine.core.segment import ROW, RowArray
from dpac_engine.core.stream_hashes import StreamHashes, digests_of

Row = tuple[int, int, int, int, int, bytes, tuple[int, bytes] | None]


class Rows:
    """A segment in memory: (kind, flags, lsn, offset, length, payload, key) of member 1."""

    def __init__(self, *rows: Row) -> None:
        self.stream, made = b"", []
        self.reads: list[tuple[int, int]] = []
        for kind, flags, lsn, offset, length, payload, _ in rows:
            made.append((kind, flags, 0, 1, lsn, 0, offset, length, len(self.stream), len(payload)))
            self.stream += payload
        self.rows: RowArray = np.array(made, ROW)
        self.keys = [key for *_, key in rows if key is not None]

    name = ""

    def hashes(self) -> StreamHashes:
        return StreamHashes(digests_of(memoryview(self.stream)), len(self.stream))

    def read_once(self, position: int, length: int) -> bytes:
        self.reads.append((position, length))
        return self.read(position, length)

    def read(self, position: int, length: int) -> bytes:
        return self.stream[position : position + length]


def size(lsn: int, length: int) -> Row:
    """A resize record."""
    return (Kind.RESIZE, 0, lsn, 0, length, b"", None)


def data(lsn: int, offset: int, payload: bytes, *, kind: int = Kind.WRITE, flags: int = 0) -> Row:
    """A write or fill record."""
    return (kind, flags, lsn, offset, len(payload), payload, None)


def test_a_checkpoint_holds_exactly_the_records_before_it() -> None:
    """The log's record at its own LSN is not in it; a seed's row at that LSN is."""
    rows = Rows(
        size(1, 4), data(10, 0, b"aa"), data(20, 0, b"bb"), data(20, 2, b"ss", kind=Kind.FILL, flags=Flags.SEED)
    )
    assert [VolumeImage([rows], 1, lsn).read(0, 4) for lsn in (19, 20, 21)] == [b"aa\0\0", b"aass", b"bbss"]


def test_a_seed_never_overrides_a_record_of_its_own_lsn() -> None:
    """The fill tells the state before the record."""
    rows = Rows(size(1, 2), data(20, 0, b"new"[:2]), data(20, 0, b"old"[:2], kind=Kind.FILL, flags=Flags.SEED))
    assert VolumeImage([rows], 1, 30).read(0, 2) == b"ne"


def test_segments_may_come_in_any_order_of_lsn() -> None:
    """Rows fold by LSN, wherever they lie."""
    late, early = Rows(data(30, 1, b"L")), Rows(size(1, 3), data(10, 0, b"EEE"))
    for segments in ([late, early], [early, late]):
        assert VolumeImage(segments, 1, 99).read(0, 3) == b"ELE"


def test_a_reset_voids_what_was_before() -> None:
    """Data and keys; and a device without a size since then is none."""
    reset: Row = (Kind.RESET, 0, 20, 0, 0, b"", None)
    put: Row = (Kind.PUT, 0, 5, 0, 0, b"v", (Keyspace.ENTRY, b"k"))
    rows = Rows(size(1, 4), put, data(10, 0, b"aaaa"), reset, size(21, 4), data(22, 1, b"b"))
    assert VolumeImage([rows], 1, 99).read(0, 4) == b"\0b\0\0"
    assert dict(TreeImage([rows], 1, 20).entries()) == {b"k": b"v"}
    assert dict(TreeImage([rows], 1, 99).entries()) == {}
    with pytest.raises(NotFound, match="not yet protected"):
        VolumeImage([rows], 1, 21)


def test_extents_are_what_is_stored() -> None:
    """Zeroed and unwritten ranges are left out; the device ends at its size."""
    zero: Row = (Kind.ZERO, 0, 20, 2, 2, b"", None)
    rows = Rows(size(1, 10), data(10, 0, b"abcdef"), zero, data(30, 8, b"wxyz"))
    image = VolumeImage([rows], 1, 99)
    assert list(image.extents()) == [(0, 2), (4, 2), (8, 2)]
    assert image.read(0, 10) == b"ab\0\0ef\0\0wx"


def test_a_missing_chunk_is_corruption_and_an_empty_value_is_one() -> None:
    """A reference to what is not stored is never served as nothing."""
    rows = Rows(
        (Kind.PUT, 0, 5, 0, 0, b"", (Keyspace.CHUNK, b"empty")), (Kind.DELETE, 0, 6, 0, 0, b"", (Keyspace.CHUNK, b"x"))
    )
    image = TreeImage([rows], 1, 99)
    assert image.read_chunk(b"empty") == b""
    with pytest.raises(Corruption, match="not stored"):
        image.read_chunk(b"x")


def test_runs_are_the_device_each_stored_byte_once_and_the_newest_first() -> None:
    """Whatever was written over what: every run is one read of one segment, in its order, and no two of them overlap."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    length, rows, lsn = 3 * RUN_BYTES, [[size(1, 3 * RUN_BYTES)], [], []], 2
    rows[0].append(data(lsn, 0, chance.randbytes(length), kind=Kind.FILL))
    for segment in rows[1:]:
        for _ in range(40):
            lsn += 1
            part = chance.choice((512, 4096, 65536, 300_000))
            at = chance.randrange(0, length - part, 512)
            erased = chance.random() < 0.2
            segment.append(
                (Kind.TRIM, 0, lsn, at, part, b"", None) if erased else data(lsn, at, chance.randbytes(part))
            )
    segments = [Rows(*part) for part in rows]
    image = VolumeImage(segments, 1, lsn + 1)
    found, owners = bytearray(length), []
    for run in image.runs():
        owners.append(run.places[0].source)
        assert run.places == sorted(run.places, key=lambda piece: piece.position)
        assert run.length == sum(piece.length for piece in run.places)
        for offset, content in run.content():
            assert not any(found[offset : offset + len(content)]), "written twice"
            found[offset : offset + len(content)] = content
    assert bytes(found) == image.read(0, length)
    assert owners == sorted(owners, reverse=True)
    for segment in segments:
        assert all(count <= RUN_BYTES for _, count in segment.reads)
        ends = [at + count for at, count in segment.reads]
        assert all(begin >= end for (begin, _), end in zip(segment.reads[1:], ends, strict=False))


def test_neighbours_are_read_together() -> None:
    """A volume written in 4 KiB blocks is not read in 4 KiB blocks, nor are great gaps read."""
    rows = [data(lsn, 8192 * lsn, bytes([lsn]) * 4096) for lsn in range(2, 200)]
    rows += [data(lsn, 0, bytes(4096)) for lsn in range(200, 300)]
    rows.append(data(300, 4096, b"x" * 4096))
    segment = Rows(size(1, 2**22), *rows)
    assert [len(run.places) for run in VolumeImage([segment], 1, 999).runs()] == [198, 2]


def test_of_puts_and_deletes_in_any_number_of_segments_the_last_one_counts() -> None:
    """Against a dictionary: keys put again, deleted and put back, other members and devices between, seeds that came late."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(50):
        rows: list[Row] = []
        wanted: dict[tuple[int, bytes], bytes] = {}
        for lsn in range(dice.randrange(1, 120)):
            key = dice.choice([Keyspace.ENTRY, Keyspace.CHUNK]), bytes([dice.randrange(97, 105)])
            kind = dice.choice([Kind.PUT, Kind.PUT, Kind.DELETE, Kind.RESIZE])
            if kind == Kind.RESIZE:
                rows.append(size(lsn, 4096))
                continue
            value = dice.randbytes(dice.randrange(9)) if kind == Kind.PUT else b""
            rows.append((kind, 0, lsn, 0, 0, value, key))
            if kind == Kind.PUT:
                wanted[key] = value
            else:
                wanted.pop(key, None)
        cuts = sorted(dice.randrange(len(rows) + 1) for _ in range(3))
        segments = [Rows(*rows[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        dice.shuffle(segments)
        tree = TreeImage(segments, 1, len(rows))
        entries = {name: value for (space, name), value in wanted.items() if space == Keyspace.ENTRY}
        chunks = {name: value for (space, name), value in wanted.items() if space == Keyspace.CHUNK}
        assert dict(tree.entries()) == entries
        assert tree.paths() == sorted(entries)
        assert {name: tree.read_chunk(name) for name in chunks} == chunks
        assert dict(tree.chunks()) == {name: len(value) for name, value in chunks.items()}
        places = [tree.chunk_place(name) for name, _ in tree.chunks()]
        assert places == sorted(places)
        assert tree.stored_bytes() == sum(map(len, chunks.values()))
        names = sorted(chunks)
        found = [(names[at], bytes(data)) for run in tree.runs([*names, b"none"]) for at, data in run.content()]
        assert found == sorted(chunks.items())
