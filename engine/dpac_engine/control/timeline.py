"""The timeline of a group: which checkpoints its targets hold, and which of them a selector means.

Read from the repositories themselves: a checkpoint is listed where it can be recovered from, and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from dpac_api.errors import Corruption, Denied, DpacError, Invalid, NotFound, Temporary, Unrecoverable, Unsupported
from dpac_api.models import (
    Checkpoint,
    CheckpointAvailability,
    CheckpointPage,
    CheckpointRange,
    Cut,
    GroupSpec,
    TargetSpace,
    TargetSpec,
)
from dpac_engine.control.assignment import shard_key
from dpac_engine.control.catalogue import utc
from dpac_engine.control.catalogue_groups import group_row, member_names, where_recovery_points_lie
from dpac_engine.control.catalogue_schema import GroupRow, VerificationRow
from dpac_engine.control.catalogue_targets import all_target_specs, targets_of
from dpac_engine.control.known_damage import from_catalogue, is_hurt
from dpac_engine.control.recovery import MarkFilter, Recovery, Repository
from dpac_engine.control.sharding import shard_uid_of
from dpac_engine.core.checkpoints import Mark, sequence_of
from dpac_engine.core.damage import Finding
from dpac_engine.core.manifest import Hold
from dpac_engine.core.ports import Clock

T = TypeVar("T")
PAGE_MAX = 1000
_AWAY = (Temporary, Denied, Corruption, Unsupported)
"""Why one target may not answer while another does."""


@dataclass(frozen=True)
class GroupView:
    """What recovery needs to know of a group."""

    uid: str
    name: str
    shard_uid: str
    worker: int
    generation: int
    key_id: str
    created: datetime
    spec: GroupSpec
    member_names: Mapping[int, str]
    member_shards: Mapping[str, int]
    """Which shard a member lies in."""
    targets: Mapping[str, TargetSpec]
    """Where recovery points lie: the legs' targets first."""
    verified: Mapping[str, tuple[int, str, datetime]]
    """Target -> (sequence, checkpoint, when): proven readable up to there, but for what `damages` hurts."""
    damages: Mapping[str, Sequence[Finding]]
    """Target -> what the last verification found damaged there."""

    @property
    def shards(self) -> Sequence[tuple[str, int]]:
        """(key, worker) of each shard."""
        return [(shard_key(self.uid, shard), self.worker + shard) for shard in range(self.spec.journal.shards)]

    @property
    def shard_uids(self) -> Sequence[str]:
        """Of each shard."""
        return [shard_uid_of(self.shard_uid, shard) for shard in range(self.spec.journal.shards)]

    def lsns(self, mark: Mark) -> dict[str, int]:
        """Shard uid -> where a checkpoint lies in it."""
        return dict(zip(self.shard_uids, (mark.lsn, *mark.other_lsns), strict=False))


class Choice(NamedTuple):
    """The checkpoint that a selector means, and where to take it from."""

    target: str
    mark: Mark
    note: str
    """Which newer checkpoints were passed over, and why; empty: none."""


def view_group(session: Session, name: str, *, retained: bool = True) -> GroupView:
    """The group for recovery; by default deleted ones too, as long as their recovery points are retained."""
    row = group_row(session, name, retained=retained)
    verified = session.scalars(select(VerificationRow).where(VerificationRow.group_uid == row.uid))
    return _view(row, where_recovery_points_lie(session, row), verified)


def view_active_groups(session: Session) -> list[GroupView]:
    """Every active group, by name; as many questions to the catalogue as for one."""
    targets = all_target_specs(session)
    verified: dict[str, list[VerificationRow]] = {}
    for found in session.scalars(select(VerificationRow)):
        verified.setdefault(found.group_uid, []).append(found)
    rows = session.scalars(select(GroupRow).where(GroupRow.lifecycle == "active").order_by(GroupRow.name))
    return [
        _view(row, {name: targets[name] for name in targets_of(row) if name in targets}, verified.get(row.uid, []))
        for row in rows
    ]


def _view(row: GroupRow, targets: Mapping[str, TargetSpec], verified: Iterable[VerificationRow]) -> GroupView:
    verifications = list(verified)
    return GroupView(
        uid=row.uid,
        name=row.name,
        shard_uid=row.shard_uid,
        worker=row.worker,
        generation=row.generation,
        key_id=row.key_id,
        created=row.created,
        spec=GroupSpec.model_validate(row.spec),
        member_names=member_names(row),
        member_shards={member.name: member.shard for member in row.members if not member.removed},
        targets=targets,
        verified={v.target: (v.sequence, v.checkpoint, v.verified_at) for v in verifications},
        damages={v.target: from_catalogue(v.damage) for v in verifications if v.damage},
    )


