"""The timeline of a group: which checkpoints its targets hold, and which of them a selector means.

Read from the repositories themselves: a checkpoint is listed where it can be recovered from, and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

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
    TargetSpec,
)
from dpac_engine.control.catalogue import utc
from dpac_engine.control.catalogue_groups import group_row, member_names, where_recovery_points_lie
from dpac_engine.control.catalogue_schema import GroupRow, VerificationRow
from dpac_engine.control.catalogue_targets import all_target_specs, targets_of
from dpac_engine.control.recovery import MarkFilter, Recovery, Repository
from dpac_engine.core.checkpoints import Mark, sequence_of

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
    targets: Mapping[str, TargetSpec]
    """Where recovery points lie: the legs' targets first."""
    verified: Mapping[str, tuple[int, str, datetime]]
    """Target -> (sequence, checkpoint, when): proven readable up to there."""


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
        targets=targets,
        verified={v.target: (v.sequence, v.checkpoint, v.verified_at) for v in verified},
    )


class Timeline:
    """Reads repositories for every question about checkpoints; safe for threads."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._open: dict[tuple[str, str], tuple[threading.Lock, Repository]] = {}
        self._lock = threading.Lock()

    def page(self, group: GroupView, wanted: MarkFilter, *, target: str | None, limit: int) -> CheckpointPage:
        """The newest `limit` checkpoints that are wanted; the cursor is the last one's sequence."""
        if not 1 <= limit <= PAGE_MAX:
            raise Invalid(f"limit must be from 1 to {PAGE_MAX}.", property_path="limit")

        def newest(repository: Repository) -> list[Mark]:
            return [mark for mark, _ in zip(repository.marks(wanted), range(limit + 1), strict=False)]

        found = self._ask_all(group, target, newest)
        marks = {mark.sequence: mark for marks in found.values() for mark in marks}
        holders = {name: {mark.sequence for mark in marks} for name, marks in found.items()}
        sequences = sorted(marks, reverse=True)
        items = [_wire(group, marks[sequence], holders) for sequence in sequences[:limit]]
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
            for target, runs in self._ask_all(group, None, lambda repository: list(repository.ranges())).items()
            for run in runs
        ]

    def resolve(self, group: GroupView, selector: str, target: str | None) -> tuple[str, Mark]:
        """The newest checkpoint that satisfies the selector, and the target to take it from.

        Unrecoverable if no target has one; Temporary if none could be asked.
        """
        reasons: list[DpacError] = []
        best: tuple[str, Mark] | None = None
        for name in _places(group, target):
            try:
                mark = self.ask(group, name, lambda repository: repository.resolve(selector))
            except (Unrecoverable, *_AWAY) as cause:
                reasons.append(type(cause)(f"{name}: {cause.message}"))
                continue
            if best is None or mark.sequence > best[1].sequence:
                best = name, mark
        if best is not None:
            return best
        raise _worst(reasons) or Unrecoverable(f"The group {group.name!r} has no leg, so nothing of it is recoverable.")

    def checkpoint(self, group: GroupView, selector: str) -> Checkpoint:
        """The checkpoint that a selector means, with every target that has it."""
        name, mark = self.resolve(group, selector, None)
        holders = {name: {mark.sequence}}
        for other in group.targets:
            with suppress(Unrecoverable, *_AWAY):
                self.ask(group, other, lambda repository: repository.resolve(mark.id))
                holders[other] = {mark.sequence}
        return _wire(group, mark, holders)

    def ask(self, group: GroupView, target: str, question: Callable[[Repository], T]) -> T:
        """Put a question to one target's repository, brought up to date first."""
        spec = group.targets[target]
        key = (group.uid, spec.model_dump_json())
        with self._lock:
            if key not in self._open:
                self._open[key] = threading.Lock(), self._recovery.open(spec, group.uid)
            lock, repository = self._open[key]
        with lock:
            try:
                repository.refresh()
            except NotFound:  # nothing lies there, or not any more: what was known of it does not count
                repository = self._recovery.open(spec, group.uid)
            return question(repository)

    def private(self, group: GroupView, target: str) -> Repository:
        """A repository of one's own, for work that takes long."""
        repository = self._recovery.open(group.targets[target], group.uid)
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

    def _ask_all(self, group: GroupView, target: str | None, question: Callable[[Repository], T]) -> dict[str, T]:
        """Every target's answer; those that are away are left out as long as one answers."""
        answers: dict[str, T] = {}
        reasons: list[DpacError] = []
        for name in _places(group, target):
            try:
                answers[name] = self.ask(group, name, question)
            except _AWAY as cause:
                reasons.append(type(cause)(f"{name}: {cause.message}"))
        if not answers and reasons:
            raise _worst(reasons) or reasons[0]
        return answers


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


def _wire(group: GroupView, mark: Mark, holders: Mapping[str, set[int]]) -> Checkpoint:
    def verified_at(target: str) -> datetime | None:
        sequence, _, at = group.verified.get(target, (-1, "", None))
        return at if mark.sequence <= sequence else None

    return Checkpoint(
        id=mark.id,
        time=utc(mark.stamp_ns),
        lsn={group.shard_uid: mark.lsn},
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
            target: CheckpointAvailability(available=True, verified_at=verified_at(target))
            for target, sequences in holders.items()
            if mark.sequence in sequences
        },
    )


def parse_cursor(cursor: str | None) -> int | None:
    """The sequence before which a page begins; accepts a checkpoint's id too."""
    if cursor is None:
        return None
    return int(cursor) if cursor.isdecimal() else sequence_of(cursor)
