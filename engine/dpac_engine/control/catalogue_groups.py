"""Groups in the catalogue: what is wanted, who they are, and what they become when deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import quote
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, Invalid, NotFound, Temporary
from dpac_api.models import (
    FilesystemTargetSpec,
    Group,
    GroupSpec,
    LegSpec,
    MemberOutputs,
    Owner,
    PutGroup,
    RetentionSpec,
    Role,
    S3TargetSpec,
    SiteInfo,
    TargetSpec,
)
from dpac_engine.control.assignment import CatalogueRecord, MemberAssignment, RemovedMember, WorkerAssignment
from dpac_engine.control.catalogue_schema import TENANT, GroupRow, MemberRow, MountRow, OperationRow, VerificationRow
from dpac_engine.control.catalogue_targets import (
    legs_of,
    member_claims,
    target_claims,
    target_names,
    target_record,
    target_spec,
    targets_of,
)
from dpac_engine.control.host_checks import check_member, check_overlaps, has_other_names, real_path
from dpac_engine.control.member_identity import Identity, assign
from dpac_engine.control.ownership import settle
from dpac_engine.control.sharding import check_none_empty, check_shards, next_shard, shard_uid_of
from dpac_engine.core.immutability import locked_for_ns

OnDestroy = Literal["retain", "expire", "purge"]


@dataclass(frozen=True)
class Host:
    """Where this site's groups live."""

    site: SiteInfo
    data: Path
    workers: int
    """How many workers there are."""
    new_key: Callable[[], str]
    """Makes a data key; returns its id."""
    nbd_socket: Callable[[int], Path]
    """Where a worker's exports listen."""

    def nbd_uri(self, group: str, member: str, worker: int) -> str:
        """Where a volume's export listens: fixed from the group's creation on."""
        socket = quote(str(self.nbd_socket(worker)), safe="/")
        return f"nbd+unix:///{quote(group)}/{quote(member)}?socket={socket}"


# ------------------------------------------------------------------ reading


def list_groups(session: Session, host: Host, lifecycle: str | None = None) -> list[Group]:
    """Groups by name; those being purged are not there any more."""
    query = select(GroupRow).where(GroupRow.lifecycle != "purging").order_by(GroupRow.name)
    if lifecycle is not None:
        query = query.where(GroupRow.lifecycle == lifecycle)
    return [wire(row, host) for row in session.scalars(query)]


def group_row(session: Session, name: str, *, retained: bool = False) -> GroupRow:
    """The group of that name; NotFound if there is none, or only a retained one and that was not asked for."""
    row = _find(session, name)
    if row is None or row.lifecycle == "purging":
        raise NotFound(f"There is no group {name!r} on this site. `dpac group list` shows those there are.")
    if row.lifecycle == "retained" and not retained:
        raise NotFound(
            f"The group {name!r} was deleted; its recovery points are retained. Declare it again to resume it, "
            "or ask with retained=true (`dpac group show NAME --retained`)."
        )
    return row


def _find(session: Session, name: str) -> GroupRow | None:
    return session.scalar(select(GroupRow).where(GroupRow.tenant == TENANT, GroupRow.name == name))


def member_names(row: GroupRow) -> dict[int, str]:
    """Ordinal -> name of every member the group ever had: what old checkpoints call them."""
    return {member.ordinal: member.name for member in row.members}


def wire(row: GroupRow, host: Host) -> Group:
    """The group as REST tells it."""
    spec = GroupSpec.model_validate(row.spec)
    shards = {member.name: member.shard for member in row.members if not member.removed}
    return Group(
        name=row.name,
        uid=row.uid,
        site_uid=host.site.site_uid,
        owner=Owner.model_validate(row.owner) if row.owner else None,
        spec=spec,
        generation=row.generation,
        lifecycle="active" if row.lifecycle == "active" else "retained",
        epoch=row.epoch,
        role=Role.PRIMARY if row.active_site == host.site.site_uid else Role.SECONDARY,
        home_site=row.home_site,
        active_site=row.active_site,
        membership_version=row.membership_version,
        members={
            name: MemberOutputs(
                kind=member.kind,
                path=member.path,
                nbd_uri=host.nbd_uri(row.name, name, row.worker + shards.get(name, 0))
                if member.kind == "volume"
                else "",
            )
            for name, member in spec.members.items()
        },
    )