class Timeline:
    """Reads repositories for every question about checkpoints; safe for threads."""

    def __init__(self, recovery: Recovery, clock: Clock) -> None:
        self._recovery = recovery
        self._clock = clock
        self._open: dict[tuple[str, str], tuple[threading.Lock, Repository]] = {}
        self._lock = threading.Lock()

    def page(
        self, group: GroupView, wanted: MarkFilter, *, target: str | None, limit: int, held: bool = False
    ) -> CheckpointPage:
        """The newest `limit` checkpoints that are wanted (`held`: of those that are held); the cursor is the last one's sequence."""
        if not 1 <= limit <= PAGE_MAX:
            raise Invalid(f"limit must be from 1 to {PAGE_MAX}.", property_path="limit")

        def newest(name: str, repository: Repository) -> tuple[list[Mark], list[Finding]]:
            here = self._active(repository)
            holds.update(here)
            limited = replace(wanted, lsns=frozenset(here)) if held else wanted
            marks = [mark for mark, _ in zip(repository.marks(limited), range(limit + 1), strict=False)]
            return marks, _present(group, name, repository)

        holds: dict[int, Hold] = {}
        found = self._ask_all(group, target, newest)
        marks = {mark.sequence: mark for marks, _ in found.values() for mark in marks}
        holders = {
            name: {mark.sequence: not is_hurt(damages, mark.sequence) for mark in marks}
            for name, (marks, damages) in found.items()
        }
        sequences = sorted(marks, reverse=True)
        items = [_wire(group, marks[sequence], holders, holds) for sequence in sequences[:limit]]
        cursor = str(sequences[limit - 1]) if len(sequences) > limit else None
        return CheckpointPage(items=items, next_cursor=cursor)

    def ranges(self, group: GroupView) -> list[CheckpointRange]:
        """The runs of checkpoints at each target, oldest first."""
        return [
            CheckpointRange(
                target=target,
                first=run.first,
                last=run.last,
                first_time=utc(run.first_stamp_ns),
                last_time=utc(run.last_stamp_ns),
                count=run.count,
                tags=list(run.tags),
                app_consistent=run.app_count,
            )
            for target, runs in self._ask_all(group, None, lambda _, repository: list(repository.ranges())).items()
            for run in runs
        ]

    def resolve(self, group: GroupView, selector: str, target: str | None) -> Choice:
        """The newest sound checkpoint that satisfies the selector, and the target to take it from.

        One that is named by its id is taken, sound or not: what of it is not damaged can be read. Unrecoverable if no
        target has one; Temporary if none could be asked.
        """
        reasons: list[DpacError] = []
        best: Choice | None = None
        for name in _places(group, target):
            try:
                mark, passed_over = self.ask(
                    group,
                    name,
                    lambda repository, name=name: repository.resolve(selector, _present(group, name, repository)),  # type: ignore[misc]
                )
            except (Unrecoverable, *_AWAY) as cause:
                reasons.append(type(cause)(f"{name}: {cause.message}"))
                continue
            if best is None or mark.sequence > best.mark.sequence:
                best = Choice(name, mark, _passed_over_told(name, passed_over))
        if best is not None:
            return best
        raise _worst(reasons) or Unrecoverable(f"The group {group.name!r} has no leg, so nothing of it is recoverable.")

    def checkpoint(self, group: GroupView, selector: str) -> Checkpoint:
        """The checkpoint that a selector means, with every target that has it."""
        _, mark, _ = self.resolve(group, selector, None)
        holders: dict[str, dict[int, bool]] = {}
        holds: dict[int, Hold] = {}
        for name in group.targets:

            def held(repository: Repository, name: str = name) -> bool:
                repository.resolve(mark.id, [])
                holds.update(self._active(repository))
                return not is_hurt(_present(group, name, repository), mark.sequence)

            with suppress(Unrecoverable, *_AWAY):
                holders[name] = {mark.sequence: self.ask(group, name, held)}
        return _wire(group, mark, holders, holds)

    def held(self, group: GroupView) -> dict[str, list[str]]:
        """Target -> ids of the checkpoints that are held there; damage hides them. Raises while a target is away."""
        found: dict[str, list[str]] = {}
        for name in group.targets:
            with suppress(Corruption):
                holds = self.ask(group, name, lambda repository: self._active(repository).values())
                found[name] = [hold.checkpoint for hold in holds]
        return {name: ids for name, ids in found.items() if ids}

    def _active(self, repository: Repository) -> dict[int, Hold]:
        return {hold.lsn: hold for hold in repository.holds() if hold.is_active(self._clock.now_ns())}

    def space(self, group: GroupView) -> list[TargetSpace]:
        """Where the group's space goes, at each target that has something of it and answers."""

        def measured(name: str, repository: Repository) -> TargetSpace | None:
            with suppress(Unrecoverable):
                return repository.space(name)
            return None

        return [found for found in self._ask_all(group, None, measured).values() if found is not None]

    def present_damages(self, group: GroupView) -> dict[str, list[Finding]]:
        """Target -> the known damage there but for what compaction has dropped since; all of it where the target is away."""
        found: dict[str, list[Finding]] = {}
        for name, damages in group.damages.items():
            found[name] = list(damages)
            if name in group.targets:
                with suppress(Unrecoverable, *_AWAY):
                    found[name] = self.ask(
                        group,
                        name,
                        lambda repository, name=name: _present(group, name, repository),  # type: ignore[misc]
                    )
        return {name: damages for name, damages in found.items() if damages}

    def ask(self, group: GroupView, target: str, question: Callable[[Repository], T]) -> T:
        """Put a question to one target's repository, brought up to date first."""
        spec = group.targets[target]
        key = (group.uid, spec.model_dump_json())
        with self._lock:
            if key not in self._open:
                self._open[key] = threading.Lock(), self._recovery.open(spec, group.uid, len(group.shards))
            lock, repository = self._open[key]
        with lock:
            try:
                repository.refresh()
            except NotFound:  # nothing lies there, or not any more: what was known of it does not count
                repository = self._recovery.open(spec, group.uid, len(group.shards))
            return question(repository)

    def private(self, group: GroupView, target: str) -> Repository:
        """A repository of one's own, for work that takes long."""
        repository = self._recovery.open(group.targets[target], group.uid, len(group.shards))
        try:
            repository.refresh()
        except NotFound:
            raise Unrecoverable(f"The target {target!r} holds nothing of the group {group.name!r}.") from None
        return repository

    def forget(self, group_uid: str) -> None:
        """Drop what is cached of a group."""
        with self._lock:
            for key in [key for key in self._open if key[0] == group_uid]:
                del self._open[key]

    def _ask_all(self, group: GroupView, target: str | None, question: Callable[[str, Repository], T]) -> dict[str, T]:
        """Every target's answer; those that are away are left out as long as one answers."""
        answers: dict[str, T] = {}
        reasons: list[DpacError] = []
        for name in _places(group, target):
            try:
                answers[name] = self.ask(group, name, partial(question, name))
            except _AWAY as cause:
                reasons.append(type(cause)(f"{name}: {cause.message}"))
        if not answers and reasons:
            raise _worst(reasons) or reasons[0]
        return answers


