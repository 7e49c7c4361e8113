"""Records: what a shard of the journal is made of, and how they lie in the spool.

A shard is one stream of bytes. A record's LSN is its position in that stream;
records start at multiples of 64 and are a 64-byte header, then the payload,
then zeroes up to the next multiple of 64. docs/journal-format.md has the table.

The checksum covers header and payload, and the header names its own LSN,
shard and incarnation, so that a recycled spool file's old records are never
taken for new ones.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import xxhash

from dpac_api.errors import Corruption

ALIGNMENT_BYTES = 64
HEADER = struct.Struct("<HBBIIIQQQQIIQ")
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == ALIGNMENT_BYTES
_UNSIGNED = struct.Struct("<HBBIIIQQQQII")  # the header without its checksum
_STEP = struct.Struct("<HB9xI")  # of a header what a walk needs: magic, kind, payload bytes
_KEY = struct.Struct("<HH")
HEADER_DTYPE = np.dtype(
    [
        ("magic", "<u2"),
        ("kind", "u1"),
        ("flags", "u1"),
        ("incarnation", "<u4"),
        ("member", "<u4"),
        ("payload_bytes", "<u4"),
        ("lsn", "<u8"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("stamp", "<u8"),
        ("shard_tag", "<u4"),
        ("epoch", "<u4"),
        ("checksum", "<u8"),
    ]
)
"""A header as `HEADER` packs it, for many at once."""
HeaderArray = npt.NDArray[np.void]
MAGIC = 0x4A64  # "dJ"
PAYLOAD_BYTES_MAX = 32 * 2**20
KEY_BYTES_MAX = 0xFFFF

GROUP_ORDINAL = 0
"""The member ordinal of records that concern the whole group: marks and padding."""


class Kind(IntEnum):
    """The record kinds. Numbers are format: never reused."""

    PAD = 0  # fills a spool file's end; carries nothing
    WRITE = 1  # payload is the data of [offset, offset + length)
    ZERO = 2  # [offset, offset + length) reads as zeroes
    TRIM = 3  # the same, and its space may be freed
    RESIZE = 4  # the device has `length` bytes from here on
    RESET = 5  # everything known of the member is void from here on
    FILL = 6  # like WRITE: read from the member under a range lock, state as of this LSN
    PUT = 7  # key space, key and value
    DELETE = 8  # key
    APPEND = 9  # payload continues stream `offset` of the member at position `length`
    MARK = 10  # a checkpoint; payload is JSON


class Flags(IntEnum):
    """Bits of a record's flags."""

    RUN_CONTINUES = 1  # the next record belongs to the same indivisible run
    SEED = 2  # part of the state before its LSN, read from the member and not from the log


class Keyspace(IntEnum):
    """The key spaces of a key-value member."""

    ENTRY = 0  # path -> metadata and chunk list
    CHUNK = 1  # blake3 of the content -> content


class KeyChange(NamedTuple):
    """A change to a key; `value` None deletes it. Keys have at most 65,535 bytes, values 16 MiB."""

    keyspace: int
    key: bytes
    value: bytes | memoryview | None


class Header(NamedTuple):
    """A decoded record header (fields as in docs/journal-format.md)."""

    kind: int
    flags: int
    incarnation: int
    member: int
    payload_bytes: int
    lsn: int
    offset: int
    length: int
    stamp: int
    shard_tag: int
    epoch: int
    checksum: int

    @property
    def next_lsn(self) -> int:
        """Where the record after this one starts."""
        return self.lsn + stored_bytes(self.payload_bytes)


