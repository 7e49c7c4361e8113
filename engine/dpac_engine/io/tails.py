"""Tails at a target: written by a sync leg, read by recovery (`core/tail.py`, docs/journal-format.md)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from dpac_api.errors import Corruption, DpacError, NotFound, Temporary
from dpac_engine.core import tail
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody, decode_mark
from dpac_engine.core.manifest import RepositoryState, SegmentRef, mark_range
from dpac_engine.core.ports import Store, TailFile, TailStore
from dpac_engine.core.records import Kind, stored_bytes
from dpac_engine.core.segment import RowArray, SegmentKind, SegmentWriter, Unsealed
from dpac_engine.core.stream_hashes import StreamHashes
from dpac_engine.core.tail import Frame, Log, TailDecoder, TailEncoder, TailHeader
from dpac_engine.io.spool import Spool

log = logging.getLogger(__name__)

TAIL_BYTES = 16 * 2**20
"""Size of a tail; the next one is begun when it is full."""


class Abandoned(DpacError):
    """Somebody gave this tail up meanwhile: it takes nothing any more."""


class TailWriter:
    """Brings a shard's records to a target as they are appended. Used by one thread at a time, and blocks.

    `begin(lsn)` gives the header of a tail that starts there and its data key; it checks first that no other primary
    writes. `ends` learns of each tail the LSN that it may hold at most.
    """

    def __init__(
        self,
        store: TailStore,
        spool: Spool,
        begin: Callable[[int], tuple[TailHeader, bytes]],
        lsn: int,
        ends: dict[str, int],
    ) -> None:
        self._store = store
        self._spool = spool
        self._begin = begin
        self._file: TailFile | None = None
        self._encoder: TailEncoder | None = None
        self._position = self._size = 0
        self.lsn = lsn
        """The target has everything before it durably (from where this writer began)."""
        self.name: str | None = None
        """The tail that is being written."""
        self._ends = ends
        self.abandoned = threading.Event()

    def append(self, to_lsn: int) -> None:
        """Bring everything before `to_lsn` to the target; durable there when this returns. Errors of a `Store`."""
        for frame_to, plain in self._batches(to_lsn):
            if self.abandoned.is_set():
                raise Abandoned("The tail was given up.")
            self._write(frame_to, plain)

    def _batches(self, to_lsn: int) -> Iterator[tuple[int, bytes]]:
        """(where it ends, records as they lie in the spool) for each frame."""
        at = self.lsn
        while at < to_lsn:
            end, plain = to_lsn, b""
            for batch in self._spool.read(at, to_lsn, tail.FRAME_PLAIN_BYTES_MAX):
                first, last = int(batch.headers["lsn"][0]), batch.headers[-1]
                size = int(last["lsn"]) + stored_bytes(int(last["payload_bytes"])) - first
                end, plain = batch.next_lsn, bytes(self._spool.view(first, size))
                break
            if self._spool.released_lsn > at:
                raise Temporary("The spool went on meanwhile: what was read may be something else by now.")
            yield end, plain
            at = end

    def _write(self, to_lsn: int, plain: bytes) -> None:
        room = tail.HEADER_BYTES + tail.frame_bytes(len(plain) + tail.SEALED_EXTRA_BYTES)
        if self._file is None or self._position + room - tail.HEADER_BYTES > self._size:
            self._roll(max(TAIL_BYTES, room))
        assert self._file is not None
        assert self._encoder is not None
        assert self.name is not None
        self._ends[self.name] = to_lsn
        data = self._encoder.frame(self.lsn, to_lsn, plain)
        self._file.write(self._position, data)
        self._position += len(data)
        self.lsn = to_lsn

    def _roll(self, size_bytes: int) -> None:
        self.close()
        header, data_key = self._begin(self.lsn)
        self.name, self._ends[header.name] = header.name, self.lsn
        self._file = self._store.open_tail(header.name, size_bytes)
        self._file.write(0, header.encode())
        self._encoder = TailEncoder(header, data_key)
        self._position, self._size = tail.HEADER_BYTES, size_bytes
        threading.Thread(target=self._store.prepare, args=(TAIL_BYTES,), name="tail-spare", daemon=True).start()

    def close(self) -> None:
        """Let go of the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class StoredEnd(NamedTuple):
    """Where what manifests name ends."""

    mark: Mark | None
    """The newest checkpoint there."""
    stamp: int
    """Of the newest record."""
    marked: bool
    """That record is the checkpoint."""


@dataclass
class _Known:
    """A tail as far as it was read."""

    decoder: TailDecoder
    frames: list[Frame] = field(default_factory=list)


