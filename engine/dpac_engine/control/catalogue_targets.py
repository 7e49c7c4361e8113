"""Targets in the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, NotFound
from dpac_api.models import Owner, PutTarget, S3TargetSpec, Target, TargetSpec, target_spec_of
from dpac_engine.control.assignment import TargetRecord
from dpac_engine.control.catalogue_schema import TENANT, GroupRow, MemberRow, TargetRow
from dpac_engine.control.host_checks import Claim, check_target, make_target_folder, target_place, where_of
from dpac_engine.control.ownership import settle


def list_targets(session: Session, site_uid: str) -> list[Target]:
    """Every target, by name."""
    used = _users(session)
    rows = session.scalars(select(TargetRow).where(TargetRow.lifecycle == "active").order_by(TargetRow.name))
    return [_wire(row, site_uid, used.get(row.name, [])) for row in rows]


def get_target(session: Session, site_uid: str, name: str) -> Target:
    """One target; NotFound says which there are."""
    row = _row(session, name)
    if row is None or row.lifecycle != "active":
        known = ", ".join(target.name for target in list_targets(session, site_uid)) or "none"
        raise NotFound(f"There is no target {name!r} on this site (there is: {known}).")
    return _wire(row, site_uid, _users(session).get(name, []))


def target_spec(session: Session, name: str) -> TargetSpec | None:
    """A target's spec, retired ones included, since recovery points lie there; None if it is unknown."""
    row = _row(session, name)
    return None if row is None else target_spec_of(row.spec)


def target_record(session: Session, name: str) -> TargetRecord | None:
    """What the catalogue knows of a target beside its spec; None if it is unknown."""
    row = _row(session, name)
    if row is None:
        return None
    retired = row.lifecycle == "retired"
    return TargetRecord(uid=row.uid, owner=_owner(row), generation=row.generation, retired=retired, created=row.created)


def all_target_specs(session: Session) -> dict[str, TargetSpec]:
    """Target name -> spec, retired ones included."""
    rows = session.execute(select(TargetRow.name, TargetRow.spec))
    return {name: target_spec_of(spec) for name, spec in rows}


def put_target(session: Session, name: str, put: PutTarget, *, data: Path, site_uid: str, now: datetime) -> Target:
    """Create, change or take up again a target; everything is checked before anything changes."""
    row = _row(session, name)
    owner = put.owner
    if row is not None:
        owner = settle(f"target {name!r}", _owner(row), put.owner, adopt=put.adopt)
        _check_change(session, row, put.spec)
    if row is None or row.spec != put.spec.model_dump(mode="json"):
        check_target(put.spec, data, target_claims(session, apart_from=name), member_claims(session))
        make_target_folder(put.spec)
    if row is None:
        row = TargetRow(uid=uuid4().hex, tenant=TENANT, name=name, generation=0, spec={}, created=now)
        session.add(row)
    spec = put.spec.model_dump(mode="json")
    if (row.spec, row.lifecycle) != (spec, "active"):
        row.generation += 1
    row.spec, row.owner, row.lifecycle = spec, owner.model_dump(mode="json") if owner else None, "active"
    row.path_real = target_place(put.spec)
    session.flush()
    return _wire(row, site_uid, _users(session).get(name, []))


def _check_change(session: Session, row: TargetRow, spec: TargetSpec) -> None:
    was = target_spec_of(row.spec)
    _check_locks_stay(session, row.name, spec)
    if target_place(was) == target_place(spec):
        return
    holders = _holders(session).get(row.name, [])
    if holders:
        raise Conflict(
            f"The target {row.name!r} cannot move from {was.location} to {spec.location}: recovery points of {', '.join(holders)} "
            "lie there. Declare a second target, add a leg to it, and remove the old leg once the new one is protected.",
            property_path=where_of(spec),
        )


def _check_locks_stay(session: Session, name: str, spec: TargetSpec) -> None:
    if isinstance(spec, S3TargetSpec) and spec.object_lock:
        return
    active = select(GroupRow.name, GroupRow.spec).where(GroupRow.lifecycle == "active").order_by(GroupRow.name)
    for group, declared in session.execute(active):
        for leg in declared["replication"].values():
            if leg["target"] == name and leg["retention"].get("immutable_for"):
                raise Conflict(
                    f"The target {name!r} must keep `object_lock`: the group {group!r} asks for immutable copies there. Take "
                    "`immutable_for` out of its leg first.",
                    property_path="spec.object_lock",
                )


