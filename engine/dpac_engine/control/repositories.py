"""What lies at targets, as control asks for it (`recovery.Recovery`)."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from dpac_api.errors import Conflict, Corruption, DpacError, NotFound, Unrecoverable
from dpac_api.models import S3TargetSpec, TargetSpace, TargetSpec
from dpac_engine.control.assignment import WorkerAssignment, group_of, shard_key
from dpac_engine.control.known_damage import is_hurt
from dpac_engine.control.recovery import MarkFilter, Progress, RangeView, Repository, TreeOutcome, TreeView
from dpac_engine.control.sharded_repository import ShardedRepository
from dpac_engine.control.shipper import hold_or_release
from dpac_engine.control.space import measure
from dpac_engine.control.worker_api import HoldChange
from dpac_engine.core.checkpoints import Mark, checkpoint_id, matches, select
from dpac_engine.core.damage import Finding, Verification
from dpac_engine.core.difference import FileChange, RangeChange, changed_files, changed_ranges
from dpac_engine.core.image import Image
from dpac_engine.core.manifest import COMPLETE_EVERY, SHARDS_PREFIX, Hold, MemberState, SegmentRef, manifest_key
from dpac_engine.core.ports import Store
from dpac_engine.io.blueprints.blueprint import Blueprint
from dpac_engine.io.keys import Keyring
from dpac_engine.io.members import tree_restore
from dpac_engine.io.members.tree_reading import read_tree
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter, worth_opening
from dpac_engine.io.stores.prefixed import PrefixedStore
from dpac_engine.io.verification import CheckKey, Verifier

log = logging.getLogger(__name__)

OpenStore = Callable[[TargetSpec], Store]
"""The whole target."""
RestoreTree = Callable[..., tree_restore.Written]


def group_prefix(key: str) -> str:
    """Where the repository of a group, or of one of its shards, lies in a target."""
    uid, shard = group_of(key)
    return f"g/{uid}/{SHARDS_PREFIX}{shard}/" if shard else f"g/{uid}/"


def stored_groups(store: Store, keyring: Keyring) -> Iterator[tuple[str, WorkerAssignment | DpacError]]:
    """(group uid, its newest assignment, or why that cannot be read) of every group with a repository in the store.

    Takes over data keys that lie there and that this site's key-encryption key opens.
    """
    for uid in dict.fromkeys(key.split("/")[1] for key in store.list("g/")):
        try:
            yield uid, _stored_group(PrefixedStore(store, group_prefix(uid)), uid, keyring)
        except DpacError as error:
            yield uid, error


def _stored_group(store: Store, uid: str, keyring: Keyring) -> WorkerAssignment:
    for key in store.list("keys/"):
        key_id = key.removeprefix("keys/")
        try:
            keyring.wrapped(key_id)
        except NotFound:
            keyring.add(key_id, store.get(key))
    reader = RepositoryReader(store, uid, keyring.data_key)
    reader.refresh()
    spec = reader.spec()
    try:
        return WorkerAssignment.model_validate(
            {
                "name": spec.name,
                "site_uid": spec.site_uid,
                "generation": spec.generation,
                "spec": spec.spec,
                **spec.identity,
            }
        )
    except ValidationError:
        raise NotFound(
            f"its repository was written by an earlier dpac, which did not store who the group {spec.name} is. Put "
            "back its assignment.json from a copy, or declare it again at another target."
        ) from None


class TargetRepository:
    """A group's repository at a target, read only (`recovery.Repository`)."""

    def __init__(self, reader: RepositoryReader, check_key: CheckKey) -> None:
        self._reader = reader
        self._check_key = check_key

    def refresh(self) -> None:
        """See `Repository.refresh`."""
        self._reader.refresh()

    def marks(self, wanted: MarkFilter) -> Iterator[Mark]:
        """See `Repository.marks`."""
        for ref in reversed(self._reader.ranges()):
            if _may_hold(ref, wanted):
                yield from (mark for mark in reversed(self._marks_in(ref)) if wanted.admits(mark))

    def exact_marks(self, selector: str) -> Iterator[Mark]:
        """Recoverable checkpoints that the selector may mean, newest first. Corruption where they cannot be read."""
        return self._reader.marks(worth_opening(selector))

    def check_end(self, selector: str) -> None:
        """See `RepositoryReader.check_end`."""
        self._reader.check_end(selector)

    def _marks_in(self, ref: SegmentRef) -> list[Mark]:
        """Its checkpoints; none if the segment is damaged, so that one bad object does not hide the whole timeline."""
        try:
            return self._reader.exact_marks(ref)
        except Corruption as error:
            log.warning("%s", error.message)
            return []

    def ranges(self) -> Sequence[RangeView]:
        """See `Repository.ranges`: a run ends where checkpoints were thinned out or lost."""
        runs: list[RangeView] = []
        for ref in self._reader.ranges():
            part = _range_of(ref) if self._reader.is_uniform(ref) else _range_of_marks(self._marks_in(ref))
            if part is None:
                continue
            if runs and _sequence(runs[-1].last) + 1 == _sequence(part.first):
                runs[-1] = _joined(runs[-1], part)
            else:
                runs.append(part)
        return runs

    def resolve(self, selector: str, damages: Sequence[Finding]) -> tuple[Mark, Mark | None]:
        """See `Repository.resolve`."""
        if not damages or selector.startswith("ck-"):
            return self._reader.resolve(selector), None
        self._reader.check_end(selector)
        passed_over: list[Mark] = []
        hidden: list[Corruption] = []

        def sound() -> Iterator[Mark]:
            damaged = {found.object for found in damages}
            for ref in reversed(self._reader.ranges()):
                if worth_opening(selector)(ref):
                    try:
                        marks = self._reader.exact_marks(ref)
                    except Corruption as error:
                        if ref.name not in damaged:
                            raise
                        hidden.append(error)
                        continue
                    for mark in reversed(marks):
                        if not is_hurt(damages, mark.sequence):
                            yield mark
                        elif matches(selector)(mark):
                            passed_over.append(mark)

        try:
            return select(sound(), selector), passed_over[0] if passed_over else None
        except Unrecoverable:
            if hidden:  # it may be among the checkpoints that cannot even be listed
                raise hidden[0] from None
            if not passed_over:
                raise
            first = next(found.object for found in damages if is_hurt([found], passed_over[0].sequence))
            raise Unrecoverable(
                f"Every checkpoint that satisfies {selector!r} needs damaged objects, such as {first} (`dpac verify`). Name one by its id, "
                f"such as {passed_over[0].id}, to get what of it is not damaged."
            ) from None

    def space(self, target: str) -> TargetSpace:
        """See `Repository.space`."""
        return measure(target, self._reader)

    def holds(self) -> Sequence[Hold]:
        """See `Repository.holds`."""
        return self._reader.state.last.holds if self._reader.state else []

    def needs(self, name: str) -> bool:
        """See `Repository.needs`."""
        state = self._reader.state
        if state is None or not name.startswith(("s/", "m/")):
            return True
        if name.startswith("s/"):
            return name in state.segments
        return name > manifest_key(state.last.seq - state.last.seq % COMPLETE_EVERY - 1)

    def members_at(self, mark: Mark) -> Mapping[int, MemberState]:
        """See `Repository.members_at`."""
        return self._reader.members_at(mark)

    def image(self, mark: Mark) -> Image:
        """See `Repository.image`."""
        return self._reader.image(mark)

    def changed_ranges(self, before: Mark, after: Mark, ordinal: int) -> list[RangeChange]:
        """See `Repository.changed_ranges`."""
        return changed_ranges(self.image(before), self.image(after), ordinal)

    def changed_files(self, before: Mark, after: Mark, ordinal: int) -> list[FileChange]:
        """See `Repository.changed_files`."""
        return changed_files(self.image(before), self.image(after), ordinal)

    def verify(self, progress: Progress, manifest_before: int = 0) -> Verification:
        """See `Repository.verify`."""
        return Verifier(self._reader, self._check_key, progress).run(manifest_before)


