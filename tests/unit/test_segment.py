"""Segments: what was sealed is read back; anything else is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core.checkpoints import MarkBody
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import (
    BLOCK_BYTES,
    BULK_BLOCK_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    SegmentHeader,
    SegmentKind,
    SegmentReader,
    SegmentWriter,
    decode_segment_header,
)

GOLDEN = Path(__file__).parents[1] / "data" / "segment.bin"
DATA_KEY = bytes(range(32))
HEADER = SegmentHeader(
    group_uid=b"G" * 16,
    shard_uid=b"S" * 16,
    segment_id=b"I" * 32,
    key_id=b"K" * 16,
    repository_uid=b"R" * 16,
    epoch=3,
    lsn_from=64,
    lsn_to=4096,
    stamp_from=10**18,
    stamp_to=10**18 + 9,
    membership_version=2,
    kind=SegmentKind.LOG,
)


def incompressible(count: int) -> bytes:
    """Bytes that no compressor makes smaller, the same on every run."""
    return b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(-(-count // 32)))[:count]


def sample() -> SegmentWriter:
    """One record of each sort that has something special in the index."""
    rows = SegmentWriter()
    rows.add(Kind.WRITE, 0, 1, 64, 10**18, 4096, 100, incompressible(100))
    rows.add(Kind.ZERO, 0, 1, 256, 10**18 + 1, 0, 4096, b"")
    rows.add(Kind.PUT, 1, 2, 320, 10**18 + 2, 0, 0, b"value", (1, b"key"))
    rows.add(Kind.DELETE, 0, 2, 448, 10**18 + 3, 0, 0, b"", (0, b"gone"))
    rows.add(Kind.MARK, 0, 0, 512, 10**18 + 9, 0, 0, MarkBody(7, 2, tags=["t"], epoch=3).encode())
    return rows


def opened(data: bytes, key: bytes = DATA_KEY) -> SegmentReader:
    """A reader over bytes at hand."""
    return SegmentReader(lambda at, length: data[at : at + length], len(data), lambda _: key)


def read_all(data: bytes) -> bytes:
    """Every block's plain bytes."""
    reader = opened(data)
    return b"".join(reader.blocks(0, reader.block_count)) if reader.block_count else b""


def test_rows_keys_marks_and_payloads_come_back() -> None:
    """What a writer was given is what a reader gives, in order."""
    data = sample().seal(HEADER, DATA_KEY, 3)
    reader = opened(data)
    assert reader.header == HEADER
    assert reader.rows["kind"].tolist() == [Kind.WRITE, Kind.ZERO, Kind.PUT, Kind.DELETE, Kind.MARK]
    assert reader.rows["lsn"].tolist() == [64, 256, 320, 448, 512]
    assert [tuple(key) for key in reader.keys] == [(1, b"key"), (0, b"gone")]
    (mark,) = reader.marks()
    assert (mark.id, mark.lsn, mark.stamp_ns, mark.body.tags) == ("ck-3-7", 512, 10**18 + 9, ["t"])
    put = reader.rows[2]
    assert read_all(data)[int(put["position"]) :][: int(put["payload_bytes"])] == b"value"


@pytest.mark.parametrize("count", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_payloads_of_any_size_are_cut_into_blocks(count: int) -> None:
    """Compressible or not, at and around the size of a block."""
    for payload in (bytes(count), incompressible(count)):
        rows = SegmentWriter()
        rows.add(Kind.WRITE, 0, 1, 64, 1, 0, count, payload)
        data = rows.seal(HEADER, DATA_KEY, 1)
        assert read_all(data) == payload
        assert opened(data).block_count == -(-count // BLOCK_BYTES)


@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, BULK_BLOCK_BYTES])
def test_the_header_says_how_long_a_block_is(block_bytes: int) -> None:
    """A reader cuts as the writer did, and needs nobody to tell it."""
    payload = incompressible(3 * BULK_BLOCK_BYTES + 1)
    rows = SegmentWriter()
    rows.add(Kind.FILL, 0, 1, 64, 1, 0, len(payload), payload)
    data = rows.seal(dataclasses.replace(HEADER, block_bytes=block_bytes), DATA_KEY, 1)
    assert opened(data).header.block_bytes == block_bytes
    assert opened(data).block_count == len(payload) // block_bytes + 1
    assert read_all(data) == payload


def test_blocks_of_a_length_that_no_build_writes_are_refused() -> None:
    """Not misread."""
    with pytest.raises(Unsupported, match="blocks of 4096 bytes"):
        opened(sample().seal(dataclasses.replace(HEADER, block_bytes=4096), DATA_KEY, 1))


