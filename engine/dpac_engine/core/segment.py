"""Segments: sealed immutable slices of a shard (docs/journal-format.md).

`SegmentWriter` collects records and seals them; `SegmentReader` opens a segment by ranged reads. Both are pure: randomness
and bytes come from outside.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from backports import zstd
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core.checkpoints import Mark, decode_mark
from dpac_engine.core.records import Header, Kind, Records, decode_key
from dpac_engine.core.stream_hashes import UNIT_BYTES, StreamHashes, digests_of

MAGIC = b"DPACSEG1"
FOOTER_MAGIC = b"DPACEND1"
FORMAT_VERSION = 1
BLOCK_BYTES = 65536
"""Of a log segment: small, because a mount reads the newest changes at random."""
BULK_BLOCK_BYTES = 262144
"""Of fill and merged segments: they hold most of what is stored, and compress better in larger blocks."""
TAG_BYTES = 16
TAIL_BYTES = 128 * 1024
"""Read at once from a segment's end: footer and, for up to some ten thousand records, the index."""
_HEADER = struct.Struct("<8sHHIQQ16s16s32s16s16sQQQQIIBB78s")
_FOOTER = struct.Struct("<8sQQQQ16s")
HEADER_BYTES = _HEADER.size + 8
FOOTER_BYTES = _FOOTER.size + 8
_NONCE = struct.Struct("<IQ")

ROW = np.dtype(
    [
        ("kind", "u1"),
        ("flags", "u1"),
        ("zero", "<u2"),
        ("member", "<u4"),
        ("lsn", "<u8"),
        ("stamp", "<u8"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("position", "<u8"),
        ("payload_bytes", "<u8"),
    ]
)
RowArray = npt.NDArray[np.void]


DataKeys = Callable[[str], bytes]
"""key id -> 32 bytes; NotFound if this site has no such key."""


class SegmentKind(IntEnum):
    """What a segment's rows are."""

    LOG = 1
    FILL = 2
    MERGED = 3


_KINDS = frozenset(SegmentKind)


class Feature(IntFlag):
    """Required features: a reader that lacks one refuses the segment."""

    ZSTD = 1
    AES_256_GCM = 2


SUPPORTED_FEATURES = Feature.ZSTD | Feature.AES_256_GCM


class Domain(IntEnum):
    """What a nonce is for."""

    BLOCK = 0
    INDEX = 1


@dataclass(frozen=True)
class SegmentHeader:
    """The first 256 bytes of a segment. Uids are raw bytes; LSN range is half-open; stamps in nanoseconds."""

    group_uid: bytes
    shard_uid: bytes
    segment_id: bytes
    key_id: bytes
    repository_uid: bytes
    epoch: int
    lsn_from: int
    lsn_to: int
    stamp_from: int
    stamp_to: int
    membership_version: int
    kind: SegmentKind
    level: int = 0
    features: int = SUPPORTED_FEATURES
    optional_features: int = 0
    block_bytes: int = BLOCK_BYTES
    """How the block stream is cut."""

    def encode(self) -> bytes:
        """The header's bytes, checksum included."""
        body = _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            HEADER_BYTES,
            self.epoch,
            self.features,
            self.optional_features,
            self.group_uid,
            self.shard_uid,
            self.segment_id,
            self.key_id,
            self.repository_uid,
            self.lsn_from,
            self.lsn_to,
            self.stamp_from,
            self.stamp_to,
            self.membership_version,
            self.block_bytes,
            self.kind,
            self.level,
            bytes(78),
        )
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")

    @property
    def name(self) -> str:
        """The object's key below the group's prefix."""
        return f"s/{self.shard_uid.hex()}/{self.epoch:010d}-{self.lsn_from:016x}-{self.lsn_to:016x}-{self.segment_id.hex()}"


