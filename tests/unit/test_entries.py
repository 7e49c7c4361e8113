"""Entries: their bytes are format, and any size of file fits a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core.entries import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    LISTED_DIGESTS_MAX,
    Entry,
    EntryType,
    decode_entry,
    digest_of,
    encode_entry,
)

GOLDEN = bytes.fromhex(
    "0189a174a166a16dcd01a0a175cd03e8a16764a16ecf17979cfe3d85cd15a1789192c406757365722e61c40162a17303a163c420"
    "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85a16105"
)


def _no_lists(digest: bytes) -> bytes:
    raise AssertionError(f"asked for the chunk list {digest.hex()}")


def test_golden_bytes() -> None:
    """Entries that lie in repositories today are read, and written, the same for ever."""
    entry = Entry(
        type=EntryType.FILE,
        mode=0o640,
        uid=1000,
        gid=100,
        mtime_ns=1_700_000_000_123_456_789,
        xattrs=((b"user.a", b"b"),),
        size=3,
        chunks=digest_of(b"abc"),
        as_of=5,
    )
    assert encode_entry(entry).value == GOLDEN
    assert decode_entry(GOLDEN, _no_lists) == entry


entries = st.builds(
    Entry,
    type=st.sampled_from(EntryType),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.integers(-(2**62), 2**62),
    xattrs=st.lists(st.tuples(st.binary(), st.binary())).map(tuple),
    target=st.binary(),
    device=st.none() | st.tuples(st.integers(0, 2**12), st.integers(0, 2**20)),
    inode=st.none() | st.tuples(st.integers(0, 2**32), st.integers(0, 2**64 - 1)),
    size=st.integers(0, 2**48),
    chunks=st.lists(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)).map(b"".join),
    runs=st.none() | st.lists(st.tuples(st.integers(0, 2**30), st.integers(1, 2**30))).map(tuple),
    sparse=st.booleans(),
    as_of=st.none() | st.integers(0, 2**62),
)


@given(entries)
def test_every_entry_reads_back(entry: Entry) -> None:
    """What is encoded is decoded to the same."""
    encoded = encode_entry(entry)
    assert not encoded.lists
    assert decode_entry(encoded.value, _no_lists) == entry


def test_a_file_beyond_8_gib_lists_its_chunks_in_chunks() -> None:
    """The list of a large file is cut into chunks of at most 256 KiB, and its entry stays small."""
    count = LISTED_DIGESTS_MAX + 1
    chunks = b"".join(position.to_bytes(DIGEST_BYTES, "big") for position in range(count))
    entry = Entry(EntryType.FILE, 0o600, 0, 0, 1, size=count * CHUNK_BYTES, chunks=chunks)
    encoded = encode_entry(entry)
    assert len(encoded.value) < 1000
    assert all(len(part) <= CHUNK_BYTES and digest_of(part) == digest for digest, part in encoded.lists)
    assert decode_entry(encoded.value, dict(encoded.lists).__getitem__) == entry
    assert len(list(entry.pieces())) == count


def test_pieces_lie_where_the_runs_say() -> None:
    """A sparse file's chunks have the offsets of its runs, the last one only what is left of the file."""
    chunks = b"".join(bytes([letter]) * DIGEST_BYTES for letter in b"abc")
    entry = Entry(EntryType.FILE, 0, 0, 0, 0, size=9 * CHUNK_BYTES + 5, chunks=chunks, runs=((2, 2), (9, 1)))
    assert [(offset // CHUNK_BYTES, length, digest[:1]) for offset, length, digest in entry.pieces()] == [
        (2, CHUNK_BYTES, b"a"),
        (3, CHUNK_BYTES, b"b"),
        (9, 5, b"c"),
    ]


@pytest.mark.parametrize("size", [0, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_list_that_does_not_fit_the_size_is_corruption(size: int) -> None:
    """An entry whose chunks are too few or too many for its size is never restored."""
    entry = Entry(EntryType.FILE, 0, 0, 0, 0, size=size, chunks=bytes(2 * DIGEST_BYTES))
    with pytest.raises(Corruption):
        list(entry.pieces())


def test_a_newer_version_is_unsupported_and_rubbish_is_corruption() -> None:
    """A version from the future names itself; bytes that are no entry are corruption, not a traceback."""
    with pytest.raises(Unsupported, match="version 9"):
        decode_entry(b"\x09rest", _no_lists)
    for rubbish in (b"", b"\x01", b"\x01\xff\xff", GOLDEN[:-3]):
        with pytest.raises(Corruption):
            decode_entry(rubbish, _no_lists)
