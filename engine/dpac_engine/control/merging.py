"""Merging at a target: segments are read, what is left of them is put as new ones, read back, and only then published.

A merge is an iterator that stops after each object it has put, so that its leg ships in between, and so that a merge nobody
goes on with has changed nothing: what it put is collected like all that no manifest names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, MutableMapping, Sequence
from typing import Protocol

import blake3
import msgspec

from dpac_api.errors import Corruption, DpacError, NotFound, Temporary
from dpac_engine.core import stripes
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.folding import Fold
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.merge import Kept, merged_rows
from dpac_engine.core.records import Kind
from dpac_engine.core.retention import Merge
from dpac_engine.core.segment import SegmentHeader, SegmentKind, SegmentWriter
from dpac_engine.core.stripes import Interval, Outline, Piece
from dpac_engine.io.repository import RepositoryWriter
from dpac_engine.io.stored_segment import BlockCache, StoredSegment

MERGED_BYTES = 64 * 2**20
"""Plain bytes of a merged segment."""
CACHE_BYTES = 256 * 2**20
"""Of what is read while merging: what `retention.MERGE_BYTES_MAX` of a log unpacks to, or nearly."""
OPENED_AT_ONCE = 16

Commit = Callable[[Sequence[SegmentRef], Sequence[str]], object]
"""Commits segments that join and names that leave; blocks."""


class Compactor(Protocol):
    """Thins a repository by age and size, and keeps it locked (`control/compaction.py`)."""

    @property
    def immutable_until_ns(self) -> int | None:
        """When the first lock ends of what the newest state needs, as last seen; None: not known, or nothing is locked."""

    @property
    def damaged(self) -> Mapping[str, str]:
        """Segments that could not be read when they were to be merged, and why; they stay as they are until they can."""

    def step(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> bool:
        """Do one step of it, in a thread; False if nothing is left to do."""


class DamagedSegment(Exception):
    """A segment cannot be read."""

    def __init__(self, ref: SegmentRef, reason: DpacError) -> None:
        super().__init__(reason.message)
        self.ref = ref
        self.message = reason.message


class Source:
    """A segment that is merged (an `image.IndexedSegment`): opened for this alone, so that its index goes with it."""

    def __init__(self, writer: RepositoryWriter, ref: SegmentRef, cache: BlockCache) -> None:
        self.ref = ref
        self._stored = StoredSegment(writer.store, ref, writer.reader.data_keys, cache)
        try:
            self.segment = self._stored.reader
        except Corruption as error:
            raise DamagedSegment(ref, error) from error
        self.rows, self.keys = self.segment.rows, self.segment.keys

    def marks(self) -> list[Mark]:
        """Its checkpoints."""
        return self.segment.marks()

    def copy_to(self, writer: SegmentWriter) -> None:
        """Add all of it."""
        try:
            writer.extend_by(self.segment)
        except (NotFound, Corruption) as error:
            raise DamagedSegment(self.ref, error) from error

    @property
    def name(self) -> str:
        """See `image.IndexedSegment`."""
        return self.ref.name

    def read(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`."""
        return self._read(self._stored.read, position, length)

    def read_once(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`."""
        return self._read(self._stored.read_once, position, length)

    def _read(self, read: Callable[[int, int], bytes], position: int, length: int) -> bytes:
        try:
            return read(position, length)
        except Corruption as error:
            raise DamagedSegment(self.ref, error) from error


def put_checked(writer: RepositoryWriter, put: Callable[[], SegmentRef]) -> SegmentRef:
    """Put a segment that is to replace others, and see that it lies there as it was made. Temporary if it does not."""
    ref = put()
    if blake3.blake3(writer.store.get(ref.name)).hexdigest() != ref.blake3:
        raise Temporary(
            f"The target gave other bytes back than were just put there ({ref.name}). Nothing was replaced; it is tried "
            "again. If it stays so, check the target's storage."
        )
    return ref


class _Layer:
    """Merged segments that are being written."""

    def __init__(self, merging: Merging, lsns: tuple[int, int]) -> None:
        self._merging = merging
        self._lsns = lsns
        self._rows = SegmentWriter()
        self.refs: list[SegmentRef] = []

    def __bool__(self) -> bool:
        """It has rows."""
        return bool(self.refs) or len(self._rows) > 0

    def write(self, rows: Iterator[Kept], sources: Sequence[Source]) -> Iterator[None]:
        """Add rows; stops after each segment that was full."""
        for row in rows:
            if self._rows.plain_bytes >= MERGED_BYTES:
                self.close()
                yield
            payload = sources[row.source].read(row.position, row.payload_bytes) if row.source >= 0 else b""
            self._rows.add(
                row.kind, row.flags, row.member, row.lsn, row.stamp, row.offset, row.length, payload, row.key
            )

    def close(self, mark: Mark | None = None) -> None:
        """Put what is left, with the checkpoint up to which the layer tells, if it is one."""
        if mark is not None:
            self._rows.add(Kind.MARK, 0, 0, mark.lsn, mark.stamp_ns, 0, 0, mark.body.encode())
        if len(self._rows):
            self.refs.append(self._merging.put(self._rows, [mark] if mark else [], self._lsns))
            self._rows = SegmentWriter()


class Merging:
    """Merges of one leg's repository, while it is open."""

    def __init__(
        self,
        writer: RepositoryWriter,
        commit: Commit,
        compression_level: int,
        outlines: MutableMapping[str, Outline],
        damaged: Collection[str] = (),
    ) -> None:
        """`outlines`: by name, what is known of merged segments; added to. `damaged` ones stay."""
        self._writer = writer
        self._commit = commit
        self._compression_level = compression_level
        self._outlines = outlines
        self._damaged = damaged
        self._replaced: Sequence[SegmentRef] = ()
        self._header: SegmentHeader | None = None

    # ------------------------------------------------------------------ thinning

    def thin(self, merge: Merge) -> Iterator[None]:
        """Merge what has aged out into layers of its own; checkpoints that are kept no longer lose their name."""
        cache, sources = BlockCache(CACHE_BYTES), list[Source]()
        for number, ref in enumerate(merge.segments, 1):
            sources.append(self._open(ref, cache))
            if number % OPENED_AT_ONCE == 0:
                yield
        self._replaced = merge.segments
        marks = {mark.lsn: mark for source in sources if source.ref.marks for mark in source.marks()}
        ordinals, added = _ordinals(sources), list[SegmentRef]()
        # One below: what a seed brings later at the same LSN is read after it.
        first = 0 if merge.is_base else max(1, min(ref.lsn_from for ref in merge.segments) - 1)
        end, begin = max(ref.lsn_to for ref in merge.segments), 0
        for stop in [*merge.stops, end]:
            base = merge.is_base and not begin
            layer = _Layer(self, (begin or first, stop + 1))
            rows = merged_rows(sources, ordinals, begin, stop, is_base=base, seeding=self._seeding())
            yield from layer.write(rows, sources)
            layer.close(marks.get(stop))
            added += layer.refs
            begin = stop
            yield
        kept = [msgspec.structs.replace(ref, marks=None) for ref in merge.expired]
        self._commit([*added, *kept], [ref.name for ref in merge.segments])

    # ------------------------------------------------------------------ folding

    def fold(self, fold: Fold) -> Generator[None, None, bool]:
        """Merge layers into one, or with the base into those of its stripes that changed enough; False if none did.

        Of the layers, segments that lie beside every rewritten stripe stay as they are.
        """
        oldest = fold.base or [ref for ref in fold.layers if (ref.lsn_from, ref.lsn_to) == _lsns(fold.layers[:1])]
        yield from self._outline([*fold.base, *fold.layers])
        parts = stripes.divide((ref, self._outlines[ref.name]) for ref in oldest)
        burden, picked = stripes.Burden(parts), [False] * len(parts)
        if fold.base:
            for ref in fold.layers:
                burden.add(self._open(ref), ref.bytes)
                yield
            reset = {ordinal for ref in fold.layers for ordinal in self._outlines[ref.name].resets}
            picked = stripes.chosen(parts, burden, reset, self._damaged)
        work = list(stripes.pieces(parts, burden, picked))
        rewritten = [piece.interval for piece in work if piece.is_rewritten]
        layers = [ref for ref in fold.layers if not fold.base or self._lies_in(ref, rewritten)]
        if layers:
            yield from self._fold_pieces(work, layers)
        return bool(layers)

    def _fold_pieces(self, work: Sequence[Piece], layers: Sequence[SegmentRef]) -> Iterator[None]:
        self._replaced = replaced = [*layers, *(ref for piece in work for ref in piece.refs)]
        marks = [mark for ref in replaced if ref.marks for mark in self._open(ref).marks()]
        over, base = _Layer(self, _lsns(layers)), _Layer(self, (0, _lsns(replaced)[1]))
        for piece in work:
            if not piece.is_rewritten:
                yield from self._write_piece(over, piece, layers)
        rewritten = [piece for piece in work if piece.is_rewritten]
        if over or not rewritten:  # layers without a change, too, have a checkpoint to keep
            over.close(*marks)
        for piece in rewritten:
            yield from self._write_piece(base, piece, layers)
            # A segment of the base tells of no stripe that stays.
            base.close(*(marks if piece is rewritten[-1] and not over else ()))
            yield
        self._commit([*base.refs, *over.refs], [ref.name for ref in replaced])

    def _write_piece(self, layer: _Layer, piece: Piece, layers: Sequence[SegmentRef]) -> Iterator[None]:
        # A member that was reset somewhere is void before that everywhere.
        here = [ref for ref in layers if self._lies_in(ref, [piece.interval]) or self._outlines[ref.name].resets]
        if not here and not piece.refs:
            return
        cache = BlockCache(CACHE_BYTES)
        sources = [self._open(ref, cache) for ref in _in_order([*piece.refs, *here])]
        rows = merged_rows(
            sources,
            _ordinals(sources),
            0,
            _lsns(self._replaced)[1],
            is_base=piece.is_rewritten,
            within=piece.interval,
            seeding=self._seeding(),
        )
        yield from layer.write(rows, sources)

    def _outline(self, refs: Sequence[SegmentRef]) -> Iterator[None]:
        for ref in refs:
            if ref.name not in self._outlines:
                self._outlines[ref.name] = stripes.outline(self._open(ref))
                yield

    def _lies_in(self, ref: SegmentRef, intervals: Sequence[Interval]) -> bool:
        span = self._outlines[ref.name].span
        return any(span.overlaps(interval) for interval in intervals)

    def _open(self, ref: SegmentRef, cache: BlockCache | None = None) -> Source:
        source = Source(self._writer, ref, cache or BlockCache(0))
        if self._header is None or source.segment.header.membership_version > self._header.membership_version:
            self._header = source.segment.header
        return source

    def _seeding(self) -> set[int]:
        """Members of which rows may still come that are older than what is merged."""
        state = self._writer.state
        members = state.members if state else {}
        return {ordinal for ordinal, member in members.items() if member.seed_position is not None}

    def put(self, rows: SegmentWriter, marks: Sequence[Mark], lsns: tuple[int, int]) -> SegmentRef:
        """Store a merged segment of what is being merged."""
        refs, header = self._replaced, self._header
        assert header is not None, "rows come from segments that were opened"
        told = [ref for ref in refs if ref.kind != SegmentKind.FILL] or refs  # a seed's stamps are when it was sent
        return put_checked(
            self._writer,
            lambda: self._writer.put_segment(
                rows,
                marks,
                kind=SegmentKind.MERGED,
                shard_uid=header.shard_uid.hex(),
                epoch=max(ref.epoch for ref in refs),
                lsn_from=lsns[0],
                lsn_to=lsns[1],
                stamps=(min(ref.stamp_from for ref in told), max(ref.stamp_to for ref in told)),
                membership_version=header.membership_version,
                compression_level=self._compression_level,
                level=1,
            ),
        )


def _lsns(refs: Sequence[SegmentRef]) -> tuple[int, int]:
    return min(ref.lsn_from for ref in refs), max(ref.lsn_to for ref in refs)


def _in_order(refs: Sequence[SegmentRef]) -> list[SegmentRef]:
    return sorted(refs, key=lambda ref: (ref.lsn_from, ref.lsn_to))


def _ordinals(sources: Sequence[Source]) -> list[int]:
    return sorted({int(at) for source in sources for at in set(source.rows["member"].tolist())} - {0})