def _present(group: GroupView, target: str, repository: Repository) -> list[Finding]:
    """The known damage at a target but for what is not needed there any more."""
    return [found for found in group.damages.get(target, ()) if repository.needs(found.object)]


def _passed_over_told(target: str, passed_over: Mark | None) -> str:
    if passed_over is None:
        return ""
    return f"newer checkpoints, up to {passed_over.id}, were passed over: they need damaged objects at {target} (`dpac verify`)"


def _places(group: GroupView, target: str | None) -> list[str]:
    if target is None:
        return list(group.targets)
    if target not in group.targets:
        there = ", ".join(group.targets) or "none"
        raise NotFound(f"The group {group.name!r} has no recovery points at {target!r} (there is: {there}).")
    return [target]


def _worst(reasons: list[DpacError]) -> DpacError | None:
    """One error for all: damage first, then what may pass, then that there is nothing."""
    for kind in (*_AWAY[1:], Temporary, Unrecoverable):
        for reason in reasons:
            if isinstance(reason, kind):
                return type(reason)("; ".join(other.message for other in reasons))
    return None


def _wire(
    group: GroupView, mark: Mark, holders: Mapping[str, Mapping[int, bool]], holds: Mapping[int, Hold]
) -> Checkpoint:
    """`holders`: target -> sequences of the checkpoints that it has, and whether each is sound; `holds`: by LSN."""
    hold = holds.get(mark.lsn)
    at = {target: sound[mark.sequence] for target, sound in holders.items() if mark.sequence in sound}

    def verified_at(target: str) -> datetime | None:
        sequence, _, at = group.verified.get(target, (-1, "", None))
        return at if mark.sequence <= sequence else None

    return Checkpoint(
        id=mark.id,
        time=utc(mark.stamp_ns),
        lsn=group.lsns(mark),
        membership_version=mark.body.membership_version,
        consistency="app" if mark.body.app else "crash",
        tags=list(mark.body.tags),
        cuts={
            group.member_names.get(int(ordinal), f"member-{ordinal}"): Cut.model_validate(
                {
                    "kind": cut.kind,
                    "as_of": utc(cut.as_of_ns) if cut.as_of_ns else None,
                    "skew_seconds": cut.skew_ns / 1e9 if cut.kind == "observed" else None,
                }
            )
            for ordinal, cut in mark.body.cuts.items()
        },
        targets={
            target: CheckpointAvailability(available=sound, verified_at=verified_at(target) if sound else None)
            for target, sound in at.items()
        },
        suspect=not any(at.values()),
        held=hold is not None,
        held_until=utc(hold.until) if hold and hold.until else None,
        held_reason=hold.reason if hold else "",
    )


def parse_cursor(cursor: str | None) -> int | None:
    """The sequence before which a page begins; accepts a checkpoint's id too."""
    if cursor is None:
        return None
    return int(cursor) if cursor.isdecimal() else sequence_of(cursor)
