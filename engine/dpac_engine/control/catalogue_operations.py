"""Operations and mounts in the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from dpac_api.errors import NotFound
from dpac_api.models import Mount, Operation, OperationStep, Phase
from dpac_engine.control.catalogue_schema import MountRow, OperationRow, VerificationRow
from dpac_engine.control.known_damage import to_catalogue
from dpac_engine.control.timeline import GroupView
from dpac_engine.core.damage import Verification

OperationKind = Literal["Drill", "Restore", "Verify", "Checkpoint", "Pause", "Resume", "Resync"]


def add_operation(
    session: Session,
    kind: OperationKind,
    group: GroupView,
    request: dict[str, Any],
    steps: Sequence[str],
    now: datetime,
) -> Operation:
    """Journal an operation with its whole plan, before its first step."""
    row = OperationRow(
        id=f"op-{uuid4().hex[:16]}",
        kind=kind,
        group_uid=group.uid,
        group_name=group.name,
        phase=Phase.PENDING,
        steps=[OperationStep(name=step, state="pending").model_dump(mode="json") for step in steps],
        request={key: value for key, value in request.items() if key != "request_id"},
        result={},
        error=None,
        created=now,
        finished=None,
    )
    session.add(row)
    session.flush()
    return wire(row)


def list_operations(session: Session, *, group: str | None, kind: str | None, limit: int) -> list[Operation]:
    """Operations, newest first."""
    query = select(OperationRow).order_by(OperationRow.created.desc(), OperationRow.id.desc()).limit(limit)
    if group is not None:
        query = query.where(OperationRow.group_name == group)
    if kind is not None:
        query = query.where(OperationRow.kind == kind)
    return [wire(row) for row in session.scalars(query)]


def get_operation(session: Session, operation_id: str) -> Operation:
    """One operation."""
    return wire(_row(session, operation_id))


def unfinished_operations(session: Session) -> list[Operation]:
    """Those pending or running, oldest first."""
    query = select(OperationRow).where(OperationRow.phase.in_((Phase.PENDING, Phase.RUNNING)))
    return [wire(row) for row in session.scalars(query.order_by(OperationRow.created))]


def note_step(
    session: Session, operation_id: str, index: int, step: OperationStep, result: dict[str, Any] | None = None
) -> None:
    """Journal where an operation is, and its `result` so far if that is given."""
    row = _row(session, operation_id)
    row.phase = Phase.RUNNING
    row.steps = [*row.steps[:index], step.model_dump(mode="json"), *row.steps[index + 1 :]]
    if result is not None:
        row.result = result


def finish_operation(
    session: Session, operation_id: str, phase: Phase, result: dict[str, Any], error: str | None, now: datetime
) -> None:
    """Journal how an operation ended."""
    row = _row(session, operation_id)
    row.phase, row.result, row.error, row.finished = phase, result, error, now


def note_verified(session: Session, group_uid: str, target: str, found: Verification, now: datetime) -> None:
    """Remember up to which checkpoint a target's copy was proven readable, and what is damaged in it."""
    before = session.get(VerificationRow, (group_uid, target))
    session.merge(
        VerificationRow(
            group_uid=group_uid,
            target=target,
            sequence=found.newest.sequence if found.newest else 0,
            checkpoint=found.newest.id if found.newest else "",
            verified_at=now,
            manifest=max(found.manifest, before.manifest if before else 0),
            damage=to_catalogue(found.findings),
        )
    )


def newest_manifest(session: Session, group_uid: str, target: str) -> int:
    """Number of the newest manifest that a verification ever saw at the target; 0: none did."""
    before = session.get(VerificationRow, (group_uid, target))
    return before.manifest if before else 0


def wire(row: OperationRow) -> Operation:
    """The operation as REST tells it."""
    return Operation.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "group": row.group_name,
            "phase": row.phase,
            "steps": row.steps,
            "request": row.request,
            "result": row.result,
            "error": row.error,
            "progress": next((step.get("progress") for step in row.steps if step["state"] == "running"), None),
            "created": row.created,
            "finished": row.finished,
        }
    )


def _row(session: Session, operation_id: str) -> OperationRow:
    row = session.get(OperationRow, operation_id)
    if row is None:
        raise NotFound(
            f"There is no operation {operation_id!r} on this site. `dpac operation list` shows those there are."
        )
    return row


# ------------------------------------------------------------------ mounts


def list_mounts(session: Session) -> list[tuple[int, Mount]]:
    """(worker, mount) of what is mounted, oldest first."""
    rows = session.scalars(select(MountRow).order_by(MountRow.created))
    return [(row.worker, Mount.model_validate(row.mount)) for row in rows if row.mount is not None]


def mount_row(session: Session, mount_id: str) -> MountRow:
    """One mount; NotFound if there is none."""
    row = session.get(MountRow, mount_id)
    if row is None:
        raise NotFound(f"There is no mount {mount_id!r} on this site. `dpac mounts` shows those there are.")
    return row
