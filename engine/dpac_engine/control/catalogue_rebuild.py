"""Makes a lost catalogue again from what lies outside it: the workers' assignments, the mounts, and the repositories.

An assignment tells all the catalogue knew of an active or retained group, and of the targets it uses. Where it is lost or
damaged, the spec object in a repository tells the same. What nothing else holds (operations, API tokens, the answers
kept for retries, targets that no group used) does not come back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, Corruption, DpacError
from dpac_api.models import Mount, TargetSpec
from dpac_engine.control.assignment import CatalogueRecord, WorkerAssignment
from dpac_engine.control.catalogue import Catalogue
from dpac_engine.control.catalogue_guard import exclusively, open_whole
from dpac_engine.control.catalogue_schema import TENANT, GroupRow, MemberRow, MountRow, TargetRow
from dpac_engine.control.catalogue_targets import legs_of
from dpac_engine.control.host_checks import real_path, target_place
from dpac_engine.control.site import Site
from dpac_engine.io.files import sync_folder

_PARTS = ("", "-wal", "-shm")
"""The files of an SQLite database."""

StoredGroups = Callable[[TargetSpec], Iterable[tuple[str, WorkerAssignment | DpacError]]]
"""(group uid, what it said of itself at a target, or why that cannot be read)."""


class Rebuilt(NamedTuple):
    """What came back."""

    groups: list[str]
    """Active, by name."""
    retained: list[str]
    targets: list[str]
    mounts: list[str]
    """By id."""
    notes: list[str]
    """What did not come back, or not from where it should, a sentence each."""
    aside: Path | None
    """Where the damaged catalogue was put; None if there was none."""


def rebuild(site: Site, stored_groups: StoredGroups, now: datetime) -> Rebuilt:
    """Replace a lost or damaged catalogue. Conflict if it is whole or in use, Unsupported if a newer dpac wrote it."""
    file = site.catalogue_file
    with exclusively(file):
        _require_lost(site)
        notes: list[str] = []
        told = _from_assignments(site, notes)
        found = {one.group_uid: one for one in told if one.shard == 0}
        _add_from_repositories(site, found, _target_specs(told), stored_groups, notes)
        fresh = file.with_name("catalogue.sqlite.rebuilt")
        _remove(fresh)
        catalogue = Catalogue.open(fresh)
        try:
            with catalogue.write() as session:
                targets = _add_targets(session, found.values(), now)
                for assignment in found.values():
                    session.add(_group_row(assignment, site, now))
                mounts = sorted(_add_mounts(session, site, {a.name: a.group_uid for a in found.values()}, notes))
        finally:
            catalogue.close()
        aside = _set_aside(file, now)
        fresh.rename(file)
        sync_folder(site.data)
    active = sorted(a.name for a in found.values() if a.state == "active")
    retained = sorted(a.name for a in found.values() if a.state != "active")
    return Rebuilt(active, retained, targets, mounts, notes, aside)


def _require_lost(site: Site) -> None:
    try:
        open_whole(site.catalogue_file, site.groups).close()
    except Corruption:
        return
    raise Conflict(f"The catalogue {site.catalogue_file} is whole: there is nothing to rebuild. Nothing was changed.")


# ------------------------------------------------------------------ finding


def _from_assignments(site: Site, notes: list[str]) -> list[WorkerAssignment]:
    """What the workers were told. A group is known by its first shard; of one that lost that, the others still name the targets."""
    found: list[WorkerAssignment] = []
    for path in sorted(site.groups.glob("*/assignment.json")):
        try:
            found.append(WorkerAssignment.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            notes.append(f"{path} cannot be read; the group is looked for at the targets.")
    return found


def _add_from_repositories(
    site: Site,
    found: dict[str, WorkerAssignment],
    targets: Mapping[str, TargetSpec],
    stored_groups: StoredGroups,
    notes: list[str],
) -> None:
    """Add the groups that only their targets know; also looks at targets which are found on the way."""
    specs = dict(targets)
    looked: set[str] = set()
    while unseen := sorted(specs.keys() - looked):
        looked.update(unseen)
        for name in unseen:
            try:
                for uid, stored in stored_groups(specs[name]):
                    if uid not in found and isinstance(stored, DpacError):
                        notes.append(f"Group {uid} at target {name} cannot be read: {stored.message}")
                    elif isinstance(stored, WorkerAssignment) and _is_missing(site, stored, found):
                        found[uid] = stored.model_copy(update={"state": _state(site, uid)})
                        notes.append(f"Group {stored.name} was found at target {name} only.")
            except DpacError as error:
                notes.append(f"Target {name} cannot be read; groups that only it knows are missing: {error.message}")
        specs |= _target_specs(found.values())


def _is_missing(site: Site, stored: WorkerAssignment, found: Mapping[str, WorkerAssignment]) -> bool:
    taken = any(other.name == stored.name for other in found.values())
    return stored.site_uid == site.site_uid and stored.group_uid not in found and not taken


def _state(site: Site, uid: str) -> str:
    """A group whose journal is here was at work; of any other only the recovery points are left."""
    folder = site.group(uid)
    return "active" if (folder / "spool").is_dir() and not (folder / "drained").exists() else "detached"


def _target_specs(assignments: Iterable[WorkerAssignment]) -> dict[str, TargetSpec]:
    return {name: spec for assignment in assignments for name, spec in assignment.targets.items()}


# ------------------------------------------------------------------ rows


def _add_targets(session: Session, assignments: Iterable[WorkerAssignment], now: datetime) -> list[str]:
    rows: dict[str, TargetRow] = {}
    for assignment in sorted(assignments, key=lambda assignment: assignment.generation):
        records = assignment.record.targets if assignment.record else {}
        for name, spec in assignment.targets.items():
            record = records.get(name)
            if name in rows and (record is None or record.generation <= rows[name].generation):
                continue
            rows[name] = TargetRow(
                uid=record.uid if record else os.urandom(16).hex(),
                tenant=TENANT,
                name=name,
                owner=record.owner.model_dump(mode="json") if record and record.owner else None,
                spec=spec.model_dump(mode="json"),
                path_real=target_place(spec),
                generation=record.generation if record else 1,
                lifecycle="retired" if record and record.retired else "active",
                created=record.created if record else now,
            )
    session.add_all(rows.values())
    return sorted(rows)


def _group_row(told: WorkerAssignment, site: Site, now: datetime) -> GroupRow:
    spec = told.spec.model_dump(mode="json")
    ordinals = [identity.ordinal for identity in told.members.values()]
    record = told.record or CatalogueRecord(
        owner=None,
        home_site=site.site_uid,
        active_site=site.site_uid,
        ordinal_next=max(ordinals, default=0) + 1,
        expires_at=None,
        created=now,
        removed=[],
        targets={},
    )
    return GroupRow(
        uid=told.group_uid,
        tenant=told.tenant,
        name=told.name,
        owner=record.owner.model_dump(mode="json") if record.owner else None,
        spec=spec,
        generation=told.generation,
        applied_generation=0,  # whatever the worker does now, it is told again
        lifecycle="active" if told.state == "active" else "retained",
        expires_at=record.expires_at,
        shard_uid=told.shard_uid,
        key_id=told.key_id,
        epoch=told.epoch,
        membership_version=told.membership_version,
        home_site=record.home_site,
        active_site=record.active_site,
        worker=told.worker,
        ordinal_next=record.ordinal_next,
        targets_past=sorted(told.targets.keys() - set(legs_of(spec))),
        created=record.created,
        members=sorted(_member_rows(told, record), key=lambda member: member.ordinal),
    )


def _member_rows(told: WorkerAssignment, record: CatalogueRecord) -> Iterator[MemberRow]:
    for gone in record.removed:
        yield MemberRow(
            ordinal=gone.ordinal,
            uid=gone.uid,
            name=gone.name,
            kind=gone.kind,
            path=gone.path,
            path_real=real_path(gone.path),
            removed=True,
        )
    for name, identity in told.members.items():
        spec = told.spec.members[name]
        yield MemberRow(
            ordinal=identity.ordinal,
            uid=identity.uid,
            name=name,
            kind=spec.kind,
            path=spec.path,
            path_real=real_path(spec.path),
            removed=False,
            shard=identity.shard,
        )


def _add_mounts(session: Session, site: Site, groups: Mapping[str, str], notes: list[str]) -> Iterator[str]:
    """What the workers have mounted, so that it can be unmounted."""
    for path in site.mounts.glob("*/mount.json"):
        try:
            worker, _, text = path.read_text().partition("\n")
            mount = Mount.model_validate(json.loads(text)["mount"])
            index = int(worker)
        except (OSError, ValueError, KeyError):
            notes.append(f"{path} cannot be read; the mount is not listed.")
            continue
        session.add(
            MountRow(
                id=mount.id,
                group_uid=groups.get(mount.group, ""),
                worker=index,
                mount=mount.model_dump(mode="json"),
                created=mount.created,
            )
        )
        yield mount.id


# ------------------------------------------------------------------ files


def _set_aside(file: Path, now: datetime) -> Path | None:
    """Keep what is left of the damaged catalogue, for whoever wants to read more of it."""
    aside = file.with_name(f"{file.name}.damaged-{now:%Y%m%dT%H%M%S}")
    for part in _PARTS:
        old = file.with_name(file.name + part)
        if old.exists():
            old.rename(aside.with_name(aside.name + part))
    return aside if aside.exists() else None


def _remove(file: Path) -> None:
    for part in _PARTS:
        file.with_name(file.name + part).unlink(missing_ok=True)
