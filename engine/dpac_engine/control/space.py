"""Where a group's space at a target goes, from manifests and indexes alone: no content is read, and the work is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from dpac_api.models import KeptSpace, TargetSpace
from dpac_engine.control.compaction import GRACE_NS
from dpac_engine.control.moments import moment
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.manifest import SHARDS_PREFIX, SegmentRef
from dpac_engine.core.merge import merged_rows
from dpac_engine.core.ports import Store
from dpac_engine.core.segment import SegmentKind
from dpac_engine.io.repository import RepositoryReader
from dpac_engine.io.stored_segment import StoredSegment

SIZED_MAX = 256
"""Objects of one kind that are asked for their size."""
OPENED_MAX = 256
"""Segments whose index is read."""
ROWS_MAX = 2_000_000
"""Rows of two neighbouring ranges that are compared."""


class _Range(NamedTuple):
    """What lies between two kept checkpoints, and the later one."""

    segments: list[StoredSegment]
    begin: int
    mark: Mark


def measure(target: str, reader: RepositoryReader) -> TargetSpace:
    """What the group takes there. Unrecoverable if there is nothing; Corruption if an index that it needs is damaged."""
    state = reader.require_state()
    live = list(state.segments.values())
    listed = [key for key in reader.store.list("") if not key.startswith(SHARDS_PREFIX)]
    segments = {key for key in listed if key.startswith("s/")}
    dropped = [name for name in state.dropped if name in segments]
    orphans = sorted(segments - set(state.segments) - set(state.dropped))
    sizes = [_sizes(reader.store, keys) for keys in (dropped, orphans, [key for key in listed if key not in segments])]
    (dropped_bytes, _), (orphan_bytes, _), (overhead_bytes, _) = sizes
    log = [ref for ref in live if ref.kind == SegmentKind.LOG]
    ranges = _ranges(reader, [ref for ref in reader.refs() if ref.kind == SegmentKind.MERGED])
    opened = [segment for found in ranges for segment in found.segments]
    last = max((state.dropped[name] for name in dropped), default=None)
    kept = [
        KeptSpace(
            checkpoint=found.mark.id,
            time=moment(found.mark.stamp_ns),
            stored_bytes=_bytes(segment.ref for segment in found.segments),
            unique_bytes=_unique(found, after, is_base=not at) if after else None,
        )
        for at, (found, after) in enumerate(pairwise([*ranges, None]))
        if found is not None
    ]
    unique_bytes = sum(each.unique_bytes or 0 for each in kept)
    return TargetSpace(
        target=target,
        stored_bytes=state.stored_bytes + dropped_bytes + orphan_bytes + overhead_bytes,
        seed_bytes=_bytes(ref for ref in live if ref.kind == SegmentKind.FILL),
        log_bytes={
            str(level): _bytes(ref for ref in log if ref.level == level) for level in sorted({ref.level for ref in log})
        },
        merged_bytes=_bytes(ref for ref in live if ref.kind == SegmentKind.MERGED),
        dropped_bytes=dropped_bytes,
        dropped_until=None if last is None else moment(last + GRACE_NS),
        orphan_bytes=orphan_bytes,
        overhead_bytes=overhead_bytes,
        unique_bytes=unique_bytes,
        shared_bytes=state.stored_bytes - unique_bytes,
        reclaimable_bytes=dropped_bytes + orphan_bytes,
        estimated=any(estimated for _, estimated in sizes),
        **_content(reader, opened, sorted(log, key=lambda ref: -ref.bytes)),
        kept=kept,
    )


def _bytes(refs: Iterable[SegmentRef]) -> int:
    return sum(ref.bytes for ref in refs)


def _sizes(store: Store, keys: Sequence[str]) -> tuple[int, bool]:
    """Bytes of the objects, and whether some of them were estimated."""
    asked = keys[:SIZED_MAX]
    total = sum(store.size(key) for key in asked)
    return (total, False) if len(asked) == len(keys) else (total * len(keys) // len(asked), True)


def _content(reader: RepositoryReader, opened: Sequence[StoredSegment], logs: Sequence[SegmentRef]) -> dict[str, int]:
    """Of the merged segments, and of the largest of the log as long as there is room."""
    room = max(0, OPENED_MAX - len(opened))
    segments = [*opened, *(reader.stored(ref) for ref in logs[:room])]
    return {
        "content_bytes": sum(segment.reader.plain_bytes for segment in segments),
        "content_stored_bytes": _bytes(segment.ref for segment in segments),
    }


def _ranges(reader: RepositoryReader, merged: Sequence[SegmentRef]) -> list[_Range]:
    """The ranges that end in a kept checkpoint, oldest first; none if there are too many segments to open."""
    if len(merged) > OPENED_MAX:
        return []
    marks = {ref.lsn_to: reader.stored(ref).marks()[-1] for ref in merged if ref.marks is not None}
    ranges, begin = list[_Range](), 0
    for lsn_to in sorted(marks):
        refs = [ref for ref in merged if begin < ref.lsn_to <= lsn_to]
        ranges.append(_Range([reader.stored(ref) for ref in refs], ranges[-1].mark.lsn if ranges else 0, marks[lsn_to]))
        begin = lsn_to
    return ranges


def _unique(found: _Range, after: _Range, *, is_base: bool) -> int | None:
    """Stored bytes of what the next range overwrites: only this checkpoint needs it. Payloads exactly, stored in proportion."""
    segments = [*found.segments, *after.segments]
    if sum(len(segment.rows) for segment in segments) > ROWS_MAX:
        return None
    ordinals = sorted({int(at) for segment in segments for at in set(segment.rows["member"].tolist())} - {0})

    def payload_bytes(of: Sequence[StoredSegment], end: int) -> int:
        rows = merged_rows(of, ordinals, found.begin, end, is_base=is_base)
        return sum(row.payload_bytes for row in rows if row.lsn < found.mark.lsn)

    alone = payload_bytes(found.segments, found.mark.lsn)
    shared = payload_bytes(segments, after.mark.lsn)
    stored = _bytes(segment.ref for segment in found.segments)
    return (alone - shared) * stored // alone if alone else 0