def stored_bytes(payload_bytes: int) -> int:
    """Bytes a record with that payload takes in the stream, padding included."""
    return (HEADER_BYTES + payload_bytes + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES


def encode_header(
    kind: int,
    flags: int,
    incarnation: int,
    member: int,
    lsn: int,
    offset: int,
    length: int,
    stamp: int,
    shard_tag: int,
    epoch: int,
    payload: bytes | memoryview,
) -> bytes:
    """The 64 bytes before `payload`."""
    unsigned = _UNSIGNED.pack(
        MAGIC, kind, flags, incarnation, member, len(payload), lsn, offset, length, stamp, shard_tag, epoch
    )
    return unsigned + xxhash.xxh3_64_intdigest(payload, crc32(unsigned)).to_bytes(8, "little")


def decode_header(stream: memoryview | bytes, at: int) -> Header | None:
    """The header at byte `at` of `stream`, or None where there is none: magic or size is off. Leaves the checksum unchecked."""
    if at + HEADER_BYTES > len(stream):
        return None
    magic, *fields = HEADER.unpack_from(stream, at)
    header = Header(*fields)
    return header if magic == MAGIC and header.payload_bytes <= PAYLOAD_BYTES_MAX else None


def payload_of(stream: memoryview, at: int, header: Header) -> memoryview:
    """The payload of the record at byte `at`, its checksum checked; Corruption if it does not match."""
    payload = stream[at + HEADER_BYTES : at + HEADER_BYTES + header.payload_bytes]
    seed = crc32(stream[at : at + HEADER_BYTES - 8])
    if len(payload) != header.payload_bytes or xxhash.xxh3_64_intdigest(payload, seed) != header.checksum:
        raise Corruption(f"The journal record at LSN {header.lsn} does not match its checksum.")
    return payload


class Records(NamedTuple):
    """Records that follow each other. headers: (n,) of dtype `HEADER_DTYPE`; payloads: one each, views."""

    headers: HeaderArray
    payloads: list[memoryview]
    next_lsn: int
    """Where the record after the last of them starts."""


def decode_records(stream: memoryview, base_lsn: int, from_lsn: int, to_lsn: int, bytes_max: int) -> Records:
    """Records of `[from_lsn, to_lsn)`, checked, padding left out, until they hold `bytes_max` payload bytes.

    `stream` is one spool file, whose first byte is at `base_lsn`. A record whose run continues is never the last one
    because of `bytes_max`. Corruption where the stream does not hold what it must.
    """
    places: list[int] = []
    at, end, room = from_lsn - base_lsn, min(to_lsn - base_lsn, len(stream)), bytes_max
    while at < end:
        magic, kind, payload_bytes = _STEP.unpack_from(stream, at)
        if magic != MAGIC or payload_bytes > PAYLOAD_BYTES_MAX:
            raise Corruption(f"The spool has no record at LSN {base_lsn + at}, where there must be one.")
        if kind == Kind.PAD:
            at = len(stream)  # a pad fills its file
            break
        places.append(at)
        room -= payload_bytes
        at += (HEADER_BYTES + payload_bytes + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES
        if room <= 0 and not stream[places[-1] + 3] & Flags.RUN_CONTINUES:
            break
    lines = np.frombuffer(stream, HEADER_DTYPE)
    headers = lines[np.array(places, np.int64) // HEADER_BYTES]
    if not np.array_equal(headers["lsn"], np.array(places, np.uint64) + np.uint64(base_lsn)):
        raise Corruption(f"The spool has foreign records from LSN {from_lsn} on.")
    payloads = [
        stream[start + HEADER_BYTES : start + HEADER_BYTES + length]
        for start, length in zip(places, headers["payload_bytes"].tolist(), strict=True)
    ]
    sums = [
        xxhash.xxh3_64_intdigest(payload, crc32(stream[start : start + HEADER_BYTES - 8]))
        for start, payload in zip(places, payloads, strict=True)
    ]
    if (bad := np.flatnonzero(headers["checksum"] != np.array(sums, np.uint64))).size:
        raise Corruption(f"The journal record at LSN {base_lsn + places[bad[0]]} does not match its checksum.")
    return Records(headers, payloads, base_lsn + at)


def encode_key_change(change: KeyChange) -> tuple[int, bytes]:
    """Kind and payload of a key change: key space and key length (two u16), key, value."""
    prefix = _KEY.pack(change.keyspace, len(change.key)) + change.key
    if change.value is None:
        return Kind.DELETE, prefix
    return Kind.PUT, b"".join((prefix, change.value))


def decode_key(payload: memoryview | bytes) -> tuple[int, bytes, int]:
    """Key space, key, and where in `payload` the value starts."""
    keyspace, key_bytes = _KEY.unpack_from(payload)
    start = _KEY.size + key_bytes
    return keyspace, bytes(payload[_KEY.size : start]), start