class TargetRecovery:
    """How control reaches what lies at targets (`recovery.Recovery`)."""

    def __init__(
        self,
        open_store: OpenStore,
        examine: Callable[[TargetSpec], dict[str, str]],
        open_reader: Callable[[str, TargetSpec], RepositoryReader],
        open_writer: Callable[[str, str, TargetSpec], RepositoryWriter],
        restore: RestoreTree,
        blueprints: Callable[[str], Blueprint],
        check_key: CheckKey,
        latest_lock_end_ns: Callable[[TargetSpec, str], int],
    ) -> None:
        self._open_store = open_store
        self._latest_lock_end_ns = latest_lock_end_ns
        self._examine = examine
        self._open_reader = open_reader
        self._open_writer = open_writer
        self._restore = restore
        self._blueprints = blueprints
        self._check_key = check_key

    def open(self, target: TargetSpec, group_uid: str, shards: int = 1) -> Repository:
        """See `Recovery.open`."""
        found = [
            TargetRepository(self._open_reader(shard_key(group_uid, shard), target), self._check_key)
            for shard in range(shards)
        ]
        return found[0] if shards == 1 else ShardedRepository(found)

    def change_hold(self, target: TargetSpec, key: str, key_id: str, change: HoldChange) -> None:
        """See `Recovery.change_hold`."""
        writer = self._open_writer(key, key_id, target)
        writer.open_stored()
        hold_or_release(writer, change)

    def purge(self, target: TargetSpec, group_uid: str) -> None:
        """See `Recovery.purge`: manifests first, so that nothing half-deleted looks recoverable."""
        store = self._open_store(_as_it_is_now(target))
        keys = list(store.list(group_prefix(group_uid)))
        for key in sorted(keys, key=lambda key: "/m/" not in key):
            store.delete(key)

    def locked_until(self, target: TargetSpec, group_uid: str) -> datetime | None:
        """See `Recovery.locked_until`."""
        end_ns = self._latest_lock_end_ns(target, group_uid)
        return datetime.fromtimestamp(end_ns / 1e9, UTC) if end_ns else None

    def probe(self, target: TargetSpec) -> dict[str, str]:
        """See `Recovery.probe`."""
        key = f"probe/{secrets.token_hex(16)}"
        try:
            results = self._examine(target)
            if any(what != "ok" for what in results.values()):
                return results
            store = self._open_store(_as_it_is_now(target))
            for name, check in _PROBES.items():
                try:
                    results[name] = check(store, key) or "ok"
                except DpacError as error:
                    results[name] = error.message
        except DpacError as error:
            return {"reach": error.message}
        return results

    def restore_tree(self, tree: TreeView, to: Path, progress: Progress, partial: Path | None = None) -> TreeOutcome:
        """See `Recovery.restore_tree`."""
        done, goal = 0, 0

        def expect(count: int) -> None:
            nonlocal goal
            goal = count

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress(done, goal)

        found = self._restore(tree.entries(), tree.read_chunk, to, wrote, expect, tree.chunk_place, partial, tree.runs)
        return TreeOutcome(found.written, found.kept)

    def read_tree(self, tree: TreeView, progress: Progress) -> int:
        """See `Recovery.read_tree`."""
        return read_tree(tree.entries(), tree.read_chunk, tree.chunk_place, progress, tree.runs)

    def check(self, blueprint: str, root: Path) -> dict[str, str]:
        """See `Recovery.check`."""
        return self._blueprints(blueprint).check(root)