def assignment(session: Session, row: GroupRow, host: Host, shard: int = 0) -> WorkerAssignment:
    """What the worker of the group, or of one of its shards, shall do. Shards are served by workers that follow each other."""
    return WorkerAssignment(
        group_uid=row.uid,
        shard=shard,
        name=row.name,
        tenant=row.tenant,
        site_uid=host.site.site_uid,
        shard_uid=shard_uid_of(row.shard_uid, shard),
        worker=row.worker + shard,
        generation=row.generation,
        epoch=row.epoch,
        membership_version=row.membership_version,
        state="active" if row.lifecycle == "active" else "detached",
        key_id=row.key_id,
        spec=GroupSpec.model_validate(row.spec),
        members={
            member.name: MemberAssignment(ordinal=member.ordinal, uid=member.uid, shard=member.shard)
            for member in row.members
            if not member.removed
        },
        targets=where_recovery_points_lie(session, row),
        record=_record(session, row),
    )


def _record(session: Session, row: GroupRow) -> CatalogueRecord:
    records = {name: target_record(session, name) for name in targets_of(row)}
    return CatalogueRecord(
        owner=Owner.model_validate(row.owner) if row.owner else None,
        home_site=row.home_site,
        active_site=row.active_site,
        ordinal_next=row.ordinal_next,
        expires_at=row.expires_at,
        created=row.created,
        removed=[
            RemovedMember(name=member.name, ordinal=member.ordinal, uid=member.uid, kind=member.kind, path=member.path)
            for member in row.members
            if member.removed
        ],
        targets={name: record for name, record in records.items() if record is not None},
    )


# ------------------------------------------------------------------ declaring


def put_group(session: Session, name: str, put: PutGroup, host: Host, now: datetime) -> Group:
    """Create, change or resume a group; everything is checked before anything changes."""
    row = _find(session, name)
    owner = put.owner
    if row is not None:
        if row.lifecycle == "purging":
            raise Temporary(f"The group {name!r} is being purged. Try again in a moment.")
        owner = settle(
            f"group {name!r}", Owner.model_validate(row.owner) if row.owner else None, put.owner, adopt=put.adopt
        )
    before = GroupSpec.model_validate(row.spec) if row is not None and row.lifecycle == "active" else None
    shards_before = GroupSpec.model_validate(row.spec) if row is not None and row.spec else None
    check_shards(put.spec, shards_before, host.workers)
    if before != put.spec:
        _check_spec(session, name, put.spec, before, host)
    if row is None:
        row = _new_row(session, name, host, now, put.spec.journal.shards)
        session.add(row)
    _declare(row, put.spec, owner)
    session.flush()
    return wire(row, host)


def _check_spec(session: Session, name: str, spec: GroupSpec, before: GroupSpec | None, host: Host) -> None:
    _check_legs(session, spec)
    for member, wanted in spec.members.items():
        check_member(f"spec.members.{member}", wanted, before.members.get(member) if before else None)
    paths = [real_path(wanted.path) for wanted in spec.members.values()]
    # A file with several names may be claimed by any of them.
    found = member_claims(session, None if any(map(has_other_names, paths)) else paths)
    claims = [claim for claim in found if claim.group != name]
    check_overlaps(spec.members, host.data, target_claims(session), claims)


