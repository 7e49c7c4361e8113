"""Compaction of a target: small segments of the history are joined (core/levels.py), what is older is thinned
(core/retention.py) and folded (core/folding.py), what was dropped is deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

import blake3

from dpac_api.errors import Corruption, NotFound
from dpac_api.models import JournalSpec, LegSpec
from dpac_engine.control.lock_upkeep import LockUpkeep
from dpac_engine.control.merging import Commit, DamagedSegment, Merging, Source, put_checked
from dpac_engine.core import folding, levels, retention, stripes
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.folding import Fold
from dpac_engine.core.levels import Join
from dpac_engine.core.manifest import COMPLETE_EVERY, SegmentRef, held_lsns, manifest_key
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.core.stripes import Outline
from dpac_engine.io.repository import RepositoryWriter
from dpac_engine.io.stored_segment import BlockCache

log = logging.getLogger(__name__)

JOINED_PLAIN_BYTES_MAX = 64 * 2**20
"""What a joined segment unpacks to at most."""
GRACE_NS = 24 * 3600 * 10**9
"""Dropped objects stay so long: a reader that opened the state before still finds them."""
LOOK_AGAIN_NS = 600 * 10**9
"""A damaged segment is read again so often: it may have been put back."""


class Compaction:
    """Compacts one leg's repository (`shipper.Compactor`)."""

    def __init__(self, journal: JournalSpec, leg: LegSpec, held: Callable[[], Set[str]] = frozenset) -> None:
        """`held` names the segments that open mounts read, however long ago they were dropped."""
        self._journal = journal
        self._leg = leg
        self._held = held
        self._too_large: set[str] = set()
        """Names of segments that are not joined: they are too large when unpacked."""
        self._damaged: dict[str, str] = {}
        self._look_again_ns = 0
        self._work: Iterator[None] | None = None
        self._writer: RepositoryWriter | None = None
        self._outlines: dict[str, Outline] = {}
        self._marks: dict[str, list[Mark]] = {}
        """Of merged segments: each has one, and it is asked for again and again."""
        self._settled: Set[str] = frozenset()
        """The layers over the base, when a look at them found no stripe that changed enough."""
        immutable_for = leg.retention.immutable_for
        self._upkeep = LockUpkeep(int(immutable_for.seconds * 1e9)) if immutable_for else None

    @property
    def immutable_until_ns(self) -> int | None:
        """See `shipper.Compactor.immutable_until_ns`."""
        return self._upkeep.earliest_ns if self._upkeep else None

    @property
    def damaged(self) -> Mapping[str, str]:
        """See `shipper.Compactor.damaged`."""
        return self._damaged

    def step(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> bool:
        """See `shipper.Compactor.step`. Damage at the target stops what would read it, and nothing else."""
        if self._upkeep and writer.locks and self._upkeep.step(writer, writer.locks, now_ns):
            return True
        try:
            if self._goes_on(writer, commit, now_ns):
                return True
        except DamagedSegment as damage:
            log.error("segment %s is left as it is: %s", damage.ref.name, damage.message)
            self._damaged[damage.ref.name] = damage.message
            self._look_again_ns = now_ns + LOOK_AGAIN_NS
            return True
        if self._damaged and now_ns >= self._look_again_ns:
            self._look_again(writer, now_ns)
            return True
        self._collect(writer, commit, now_ns)
        return False

    def _goes_on(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> bool:
        """Do the next part of what is under way, or begin something; False if there is nothing to do."""
        work = self._work if self._writer is writer else None
        self._work, self._writer = None, writer
        work = work or self._next_work(writer, commit, now_ns)
        if work is None:
            return False
        for _ in work:
            self._work = work
            break
        return True

    def _next_work(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> Iterator[None] | None:
        reader = writer.reader
        refs, held = reader.refs(), held_lsns(reader.state, now_ns)
        self._forget_but({ref.name for ref in refs})

        def unless_held(add: Sequence[SegmentRef], drop: Sequence[str]) -> None:
            # Somebody may have held, meanwhile, what this merge drops: then another one is planned.
            if held_lsns(reader.state, now_ns) <= held:
                commit(add, drop)

        merging = Merging(writer, unless_held, self._leg.compression_level, self._outlines, self._damaged)
        marks_of = lambda ref: self._marks_of(writer, ref)  # noqa: E731
        kept = self._leg.retention
        merge = retention.plan(refs, marks_of, self._journal, kept, now_ns, held, self._damaged)
        if merge is not None:
            return merging.thin(merge)
        fold = folding.plan(refs, self._damaged, lambda ref: self._freed_bytes(writer, ref), self._rests)
        if fold is not None:
            return self._fold(merging, fold)
        join = levels.plan((ref for ref in refs if ref.name not in {*self._too_large, *self._damaged}), now_ns)
        return self._join(writer, commit, join) if join is not None else None

    def _marks_of(self, writer: RepositoryWriter, ref: SegmentRef) -> list[Mark]:
        marks = self._marks.get(ref.name)
        if marks is None:
            marks = Source(writer, ref, BlockCache(0)).marks()
            if ref.kind == SegmentKind.MERGED:
                self._marks[ref.name] = marks
        return [mark for mark in marks if writer.reader.members_at(mark)]

    def _freed_bytes(self, writer: RepositoryWriter, ref: SegmentRef) -> int:
        if ref.name not in self._outlines:
            self._outlines[ref.name] = stripes.outline(Source(writer, ref, BlockCache(0)))
        return self._outlines[ref.name].freed_bytes

    def _rests(self, base: Sequence[SegmentRef], layers: Sequence[SegmentRef]) -> bool:
        """The base cannot take in these layers now: which address is damaged is not known, or none changed enough."""
        unknown = any(ref.name in self._damaged and ref.name not in self._outlines for ref in base)
        return unknown or {ref.name for ref in layers} == self._settled

    def _fold(self, merging: Merging, fold: Fold) -> Iterator[None]:
        folds = yield from merging.fold(fold)
        if not folds:
            self._settled = {ref.name for ref in fold.layers}

    def _join(self, writer: RepositoryWriter, commit: Commit, join: Join) -> Iterator[None]:
        built, marks, refs = SegmentWriter(), list[Mark](), list[SegmentRef]()
        for ref in join.segments:
            source = Source(writer, ref, BlockCache(0))
            if refs and built.plain_bytes + source.segment.plain_bytes > JOINED_PLAIN_BYTES_MAX:
                break
            source.copy_to(built)
            marks += source.marks()
            refs.append(ref)
            yield
        if len(refs) == 1:
            self._too_large.add(refs[0].name)
            return
        header = source.segment.header
        joined = put_checked(
            writer,
            lambda: writer.put_segment(
                built,
                marks,
                kind=SegmentKind.LOG,
                shard_uid=header.shard_uid.hex(),
                epoch=refs[0].epoch,
                lsn_from=refs[0].lsn_from,
                lsn_to=refs[-1].lsn_to,
                stamps=(refs[0].stamp_from, refs[-1].stamp_to),
                membership_version=header.membership_version,
                compression_level=self._leg.compression_level,
                level=join.level,
            ),
        )
        commit([joined], [ref.name for ref in refs])

    # ------------------------------------------------------------------ what is damaged, and what goes

    def _forget_but(self, live: Set[str]) -> None:
        self._too_large &= live
        self._damaged = {name: message for name, message in self._damaged.items() if name in live}
        self._outlines = {name: of for name, of in self._outlines.items() if name in live}
        self._marks = {name: marks for name, marks in self._marks.items() if name in live}

    def _look_again(self, writer: RepositoryWriter, now_ns: int) -> None:
        """Read the segment that was looked at least recently: if it is what it was, it is merged like any other."""
        self._look_again_ns = now_ns + LOOK_AGAIN_NS
        name = next(iter(self._damaged))
        message = self._damaged.pop(name)
        ref = writer.reader.require_state().segments.get(name)
        if ref is None:
            return
        try:
            sound = blake3.blake3(writer.store.get(name)).hexdigest() == ref.blake3
        except (NotFound, Corruption):
            sound = False
        if not sound:
            self._damaged[name] = message
            return
        self._settled = set()
        log.info("segment %s is sound again", name)

    def _collect(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> None:
        """Delete what was dropped long ago; note what a crash left without a manifest, so that its time begins."""
        # Listed first: a listing takes its time, and what the leg commits meanwhile must not be taken for left behind.
        listed = set(writer.visible("s/"))
        state = writer.reader.state
        if state is None:
            return
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
