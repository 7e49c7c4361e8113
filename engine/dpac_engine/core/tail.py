"""Tails: the end of a shard at a sync leg's target, ahead of the manifests (docs/journal-format.md).

A tail is a preallocated file that is only appended to: a header, then frames. A frame holds the records of one group
commit, sealed; the next is written only after it is durable. So at most the last one may be torn, which shows in a
sector of it that is still empty. Anything else that is wrong is Corruption.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core import records
from dpac_engine.core.records import Flags, Header, Kind
from dpac_engine.core.segment import SUPPORTED_FEATURES, TAG_BYTES, Domain, Seal

MAGIC = b"DPACTAIL"
FRAME_MAGIC = b"DPACFRM1"
FRAME_END = b"DPACFEND"
FORMAT_VERSION = 1
PREFIX = "tail/"
SECTOR_BYTES = 512
FRAME_ALIGNMENT_BYTES = 64
FRAME_PLAIN_BYTES_MAX = 4 * 2**20
"""Records are put into another frame beyond this; a single longer one has a frame of its own."""
_HEADER = struct.Struct("<8sHHIQQ16s16s32s16s16sQQI100s")
_FRAME = struct.Struct("<8sQQQQ16s")
HEADER_BYTES = _HEADER.size + 8
FRAME_HEAD_BYTES = _FRAME.size + 8
assert HEADER_BYTES == 256
assert FRAME_HEAD_BYTES == 64
SEALED_EXTRA_BYTES = 1 + TAG_BYTES
"""A sealed body has at most so many bytes more than the plain one: codec and authentication."""
_COMPRESSION_LEVEL = 1  # a FLUSH waits for it


@dataclass(frozen=True)
class TailHeader:
    """The first 256 bytes of a tail. Uids are raw bytes."""

    group_uid: bytes
    shard_uid: bytes
    tail_id: bytes
    key_id: bytes
    repository_uid: bytes
    epoch: int
    lsn_from: int
    """Where its first frame begins."""
    incarnation: int
    """Of the shard, when it was written."""
    opened_lsn: int
    """Where that incarnation began: nothing of an earlier one behind it was ever acknowledged."""

    def encode(self) -> bytes:
        """The header's bytes, checksum included."""
        body = _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            HEADER_BYTES,
            self.epoch,
            int(SUPPORTED_FEATURES),
            0,
            self.group_uid,
            self.shard_uid,
            self.tail_id,
            self.key_id,
            self.repository_uid,
            self.lsn_from,
            self.opened_lsn,
            self.incarnation,
            bytes(100),
        )
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")

    @property
    def name(self) -> str:
        """The file's key below the group's prefix."""
        return f"{PREFIX}{self.shard_uid.hex()}-{self.epoch:010d}-{self.lsn_from:016x}-{self.tail_id.hex()}"


def decode_tail_header(data: bytes) -> TailHeader | None:
    """The header; None if the file was given a name but no header yet, Corruption if it is damaged."""
    if not any(data[:HEADER_BYTES]):
        return None
    body = data[: _HEADER.size]
    if xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[_HEADER.size : HEADER_BYTES] or data[:8] != MAGIC:
        raise Corruption("The tail's header is damaged.")
    (_, version, _, epoch, features, _, group, shard, tail, key, repository, lsn_from, opened, incarnation, _) = (
        _HEADER.unpack(body)
    )
    if version != FORMAT_VERSION or features & ~int(SUPPORTED_FEATURES):
        raise Unsupported(f"The tail has format {version}; this build reads {FORMAT_VERSION}. Use a newer dpac.")
    return TailHeader(group, shard, tail, key, repository, epoch, lsn_from, incarnation, opened)


def _seal(header: TailHeader, data_key: bytes) -> Seal:
    return Seal(data_key, header.tail_id, header.encode(), _COMPRESSION_LEVEL, b"dpac tail 1")


class Frame(NamedTuple):
    """What a frame holds: the journal of `[lsn_from, lsn_to)`, as it lies in the spool, without pads."""

    lsn_from: int
    lsn_to: int
    plain: bytes


class TailEncoder:
    """Makes the frames of one tail, in order."""

    def __init__(self, header: TailHeader, data_key: bytes) -> None:
        self._tail_id = header.tail_id
        self._seal = _seal(header, data_key)
        self._number = 0

    def frame(self, lsn_from: int, lsn_to: int, plain: bytes) -> bytes:
        """The next frame's bytes; each is to be durable before the next one is written."""
        sealed = self._seal.close(Domain.BLOCK, self._number, plain)
        body = _FRAME.pack(FRAME_MAGIC, self._number, lsn_from, lsn_to, len(sealed), bytes(16))
        head = body + _frame_check(self._tail_id, body)
        self._number += 1
        room = -(FRAME_HEAD_BYTES + len(sealed) + len(FRAME_END)) % FRAME_ALIGNMENT_BYTES
        return b"".join((head, sealed, bytes(room), FRAME_END))