def _check_legs(session: Session, spec: GroupSpec) -> None:
    known = target_names(session)
    legs: dict[str, str] = {}
    for leg, wanted in spec.replication.items():
        where = f"spec.replication.{leg}.target"
        if wanted.target not in known:
            there = ", ".join(sorted(known)) or "none"
            raise Invalid(
                f"There is no target {wanted.target!r} on this site (there is: {there}). Declare the target first.",
                property_path=where,
            )
        if wanted.target in legs:
            raise Invalid(
                f"The legs {legs[wanted.target]!r} and {leg!r} both go to {wanted.target!r}. One leg per target.",
                property_path=where,
            )
        legs[wanted.target] = leg
        _check_sync_leg(session, leg, wanted)
        _check_immutable_leg(session, leg, wanted)


def _check_sync_leg(session: Session, leg: str, wanted: LegSpec) -> None:
    target = target_spec(session, wanted.target)
    if wanted.mode == "sync" and not isinstance(target, FilesystemTargetSpec):
        raise Invalid(
            f"The leg {leg!r} is sync, but its target {wanted.target!r} is no file system: only one can be appended to at "
            'every FLUSH. Use mode "async", or a filesystem target.',
            property_path=f"spec.replication.{leg}.mode",
        )


def _check_immutable_leg(session: Session, leg: str, wanted: LegSpec) -> None:
    target = target_spec(session, wanted.target)
    if wanted.retention.immutable_for is None or (isinstance(target, S3TargetSpec) and target.object_lock):
        return
    remedy = (
        'Set its `object_lock="compliance"`; the bucket must have been created with Object Lock (docs/s3.md).'
        if isinstance(target, S3TargetSpec)
        else "Use a bucket with Object Lock (`S3Target`, docs/s3.md), or leave out `immutable_for`."
    )
    raise Invalid(
        f"The leg {leg!r} asks for immutable copies, and its target {wanted.target!r} does not lock objects. {remedy}",
        property_path=f"spec.replication.{leg}.retention.immutable_for",
    )


def _new_row(session: Session, name: str, host: Host, now: datetime, shards: int) -> GroupRow:
    return GroupRow(
        uid=uuid4().hex,
        tenant=TENANT,
        name=name,
        spec={},
        generation=0,
        applied_generation=0,
        lifecycle="new",
        shard_uid=uuid4().hex,
        key_id=host.new_key(),
        epoch=1,
        membership_version=0,
        home_site=host.site.site_uid,
        active_site=host.site.site_uid,
        worker=_emptiest_worker(session, host.workers - shards + 1),
        ordinal_next=1,  # 0 is the group itself
        targets_past=[],
        created=now,
        members=[],
    )


def _emptiest_worker(session: Session, workers: int) -> int:
    counts = dict.fromkeys(range(workers), 0)
    rows = session.execute(
        select(GroupRow.worker, func.count()).where(GroupRow.lifecycle == "active").group_by(GroupRow.worker)
    )
    counts.update({worker: count for worker, count in rows if worker in counts})
    return min(counts, key=lambda worker: (counts[worker], worker))


def _declare(row: GroupRow, spec: GroupSpec, owner: Owner | None) -> None:
    wanted, owned_by = spec.model_dump(mode="json"), owner.model_dump(mode="json") if owner else None
    if (row.spec, row.lifecycle, row.owner) == (wanted, "active", owned_by):
        return
    row.owner = owned_by
    legs = {leg.target for leg in spec.replication.values()}
    had = {*row.targets_past, *(legs_of(row.spec) if row.spec else [])}
    row.targets_past = sorted(had - legs)
    row.spec, row.lifecycle, row.expires_at = wanted, "active", None
    row.generation += 1
    _declare_members(row, spec)


def _declare_members(row: GroupRow, spec: GroupSpec) -> None:
    present = [Identity(m.name, m.ordinal, m.uid, m.kind, m.path) for m in row.members if not m.removed]
    membership = assign(present, spec.members, row.ordinal_next, lambda: uuid4().hex)
    gone = {identity.ordinal for identity in membership.removed}
    for member in row.members:
        member.removed = member.removed or member.ordinal in gone
    for new in membership.added:
        taken = [member.shard for member in row.members if not member.removed]
        row.members.append(
            MemberRow(
                ordinal=new.ordinal,
                uid=new.uid,
                name=new.name,
                kind=new.kind,
                path=new.path,
                path_real=real_path(new.path),
                removed=False,
                shard=next_shard(taken, spec.journal.shards),
            )
        )
    check_none_empty(row.name, {member.shard for member in row.members if not member.removed}, spec.journal.shards)
    row.ordinal_next += len(membership.added)
    row.membership_version += membership.changed