def test_any_flipped_bit_is_corruption() -> None:
    """Every single bit of a stored segment: the reader refuses, at the latest when the bytes are read."""
    data = sample().seal(HEADER, DATA_KEY, 3)
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(Corruption):
                read_all(bytes(damaged))


def test_a_segment_cut_short_is_corruption() -> None:
    """At every length less than its own."""
    data = sample().seal(HEADER, DATA_KEY, 3)
    for length in range(len(data)):
        with pytest.raises(Corruption):
            read_all(data[:length])


def test_another_key_opens_nothing() -> None:
    """A wrong data key is Corruption, not garbage."""
    with pytest.raises(Corruption):
        opened(sample().seal(HEADER, DATA_KEY, 3), bytes(32))


def test_blocks_of_one_segment_do_not_pass_in_another() -> None:
    """A block moved to a segment with another id, or to another place in its own, fails."""
    rows = SegmentWriter()
    rows.add(Kind.WRITE, 0, 1, 64, 1, 0, 2 * BLOCK_BYTES, incompressible(2 * BLOCK_BYTES))
    one, other = (rows.seal(dataclasses.replace(HEADER, segment_id=name * 32), DATA_KEY, 1) for name in (b"A", b"B"))
    size = BLOCK_BYTES + 17
    first, second = slice(HEADER_BYTES, HEADER_BYTES + size), slice(HEADER_BYTES + size, HEADER_BYTES + 2 * size)
    swapped = bytearray(one)
    swapped[first], swapped[second] = one[second], one[first]
    foreign = bytearray(one)
    foreign[first] = other[first]
    for data in (swapped, foreign):
        with pytest.raises(Corruption):
            read_all(bytes(data))


@pytest.mark.parametrize("change", [{"features": 3 | 1 << 40}, {"kind": 9}])
def test_what_this_build_does_not_know_is_unsupported(change: dict[str, int]) -> None:
    """A required feature or a kind from the future, in a sound header, asks for a newer build."""
    with pytest.raises(Unsupported, match="newer dpac"):
        decode_segment_header(dataclasses.replace(HEADER, **change).encode())  # type: ignore[arg-type]


def test_an_optional_feature_is_none_of_the_readers_business() -> None:
    """Readers pass over optional features they do not know."""
    header = dataclasses.replace(HEADER, optional_features=1 << 50)
    assert decode_segment_header(header.encode()) == header


def golden() -> bytes:
    """A segment of fixed ids and key; its payload is not compressed, whatever the library's version."""
    rows = SegmentWriter()
    rows.add(Kind.WRITE, 0, 1, 64, 10**18, 4096, 100, incompressible(100))
    return rows.seal(HEADER, DATA_KEY, 3)


def test_the_golden_segment_is_read() -> None:
    """Bytes that an earlier build stored are what they were."""
    data = GOLDEN.read_bytes()
    reader = opened(data)
    assert reader.header == HEADER
    assert read_all(data) == incompressible(100)
    assert np.array_equal(reader.rows, opened(golden()).rows)


def test_the_golden_segments_bytes_are_made_again() -> None:
    """Header, block and footer's magic are the same to the byte; the index is compressed, so only its meaning is."""
    data, made = GOLDEN.read_bytes(), golden()
    block_end = HEADER_BYTES + 1 + 100 + 16
    assert made[:block_end] == data[:block_end]
    assert made[-FOOTER_BYTES:][:16] == data[-FOOTER_BYTES:][:16]


def test_a_name_tells_shard_epoch_and_range() -> None:
    """Names sort by epoch and LSN."""
    assert HEADER.name == f"s/{'53' * 16}/0000000003-0000000000000040-0000000000001000-{'49' * 32}"


def test_opening_a_segment_takes_two_reads() -> None:
    """Its header, and its tail with footer and index in it: at a target far away requests are what takes time."""
    rows = SegmentWriter()
    for number in range(1000):
        rows.add(Kind.WRITE, 0, 1, number * 128, 1, number * 64, 64, bytes(64))
    data = rows.seal(HEADER, DATA_KEY, 3)
    reads: list[tuple[int, int]] = []

    def read(at: int, length: int) -> bytes:
        reads.append((at, length))
        return data[at : at + length]

    assert len(SegmentReader(read, len(data), lambda _: DATA_KEY).rows) == 1000
    assert len(reads) == 2