def frame_bytes(sealed_bytes: int) -> int:
    """What a frame with a sealed body of that length takes in the file."""
    return -(-(FRAME_HEAD_BYTES + sealed_bytes + len(FRAME_END)) // FRAME_ALIGNMENT_BYTES) * FRAME_ALIGNMENT_BYTES


def _frame_check(tail_id: bytes, body: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(tail_id + body).to_bytes(8, "little")


class TailDecoder:
    """Reads the frames of one tail, in order, also while more are being written."""

    def __init__(self, header: TailHeader, data_key: bytes) -> None:
        self.header = header
        self._seal = _seal(header, data_key)
        self._number = 0
        self.position = HEADER_BYTES
        """Where the next frame begins in the file."""
        self.lsn = header.lsn_from
        """The tail has the log from its begin to here."""
        self.damage: Corruption | None = None
        """Why no frame is read behind this point, if there should be one."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that have come whole; `data` is the file from `position` to its end."""
        frames: list[Frame] = []
        view, at = memoryview(data), 0
        try:
            while (length := self._frame_bytes(data[at : at + FRAME_HEAD_BYTES])) and (
                frame := self._frame(view[at : at + length], length)
            ):
                frames.append(frame)
                at += length
            self._check_end(data, at)
            self.damage = None
        except Corruption as error:
            self.damage = Corruption(
                f"{self.header.name} is damaged at byte {self.position} (frame {self._number}): {error.message} What was "
                f"acknowledged after LSN {self.lsn} cannot be read there."
            )
        return frames

    def _frame_bytes(self, head: bytes) -> int:
        """How long the frame is that begins so; 0 if there is none yet. A head lies within one sector: it is not torn."""
        if len(head) < FRAME_HEAD_BYTES or not any(head):
            return 0
        fields = self._head(head)
        if fields is None:
            raise Corruption("its head does not match its checksum.")
        number, lsn_from, _, sealed_bytes = fields
        if number != self._number or lsn_from != self.lsn:
            raise Corruption(f"it is frame {number} from LSN {lsn_from}.")
        return frame_bytes(sealed_bytes)

    def _head(self, head: bytes) -> tuple[int, int, int, int] | None:
        body = head[: _FRAME.size]
        if head[_FRAME.size :] != _frame_check(self.header.tail_id, body):
            return None
        magic, number, lsn_from, lsn_to, sealed_bytes, _ = _FRAME.unpack(body)
        return (number, lsn_from, lsn_to, sealed_bytes) if magic == FRAME_MAGIC else None

    def _frame(self, data: memoryview, length: int) -> Frame | None:
        """The frame; None if it is torn."""
        _, number, lsn_from, lsn_to, sealed_bytes, _ = _FRAME.unpack(data[: _FRAME.size])
        try:
            if len(data) < length or data[-len(FRAME_END) :] != FRAME_END:
                raise Corruption("its end is not there.")
            plain = self._seal.open(Domain.BLOCK, number, data[FRAME_HEAD_BYTES : FRAME_HEAD_BYTES + sealed_bytes])
        except Corruption:
            if len(data) < length or _has_empty_sector(data, self.position):
                return None
            raise
        self._number += 1
        self.position += length
        self.lsn = lsn_to
        return Frame(lsn_from, lsn_to, plain)

    def _check_end(self, data: bytes, at: int) -> None:
        """The frame after a torn one was never written: if one is there, this one had been whole."""
        while (at := data.find(FRAME_MAGIC, at)) >= 0:
            fields = self._head(data[at : at + FRAME_HEAD_BYTES])
            if fields is not None and fields[0] > self._number:
                raise Corruption(f"it is gone, but frame {fields[0]} behind it is there.")
            at += 1


def _has_empty_sector(data: memoryview, position: int) -> bool:
    """Whether some sector was never written: the file was all zeroes, and what is written here is nowhere zero for so long."""
    at = 0
    while at < len(data):
        end = min(len(data), at + SECTOR_BYTES - (position + at) % SECTOR_BYTES)
        if not any(data[at:end]):
            return True
        at = end
    return False


def records_of(frame: Frame) -> Iterator[tuple[Header, memoryview]]:
    """The records in a frame, with their payloads. Corruption if it holds something else."""
    view, at, lsn = memoryview(frame.plain), 0, frame.lsn_from
    while at < len(view):
        header = records.decode_header(view, at)
        if header is None or header.kind == Kind.PAD or not lsn <= header.lsn < frame.lsn_to:
            raise Corruption(f"A tail's frame holds no record where that of LSN {lsn} belongs.")
        payload = records.payload_of(view, at, header)
        yield header, payload
        at += records.stored_bytes(header.payload_bytes)
        lsn = header.next_lsn


class Log:
    """What several tails tell together, behind a repository's manifests."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self.end = cursor
        """The log is here from the cursor to this LSN."""
        self.records: list[tuple[Header, memoryview]] = []
        self._incarnation = 0

    def add(self, header: TailHeader, frames: Sequence[Frame], lsn_max: int | None) -> None:
        """Take a tail's frames up to `lsn_max` (where a later epoch began). Tails come in the order of their incarnations."""
        if header.incarnation > self._incarnation:
            # What an earlier life sent behind the point where this one began was never acknowledged, and never was.
            self._cut(max(self.cursor, header.opened_lsn))
            self._incarnation = header.incarnation
        for frame in frames:
            if frame.lsn_from > self.end:
                return
            if frame.lsn_to > self.end:
                self.records += [record for record in records_of(frame) if record[0].lsn >= self.end]
                self.end = frame.lsn_to
        if lsn_max is not None:
            self._cut(max(self.cursor, lsn_max))

    def finish(self) -> None:
        """Leave out a run that was cut short: it is indivisible."""
        while self.records and self.records[-1][0].flags & Flags.RUN_CONTINUES:
            self.end = self.records.pop()[0].lsn

    def _cut(self, lsn: int) -> None:
        if lsn < self.end:
            self.records = [record for record in self.records if record[0].lsn < lsn]
            self.end = lsn