# ------------------------------------------------------------------ deleting


def delete_group(session: Session, name: str, on_destroy: OnDestroy | None, now: datetime) -> GroupRow:
    """Stop protecting a group; what becomes of its recovery points is `on_destroy`, by default as its spec says.

    A retained group can be deleted again, only to let it expire or to purge it. A purge is refused while a mount or an operation
    reads the recovery points.
    """
    row = group_row(session, name, retained=on_destroy in ("expire", "purge"))
    spec = GroupSpec.model_validate(row.spec)
    fate = on_destroy or spec.on_destroy
    if fate == "purge":
        _check_unread(session, row)
    row.lifecycle = "purging" if fate == "purge" else "retained"
    row.expires_at = now + age_out(spec) if fate == "expire" else None
    row.generation += 1
    return row


def _check_unread(session: Session, row: GroupRow) -> None:
    mounts = list(session.scalars(select(MountRow.id).where(MountRow.group_uid == row.uid)))
    if mounts:
        raise Conflict(
            f"The group {row.name!r} has open mounts: {', '.join(mounts)}. Unmount them first (`dpac unmount ID`)."
        )
    running = list(
        session.scalars(
            select(OperationRow.id).where(
                OperationRow.group_uid == row.uid, OperationRow.phase.in_(("Pending", "Running"))
            )
        )
    )
    if running:
        raise Conflict(
            f"Operations of the group {row.name!r} are running: {', '.join(running)}. Wait for them to finish."
        )


def age_out(spec: GroupSpec) -> timedelta:
    """How long after its last change the oldest-kept checkpoint of a group may still be wanted."""
    retentions = [leg.retention for leg in spec.replication.values()]
    return max([timedelta(seconds=spec.journal.history.seconds), *(_reach(retention) for retention in retentions)])


def _reach(retention: RetentionSpec) -> timedelta:
    days = max(
        retention.hourly / 24, retention.daily, 7 * retention.weekly, 31 * retention.monthly, 366 * retention.yearly
    )
    locked = timedelta()
    if retention.immutable_for is not None:
        locked = timedelta(microseconds=locked_for_ns(int(retention.immutable_for.seconds * 1e9)) // 1000)
    return max(timedelta(days=days), timedelta(seconds=retention.tagged.seconds), locked)


def forget_group(session: Session, uid: str) -> None:
    """Drop a purged group's rows."""
    row = session.get(GroupRow, uid)
    if row is not None:
        session.delete(row)
        for verification in session.scalars(select(VerificationRow).where(VerificationRow.group_uid == uid)):
            session.delete(verification)


def expired(session: Session, now: datetime) -> Sequence[GroupRow]:
    """The retained groups whose time is over."""
    return session.scalars(select(GroupRow).where(GroupRow.lifecycle == "retained", GroupRow.expires_at <= now)).all()


def purge_expired(session: Session, now: datetime, spared: Collection[str] = ()) -> list[str]:
    """Start purging the retained groups whose time is over, but for those spared; returns their uids."""
    due = []
    for row in expired(session, now):
        try:
            _check_unread(session, row)
        except Conflict:
            continue  # somebody reads it right now; the next sweep asks again
        if row.uid not in spared:
            row.lifecycle = "purging"
            row.generation += 1
            due.append(row.uid)
    return due


def where_recovery_points_lie(session: Session, row: GroupRow) -> dict[str, TargetSpec]:
    """Target name -> spec, the present legs' first, then those of removed legs."""
    specs = {name: target_spec(session, name) for name in targets_of(row)}
    return {name: spec for name, spec in specs.items() if spec is not None}