def delete_target(session: Session, name: str) -> None:
    """Forget a target. Conflict names the groups that replicate to it; with recovery points on it, it only retires, to be found again."""
    row = _row(session, name)
    if row is None or row.lifecycle != "active":
        raise NotFound(f"There is no target {name!r} on this site.")
    users = _users(session).get(name, [])
    if users:
        raise Conflict(f"The target {name!r} is used by {', '.join(users)}. Remove their legs to it first.")
    if _holders(session).get(name):
        row.lifecycle = "retired"
        row.generation += 1
    else:
        session.delete(row)


def collect_retired(session: Session) -> None:
    """Drop retired targets at which no group has recovery points any more."""
    held = _holders(session)
    for row in session.scalars(select(TargetRow).where(TargetRow.lifecycle == "retired")):
        if row.name not in held:
            session.delete(row)


def target_claims(session: Session, *, apart_from: str = "") -> list[Claim]:
    """The paths of all targets, retired ones included."""
    rows = session.scalars(select(TargetRow).where(TargetRow.name != apart_from))
    return [Claim(row.path_real, f"target {row.name!r}", True) for row in rows]


def member_claims(session: Session, paths: Iterable[str] | None = None) -> list[Claim]:
    """The (real) paths of all present members of active groups; with `paths` only those at, above or below one of them."""
    query = (
        select(MemberRow.path_real, MemberRow.name, GroupRow.name, MemberRow.kind)
        .join(GroupRow, GroupRow.uid == MemberRow.group_uid)
        .where(GroupRow.lifecycle == "active", MemberRow.removed.is_(False))
    )
    if paths is not None:
        wanted = list(paths)
        above = {str(parent) for path in wanted for parent in (Path(path), *Path(path).parents)}
        # "0" follows "/": everything below a path sorts between the two.
        below = [and_(MemberRow.path_real > f"{path}/", MemberRow.path_real < f"{path}0") for path in wanted]
        query = query.where(or_(MemberRow.path_real.in_(above), *below))
    rows = session.execute(query)
    return [
        Claim(path, f"member {member!r} of group {group!r}", kind == "directory", group)
        for path, member, group, kind in rows
    ]


def _users(session: Session) -> dict[str, list[str]]:
    """Target name -> active groups with a leg to it."""
    found: dict[str, list[str]] = {}
    active = select(GroupRow.name, GroupRow.spec).where(GroupRow.lifecycle == "active")
    for name, spec in session.execute(active.order_by(GroupRow.name)):
        for target in legs_of(spec):
            found.setdefault(target, []).append(name)
    return found


def _holders(session: Session) -> dict[str, list[str]]:
    """Target name -> groups, deleted ones too, whose recovery points may lie there."""
    found: dict[str, list[str]] = {}
    rows = session.execute(select(GroupRow.name, GroupRow.spec, GroupRow.targets_past).order_by(GroupRow.name))
    for name, spec, past in rows:
        for target in [*legs_of(spec), *past]:
            found.setdefault(target, []).append(name)
    return found


def group_uids_at(session: Session, name: str) -> list[str]:
    """The groups whose recovery points may lie at a target, by uid."""
    rows = session.execute(select(GroupRow.uid, GroupRow.spec, GroupRow.targets_past))
    return [uid for uid, spec, past in rows if name in (*legs_of(spec), *past)]


def legs_of(spec: dict[str, Any]) -> list[str]:
    """The targets that a group's legs name, in the order of the legs."""
    return [leg["target"] for leg in spec["replication"].values()]


def targets_of(row: GroupRow) -> list[str]:
    """The targets at which recovery points of the group may lie: of its legs, then of legs it had."""
    return [*legs_of(row.spec), *row.targets_past]


def target_names(session: Session) -> set[str]:
    """The names of all targets."""
    return set(session.scalars(select(TargetRow.name).where(TargetRow.lifecycle == "active")))


def _row(session: Session, name: str) -> TargetRow | None:
    return session.scalar(select(TargetRow).where(TargetRow.tenant == TENANT, TargetRow.name == name))


def _owner(row: TargetRow) -> Owner | None:
    return Owner.model_validate(row.owner) if row.owner else None


def _wire(row: TargetRow, site_uid: str, used_by: list[str]) -> Target:
    return Target(
        name=row.name,
        uid=row.uid,
        site_uid=site_uid,
        owner=_owner(row),
        spec=target_spec_of(row.spec),
        generation=row.generation,
        used_by=used_by,
    )