def decode_segment_header(data: bytes) -> SegmentHeader:
    """The header; Corruption if its bytes are damaged, Unsupported for a feature this build lacks."""
    if len(data) < HEADER_BYTES or data[:8] != MAGIC:
        raise Corruption("This is not a segment: it does not begin with DPACSEG1.")
    body = data[: _HEADER.size]
    if xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[_HEADER.size : HEADER_BYTES]:
        raise Corruption("The segment's header does not match its checksum.")
    (_, version, _, epoch, features, optional, group, shard, segment, key, repository, *rest) = _HEADER.unpack(body)
    lsn_from, lsn_to, stamp_from, stamp_to, membership, block_bytes, kind, level, _ = rest
    if (
        version != FORMAT_VERSION
        or features & ~int(SUPPORTED_FEATURES)
        or block_bytes not in (BLOCK_BYTES, BULK_BLOCK_BYTES)
        or kind not in _KINDS
    ):
        raise Unsupported(
            f"The segment has format {version}, kind {kind}, features {features:#x} and blocks of {block_bytes} bytes; "
            f"this build reads format {FORMAT_VERSION} and features {int(SUPPORTED_FEATURES):#x}. Use a newer dpac."
        )
    return SegmentHeader(
        group,
        shard,
        segment,
        key,
        repository,
        epoch,
        lsn_from,
        lsn_to,
        stamp_from,
        stamp_to,
        membership,
        SegmentKind(kind),
        level,
        features,
        optional,
        block_bytes,
    )


class Seal:
    """Compresses and encrypts the blocks of one sealed thing; its id is never used for another."""

    def __init__(
        self,
        data_key: bytes,
        unique_id: bytes,
        associated: bytes,
        compression_level: int = 3,
        info: bytes = b"dpac segment 1",
    ) -> None:
        key = HKDF(hashes.SHA256(), 32, salt=unique_id, info=info).derive(data_key)
        self._aead = AESGCM(key)
        self._associated = associated
        # One for all blocks: making a compressor costs more than a block of 64 KiB. It is locked while it works.
        self._compressor = zstd.ZstdCompressor(level=compression_level)

    def close(self, domain: Domain, number: int, plain: bytes | memoryview) -> bytes:
        """The stored form of a block."""
        packed = self._compressor.compress(plain, mode=zstd.ZstdCompressor.FLUSH_FRAME)
        body = b"".join((b"\x01", packed) if len(packed) < len(plain) else (b"\x00", plain))
        return self._aead.encrypt(_NONCE.pack(domain, number), body, self._associated)

    def open(self, domain: Domain, number: int, stored: bytes | memoryview) -> bytes:
        """The plain bytes of a block; Corruption if one bit of it, or of its header, is not what was written."""
        try:
            body = self._aead.decrypt(_NONCE.pack(domain, number), stored, self._associated)
        except InvalidTag:
            raise Corruption(f"Block {number} fails its authentication: stored bytes are damaged or foreign.") from None
        return zstd.decompress(memoryview(body)[1:]) if body[0] == 1 else body[1:]


class _Index(msgspec.Struct, omit_defaults=True):
    records: bytes
    blocks: bytes
    keys: list[tuple[int, bytes]]
    marks: list[bytes]
    hashes: bytes = b""


class Unsealed(NamedTuple):
    """Records as a segment would hold them, in memory (an `image.IndexedSegment`)."""

    rows: RowArray
    keys: Sequence[tuple[int, bytes]]
    stream: bytes

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the payloads, one after the other."""
        return self.stream[position : position + length]

    @property
    def name(self) -> str:
        """See `image.IndexedSegment`."""
        return ""

    def hashes(self) -> StreamHashes:
        """See `image.IndexedSegment`: it is at hand."""
        return StreamHashes(b"", len(self.stream))

    def read_once(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`."""
        return self.read(position, length)


