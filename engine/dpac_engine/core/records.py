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

import xxhash

from dpac_api.errors import Corruption

ALIGNMENT_BYTES = 64
HEADER = struct.Struct("<HBBIIIQQQQIIQ")
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == ALIGNMENT_BYTES
_UNSIGNED = struct.Struct("<HBBIIIQQQQII")  # the header without its checksum
_KEY = struct.Struct("<HH")
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
