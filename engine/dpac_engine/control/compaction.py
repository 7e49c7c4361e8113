"""Compaction of a target: small segments of the history are joined (core/levels.py), what is older is merged
(core/retention.py), what was dropped is deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set

from dpac_api.errors import Corruption
from dpac_api.models import JournalSpec, LegSpec
from dpac_engine.control.lock_upkeep import LockUpkeep
from dpac_engine.control.shipper import Commit
from dpac_engine.core import levels, retention
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.levels import Join
from dpac_engine.core.manifest import COMPLETE_EVERY, SegmentRef, held_lsns, manifest_key
from dpac_engine.core.merge import Kept, merged_rows
from dpac_engine.core.records import Kind
from dpac_engine.core.retention import Merge
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.io.repository import RepositoryWriter
from dpac_engine.io.stored_segment import StoredSegment

log = logging.getLogger(__name__)

MERGED_BYTES = 64 * 2**20
GRACE_NS = 24 * 3600 * 10**9
"""Dropped objects stay so long: a reader that opened the state before still finds them."""


class Compaction:
    """Compacts one leg's repository (`shipper.Compactor`)."""

    def __init__(self, journal: JournalSpec, leg: LegSpec, held: Callable[[], Set[str]] = frozenset) -> None:
        """`held` names the segments that open mounts read, however long ago they were dropped."""
        self._journal = journal
        self._leg = leg
        self._held = held
        self._left: set[str] = set()
        """Names of segments that stay as they are: damaged, or too large when unpacked."""
        self._may_merge = True
        immutable_for = leg.retention.immutable_for
        self._upkeep = LockUpkeep(int(immutable_for.seconds * 1e9)) if immutable_for else None

    @property
    def immutable_until_ns(self) -> int | None:
        """See `shipper.Compactor.immutable_until_ns`."""
        return self._upkeep.earliest_ns if self._upkeep else None

    def step(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> bool:
        """See `shipper.Compactor.step`. Damage at the target stops what would read it, not the leg."""
        reader = writer.reader
        if self._upkeep and writer.locks and self._upkeep.step(writer, writer.locks, now_ns):
            return True
        try:
            merge = self._may_merge and retention.plan(
                reader.refs(),
                reader.exact_marks,
                self._journal,
                self._leg.retention,
                now_ns,
                held_lsns(reader.state, now_ns),
            )
            if merge:
                self._merge(writer, commit, merge)
                return True
        except Corruption as error:
            log.error("the history cannot be thinned: %s", error.message)
            self._may_merge = False
        join = levels.plan((ref for ref in reader.refs() if ref.name not in self._left), now_ns)
        if join is not None:
            self._join(writer, commit, join)
            return True
        self._collect(writer, commit, now_ns)
        return False

    def _join(self, writer: RepositoryWriter, commit: Commit, join: Join) -> None:
        built, marks, refs = SegmentWriter(), list[Mark](), list[SegmentRef]()
        for ref in join.segments:
            try:
                segment = writer.reader.stored(ref).reader
                if refs and built.plain_bytes + segment.plain_bytes > MERGED_BYTES:
                    break
                built.extend_by(segment)
            except Corruption as error:
                log.error("segment %s is not joined with its neighbours: %s", ref.name, error.message)
                self._left.add(ref.name)
                return
            marks += segment.marks()
            refs.append(ref)
        if len(refs) == 1:
            self._left.add(refs[0].name)
            return
        joined = writer.put_segment(
            built,
            marks,
            kind=SegmentKind.LOG,
            shard_uid=segment.header.shard_uid.hex(),
            epoch=refs[0].epoch,
            lsn_from=refs[0].lsn_from,
            lsn_to=refs[-1].lsn_to,
            stamps=(refs[0].stamp_from, refs[-1].stamp_to),
            membership_version=segment.header.membership_version,
            compression_level=self._leg.compression_level,
            level=join.level,
        )
        commit([joined], [ref.name for ref in refs])

    def _merge(self, writer: RepositoryWriter, commit: Commit, merge: Merge) -> None:
        segments = [writer.reader.stored(ref) for ref in merge.segments]
        marks = {mark.lsn: mark for segment in segments if segment.ref.marks for mark in segment.marks()}
        ordinals = sorted({int(at) for segment in segments for at in set(segment.rows["member"].tolist())} - {0})
        end = max(ref.lsn_to for ref in merge.segments)
        added: list[SegmentRef] = []
        begin = 0
        for stop in [*merge.keep_lsns, None]:
            mark = marks[stop] if stop is not None else None
            to_lsn = end if stop is None else stop
            rows = merged_rows(segments, ordinals, begin, to_lsn, is_base=merge.is_base and begin == 0)
            added += self._write(writer, segments, rows, mark, (begin, to_lsn))
            begin = to_lsn
        commit(added, [ref.name for ref in merge.segments])

    def _write(
        self,
        writer: RepositoryWriter,
        segments: Sequence[StoredSegment],
        rows: Iterator[Kept],
        mark: Mark | None,
        lsns: tuple[int, int],
    ) -> Iterator[SegmentRef]:
        """Merged segments of bounded size; the last one carries the checkpoint."""
        built = SegmentWriter()
        for row in rows:
            if built.plain_bytes >= MERGED_BYTES:
                yield self._put(writer, segments, built, [], lsns)
                built = SegmentWriter()
            payload = segments[row.source].read(row.position, row.payload_bytes) if row.source >= 0 else b""
            built.add(row.kind, row.flags, row.member, row.lsn, row.stamp, row.offset, row.length, payload, row.key)
        if mark is not None:
            built.add(Kind.MARK, 0, 0, mark.lsn, mark.stamp_ns, 0, 0, mark.body.encode())
        if len(built):
            yield self._put(writer, segments, built, [mark] if mark else [], lsns)

    def _put(
        self,
        writer: RepositoryWriter,
        segments: Sequence[StoredSegment],
        rows: SegmentWriter,
        marks: Sequence[Mark],
        lsns: tuple[int, int],
    ) -> SegmentRef:
        refs = [segment.ref for segment in segments]
        told = [ref for ref in refs if ref.kind != SegmentKind.FILL] or refs  # a seed's stamps are when it was sent
        return writer.put_segment(
            rows,
            marks,
            kind=SegmentKind.MERGED,
            shard_uid=segments[0].reader.header.shard_uid.hex(),
            epoch=max(ref.epoch for ref in refs),
            lsn_from=lsns[0],
            lsn_to=lsns[1] + 1,
            stamps=(min(ref.stamp_from for ref in told), max(ref.stamp_to for ref in told)),
            membership_version=max(segment.reader.header.membership_version for segment in segments),
            compression_level=self._leg.compression_level,
            level=1,
        )

    def _collect(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> None:
        """Delete what was dropped long ago; note what a crash left without a manifest, so that its time begins."""
        state = writer.reader.state
        if state is None:
            return
        listed = set(writer.visible("s/"))
        stray = listed - set(state.segments) - set(state.dropped)
        if stray:
            commit([], sorted(stray))
        due = {name for name, since in state.dropped.items() if name in listed and now_ns - since > GRACE_NS}
        for name in sorted(due - self._held_or_all(due)):
            writer.store.delete(name)
        needed = (state.last.seq // COMPLETE_EVERY - 1) * COMPLETE_EVERY
        for key in list(writer.visible("m/")):
            if key < manifest_key(needed):
                writer.store.delete(key)

    def _held_or_all(self, due: Set[str]) -> Set[str]:
        """Which of these must stay; all of them while that cannot be told."""
        try:
            return self._held() if due else due
        except Corruption as error:
            log.error("what was dropped is not deleted: %s", error.message)
            return due