class SegmentWriter:
    """Collects records in LSN order and seals them into one segment."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int, int, int, int, int]] = []
        self._parts: list[RowArray] = []
        self._payloads: list[bytes | memoryview] = []
        self._keys: list[tuple[int, bytes]] = []
        self._marks: list[bytes] = []
        self.plain_bytes = 0

    def __len__(self) -> int:
        return len(self._rows) + sum(len(part) for part in self._parts)

    def extend(self, records: Records) -> None:
        """Add what lies in the spool as it lies there. Copies the payloads: their file may be recycled."""
        headers, payloads = records.headers, records.payloads
        for at in np.flatnonzero(np.isin(headers["kind"], (Kind.PUT, Kind.DELETE))).tolist():
            keyspace, key, start = decode_key(payloads[at])
            self._keys.append((keyspace, key))
            payloads[at] = payloads[at][start:]
        self._marks += [bytes(payloads[at]) for at in np.flatnonzero(headers["kind"] == Kind.MARK).tolist()]
        lengths = np.array([len(payload) for payload in payloads], np.uint64)
        ends = self.plain_bytes + np.cumsum(lengths)
        rows = np.zeros(len(headers), ROW)
        for name in ("kind", "flags", "member", "lsn", "stamp", "offset", "length"):
            rows[name] = headers[name]
        rows["position"], rows["payload_bytes"] = ends - lengths, lengths
        self._pack()
        self._parts.append(rows)
        self._payloads.append(b"".join(payloads))
        self.plain_bytes += len(self._payloads[-1])

    def extend_by(self, segment: SegmentReader) -> None:
        """Add all that an older segment holds. Reads it whole; Corruption if it is damaged."""
        rows = segment.rows.copy()
        rows["position"] += np.uint64(self.plain_bytes)
        self._pack()
        self._parts.append(rows)
        self._keys += segment.keys
        self._marks += segment.mark_payloads
        self._payloads += segment.blocks(0, segment.block_count) if segment.block_count else []
        self.plain_bytes += segment.plain_bytes

    def _pack(self) -> None:
        if self._rows:
            self._parts.append(np.array(self._rows, ROW))
            self._rows = []

    def add(
        self,
        kind: int,
        flags: int,
        member: int,
        lsn: int,
        stamp: int,
        offset: int,
        length: int,
        payload: bytes | memoryview,
        key: tuple[int, bytes] | None = None,
    ) -> None:
        """Add a record. For put and delete `key` is (key space, key) and `payload` the value alone."""
        if kind in (Kind.PUT, Kind.DELETE):
            assert key is not None, "a put or delete has a key"
            self._keys.append(key)
        if kind == Kind.MARK:
            self._marks.append(bytes(payload))
        self._rows.append((kind, flags, 0, member, lsn, stamp, offset, length, self.plain_bytes, len(payload)))
        if len(payload):
            self._payloads.append(payload)
            self.plain_bytes += len(payload)

    def add_record(self, header: Header, payload: bytes | memoryview) -> None:
        """Add a record of the journal; its payload is copied."""
        key, value = None, payload
        if header.kind in (Kind.PUT, Kind.DELETE):
            keyspace, name, start = decode_key(payload)
            key, value = (keyspace, name), payload[start:]
        self.add(
            header.kind,
            header.flags,
            header.member,
            header.lsn,
            header.stamp,
            header.offset,
            header.length,
            bytes(value),
            key,
        )

    def unsealed(self) -> Unsealed:
        """What was collected, to be read as it is."""
        self._pack()
        rows = np.concatenate(self._parts) if self._parts else np.empty(0, ROW)
        return Unsealed(rows, tuple(self._keys), b"".join(self._payloads))

    def seal(self, header: SegmentHeader, data_key: bytes, compression_level: int) -> bytes:
        """The segment's bytes."""
        head = header.encode()
        seal = Seal(data_key, header.segment_id, head, compression_level)
        self._pack()
        records = b"".join(part.tobytes() for part in self._parts)
        stream = memoryview(b"".join(self._payloads))
        out, ends, at = [head], [], HEADER_BYTES
        for number, begin in enumerate(range(0, len(stream), header.block_bytes)):
            out.append(seal.close(Domain.BLOCK, number, stream[begin : begin + header.block_bytes]))
            at += len(out[-1])
            ends.append(at)
        is_device = any(bool(np.isin(part["kind"], (Kind.WRITE, Kind.FILL)).any()) for part in self._parts)
        hashes = digests_of(stream) if is_device and len(stream) >= UNIT_BYTES else b""
        index = _Index(records, np.array(ends, "<u8").tobytes(), self._keys, self._marks, hashes)
        stored = seal.close(Domain.INDEX, 0, msgspec.msgpack.encode(index))
        footer = _FOOTER.pack(FOOTER_MAGIC, at, len(stored), len(ends), len(stream), bytes(16))
        return b"".join((*out, stored, footer, xxhash.xxh3_64_intdigest(footer).to_bytes(8, "little")))


