"""Records: their bytes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpac_api.errors import Corruption
from dpac_engine.core.checkpoints import CutBody, MarkBody, decode_mark
from dpac_engine.core.records import (
    HEADER_BYTES,
    Header,
    KeyChange,
    Keyspace,
    Kind,
    decode_header,
    decode_key,
    encode_header,
    encode_key_change,
    payload_of,
)

DATA = Path(__file__).parents[1] / "data"
_u32, _u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
GOLDEN_PAYLOAD = b"what was written"


def golden_record() -> bytes:
    """A write of fixed fields, as it lies in the spool."""
    header = encode_header(Kind.WRITE, 1, 5, 7, 6400, 4096, 16, 10**18, 0xA1B2C3D4, 3, GOLDEN_PAYLOAD)
    return (header + GOLDEN_PAYLOAD).ljust(128, b"\0")


def golden_mark() -> bytes:
    """A mark's payload."""
    cuts = {"1": CutBody("exact"), "2": CutBody("observed", 10**18, 5 * 10**8)}
    return MarkBody(4711, 2, cuts, app=True, tags=["before-migration"], epoch=3).encode()


@given(
    st.sampled_from(Kind), st.integers(0, 255), _u32, _u32, _u64, _u64, _u64, _u64, _u32, _u32, st.binary(max_size=200)
)
def test_every_field_comes_back(
    kind: int, flags: int, incarnation: int, member: int, lsn: int, offset: int, length: int, stamp: int, tag: int,
    epoch: int, payload: bytes,
) -> None:  # fmt: skip
    """Whatever the fields hold."""
    stored = encode_header(kind, flags, incarnation, member, lsn, offset, length, stamp, tag, epoch, payload) + payload
    header = decode_header(stored, 0)
    assert header is not None
    assert header[:11] == (kind, flags, incarnation, member, len(payload), lsn, offset, length, stamp, tag, epoch)
    assert bytes(payload_of(memoryview(stored), 0, header)) == payload
    assert header.next_lsn % 64 == lsn % 64


def test_any_flipped_bit_is_seen() -> None:
    """In header or payload: there is no record, or its checksum fails."""
    stored = golden_record()
    for at in range(HEADER_BYTES + len(GOLDEN_PAYLOAD)):
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[at] ^= 1 << bit
            header = decode_header(bytes(damaged), 0)
            if header is not None:
                with pytest.raises(Corruption):
                    payload_of(memoryview(damaged), 0, header)


def test_a_header_cut_short_is_none() -> None:
    """Less than 64 bytes are no record."""
    assert all(decode_header(golden_record()[:count], 0) is None for count in range(HEADER_BYTES))


@given(st.sampled_from(Keyspace), st.binary(max_size=70_000 // 700), st.one_of(st.none(), st.binary(max_size=100)))
def test_key_changes_come_back(space: Keyspace, key: bytes, value: bytes | None) -> None:
    """Puts with any value, the empty one among them, and deletes."""
    kind, payload = encode_key_change(KeyChange(space, key, value))
    assert kind == (Kind.DELETE if value is None else Kind.PUT)
    found_space, found_key, start = decode_key(payload)
    assert (found_space, found_key, payload[start:]) == (space, key, value or b"")


def test_the_golden_record_is_read_and_made_again() -> None:
    """Bytes that an earlier build stored mean the same, and are written the same."""
    stored = (DATA / "record.bin").read_bytes()
    assert stored == golden_record()
    header = decode_header(stored, 0)
    assert header == Header(
        Kind.WRITE, 1, 5, 7, 16, 6400, 4096, 16, 10**18, 0xA1B2C3D4, 3, header.checksum if header else 0
    )
    assert bytes(payload_of(memoryview(stored), 0, header)) == GOLDEN_PAYLOAD


def test_the_golden_mark_is_read_and_made_again() -> None:
    """The same for a checkpoint's payload."""
    stored = (DATA / "mark.json").read_bytes()
    assert stored == golden_mark()
    mark = decode_mark(1, 64, 5, stored)
    assert (mark.id, mark.body.app, mark.body.tags) == ("ck-3-4711", True, ["before-migration"])
    assert mark.body.cuts["2"] == CutBody("observed", 10**18, 5 * 10**8)