class TailSegment(NamedTuple):
    """What tails tell behind the manifests, as one more segment, in memory: tails go once a manifest has passed them."""

    ref: SegmentRef
    content: Unsealed
    checkpoints: list[Mark]

    @property
    def rows(self) -> RowArray:
        """See `image.IndexedSegment`."""
        return self.content.rows

    @property
    def keys(self) -> Sequence[tuple[int, bytes]]:
        """See `image.IndexedSegment`."""
        return self.content.keys

    def read(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`."""
        return self.content.read(position, length)

    @property
    def name(self) -> str:
        """See `image.IndexedSegment`: tails come and go."""
        return ""

    def hashes(self) -> StreamHashes:
        """See `image.IndexedSegment`."""
        return self.content.hashes()

    def read_once(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`."""
        return self.content.read(position, length)

    def marks(self) -> list[Mark]:
        """Its checkpoints, oldest first; the last one is its end."""
        return self.checkpoints


class TailReader:
    """Reads the tails of one repository, again and again as they grow."""

    def __init__(self, store: Store, data_keys: Callable[[str], bytes], group_uid: str) -> None:
        self._store = store
        self._data_keys = data_keys
        self._group_uid = group_uid
        self._known: dict[str, _Known] = {}
        self.damages: list[tuple[str, Corruption]] = []
        """(tail, what is wrong) of those that hold less than they should."""

    def read(self, state: RepositoryState, stored_end: Callable[[], StoredEnd]) -> TailSegment | None:
        """What the tails tell beyond the manifests; None if that is nothing."""
        names = list(self._store.list(tail.PREFIX))
        self._known = {name: known for name, known in self._known.items() if name in names}
        self.damages = []
        for name in names:
            try:
                self._read_on(name, state)
            except NotFound:
                self._known.pop(name, None)  # passed by a manifest meanwhile: the caller looks for it
            except Corruption as error:
                self.damages.append((name, error))
        return self._fold(state, stored_end)

    def _read_on(self, name: str, state: RepositoryState) -> None:
        known = self._known.get(name)
        if known is None:
            header = tail.decode_tail_header(self._store.get(name, 0, tail.HEADER_BYTES))
            if header is None or header.incarnation < state.last.incarnation:
                return
            if (header.group_uid.hex(), header.repository_uid.hex(), header.name) != (
                self._group_uid,
                state.last.repository,
                name,
            ):
                raise Corruption(f"{name} was moved here from elsewhere.")
            known = self._known[name] = _Known(TailDecoder(header, self._data_keys(header.key_id.hex())))
        known.frames += known.decoder.feed(self._store.get(name, known.decoder.position))
        if known.decoder.damage is not None:
            self.damages.append((name, known.decoder.damage))

    def _fold(self, state: RepositoryState, stored_end: Callable[[], StoredEnd]) -> TailSegment | None:
        last = state.last
        for shard, cursor in last.cursor.items():
            found = Log(cursor)
            for known in sorted(self._known.values(), key=_age):
                header = known.decoder.header
                later = [begin for epoch, begin in last.epochs if epoch > header.epoch]
                if (
                    header.shard_uid.hex() == shard
                    and header.epoch <= last.epoch
                    and header.incarnation >= last.incarnation
                ):
                    found.add(header, known.frames, min(later, default=None))
            found.finish()
            if found.records or found.cursor:
                return _segment(found, last.epoch, stored_end())
        return None


def _age(known: _Known) -> tuple[int, int, int]:
    header = known.decoder.header
    return header.epoch, header.incarnation, header.lsn_from


def _segment(found: Log, epoch: int, stored: StoredEnd) -> TailSegment | None:
    rows = SegmentWriter()
    marks: list[Mark] = []
    for header, payload in found.records:
        rows.add_record(header, payload)
        if header.kind == Kind.MARK:
            marks.append(decode_mark(header.epoch, header.lsn, header.stamp, payload))
    stamps = [header.stamp for header, _ in found.records] or [stored.stamp]
    before = marks[-1] if marks else stored.mark
    marked = found.records[-1][0].kind == Kind.MARK if found.records else stored.marked
    if not marked and before is not None:
        marks.append(_end_mark(before, found.end, stamps[-1]))
    if not found.records and not marks:
        return None
    content = rows.unsealed()
    ref = SegmentRef(
        name=f"{tail.PREFIX}@{found.end:016x}",
        kind=SegmentKind.LOG,
        epoch=epoch,
        lsn_from=found.cursor,
        lsn_to=found.end + 1,
        stamp_from=stamps[0],
        stamp_to=stamps[-1],
        bytes=len(content.stream),
        blake3="",
        marks=mark_range(marks),
    )
    return TailSegment(ref, content, marks)


def _end_mark(before: Mark, end_lsn: int, stamp_ns: int) -> Mark:
    """The end of what was acknowledged is a checkpoint too, until the next mark, whose number it bears, takes its place."""
    cuts = {
        ordinal: cut if cut.kind == "exact" else CutBody("observed", cut.as_of_ns or before.stamp_ns, cut.skew_ns)
        for ordinal, cut in before.body.cuts.items()
    }
    body = MarkBody(before.sequence + 1, before.body.membership_version, cuts, epoch=before.epoch)
    return msgspec.structs.replace(before, lsn=end_lsn, stamp_ns=stamp_ns, body=body)