def _as_it_is_now(target: TargetSpec) -> TargetSpec:
    """The target as a plain store: replaced objects read as the new ones, deleted ones are gone, locked or not."""
    return target.model_copy(update={"object_lock": None}) if isinstance(target, S3TargetSpec) else target


def _probe_delete(store: Store, key: str) -> str:
    store.delete(key)
    try:
        store.get(key)
    except NotFound:
        return ""
    return "A deleted object can still be read: what retention drops would be billed for ever."


def _probe_create(store: Store, key: str) -> str:
    store.create(key, b"dpac probe")
    return ""


def _probe_fence(store: Store, key: str) -> str:
    try:
        store.create(key, b"another")
    except Conflict:
        return ""
    return "A second create of one object succeeded: this store cannot keep a stale primary out. Use another store."


def _probe_read(store: Store, key: str) -> str:
    whole, part = store.get(key), store.get(key, 5, 5)
    return "" if (whole, part) == (b"dpac probe", b"probe") else "What was written is not what is read back."


def _probe_list(store: Store, key: str) -> str:
    return "" if key in store.list("probe/") else "A listing does not show an object that was just written."


def _probe_replace(store: Store, key: str) -> str:
    store.put(key, b"replaced")
    return "" if store.get(key) == b"replaced" else "A replaced object still reads as before."


_PROBES: Mapping[str, Callable[[Store, str], str]] = {
    "write": _probe_create,
    "create-only": _probe_fence,
    "read": _probe_read,
    "list": _probe_list,
    "replace": _probe_replace,
    "delete": _probe_delete,
}


def _sequence(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


def _may_hold(ref: SegmentRef, wanted: MarkFilter) -> bool:
    marks = ref.marks
    return marks is not None and (
        (wanted.before_sequence is None or marks.first_sequence < wanted.before_sequence)
        and (wanted.tag is None or any(tag == wanted.tag for tag, _ in marks.tags))
        and (marks.app_count > 0 or not wanted.app)
        and (wanted.before_ns is None or marks.first_stamp < wanted.before_ns)
        and (wanted.after_ns is None or marks.last_stamp > wanted.after_ns)
        and (wanted.lsns is None or any(ref.lsn_from <= lsn < ref.lsn_to for lsn in wanted.lsns))
    )


def _range_of(ref: SegmentRef) -> RangeView | None:
    marks = ref.marks
    if marks is None:
        return None
    return RangeView(
        checkpoint_id(ref.epoch, marks.first_sequence),
        checkpoint_id(ref.epoch, marks.last_sequence),
        marks.first_stamp,
        marks.last_stamp,
        marks.count,
        marks.app_count,
        [tag for tag, _ in marks.tags],
    )


def _range_of_marks(marks: Sequence[Mark]) -> RangeView | None:
    if not marks:
        return None
    tags = [tag for mark in marks for tag in mark.body.tags]
    apps = sum(mark.body.app for mark in marks)
    return RangeView(marks[0].id, marks[-1].id, marks[0].stamp_ns, marks[-1].stamp_ns, len(marks), apps, tags)


def _joined(one: RangeView, other: RangeView) -> RangeView:
    return RangeView(
        one.first,
        other.last,
        one.first_stamp_ns,
        other.last_stamp_ns,
        one.count + other.count,
        one.app_count + other.app_count,
        [*one.tags, *other.tags],
    )