class SegmentReader:
    """A segment opened by ranged reads.

    `read(offset, length)` gives bytes of the stored object. The tail is read first; blocks on demand.
    rows: (n,) of dtype `ROW`; keys: of its put and delete rows, in order; marks: of its mark rows, in order.
    """

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int, data_keys: DataKeys) -> None:
        self._read = read
        if size_bytes < HEADER_BYTES + FOOTER_BYTES:
            raise Corruption(f"A segment of {size_bytes} bytes is too short to be one.")
        self.header = decode_segment_header(read(0, HEADER_BYTES))
        # Most indexes come with the footer in one read: at a target far away every request counts.
        tail_at = max(HEADER_BYTES, size_bytes - TAIL_BYTES)
        tail = read(tail_at, size_bytes - tail_at)
        at, length, self._block_count, self.plain_bytes = _decode_footer(tail[-FOOTER_BYTES:])
        if at + length + FOOTER_BYTES != size_bytes:
            raise Corruption("The segment's footer does not fit its size.")
        stored = tail[at - tail_at : -FOOTER_BYTES] if at >= tail_at else read(at, length)
        self._seal = Seal(data_keys(self.header.key_id.hex()), self.header.segment_id, self.header.encode())
        self._index_at = (at, length)
        index = self._index(stored)
        self.rows: RowArray = np.frombuffer(index.records, ROW)
        self.keys = index.keys
        self.mark_payloads = index.marks
        self._ends = np.frombuffer(index.blocks, "<u8").tolist()
        if len(self._ends) != self._block_count:
            raise Corruption("The segment's index does not name all its blocks.")

    def _index(self, stored: bytes) -> _Index:
        return msgspec.msgpack.decode(self._seal.open(Domain.INDEX, 0, stored), type=_Index)

    def hashes(self) -> StreamHashes:
        """Hashes of the block stream; by a read of its own, because hardly anybody wants them."""
        return StreamHashes(self._index(self._read(*self._index_at)).hashes, self.plain_bytes)

    @property
    def block_count(self) -> int:
        """Number of blocks in the block stream."""
        return self._block_count

    def marks(self) -> list[Mark]:
        """The segment's checkpoints, oldest first."""
        rows = self.rows[self.rows["kind"] == Kind.MARK]
        return [
            decode_mark(self.header.epoch, lsn, stamp, payload)
            for lsn, stamp, payload in zip(
                rows["lsn"].tolist(), rows["stamp"].tolist(), self.mark_payloads, strict=True
            )
        ]

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Plain bytes of `count` blocks from `first`, by one read; Corruption if one is damaged."""
        begin = self._ends[first - 1] if first else HEADER_BYTES
        stored = memoryview(self._read(begin, self._ends[first + count - 1] - begin))
        plain, at = [], begin
        for number in range(first, first + count):
            end = self._ends[number]
            plain.append(self._seal.open(Domain.BLOCK, number, stored[at - begin : end - begin]))
            at = end
        return plain


def _decode_footer(data: bytes) -> tuple[int, int, int, int]:
    if data[:8] != FOOTER_MAGIC or xxhash.xxh3_64_intdigest(data[:-8]).to_bytes(8, "little") != data[-8:]:
        raise Corruption("The segment's footer is damaged: it was cut short or overwritten.")
    _, at, length, blocks, plain, _ = _FOOTER.unpack(data[:-8])
    return at, length, blocks, plain
