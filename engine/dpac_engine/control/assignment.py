"""What control tells a worker to do: written to `groups/<uid>/assignment.json`, read by the worker."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from dpac_api.models import GroupSpec, Model, Name, Owner, TargetSpec, Uid


class MemberAssignment(Model):
    """A member's identity: `ordinal` (in records, never used twice in a group) and `uid`."""

    ordinal: int
    uid: Uid


class RemovedMember(Model):
    """A member that left: its ordinal is never used again, and old checkpoints name it."""

    name: Name
    ordinal: int
    uid: Uid
    kind: str
    path: str


class TargetRecord(Model):
    """A target as the catalogue knows it, beside its spec."""

    uid: Uid
    owner: Owner | None
    generation: int
    retired: bool
    created: datetime


class CatalogueRecord(Model):
    """What no worker needs of a group: a lost catalogue is made again from it (`catalogue_rebuild`)."""

    owner: Owner | None
    home_site: Uid
    active_site: Uid
    ordinal_next: int
    expires_at: datetime | None
    created: datetime
    removed: list[RemovedMember]
    targets: dict[Name, TargetRecord]


class WorkerAssignment(Model):
    """A group as one worker shall serve it."""

    group_uid: Uid
    name: Name
    tenant: str = "default"
    site_uid: Uid
    shard_uid: Uid
    worker: int
    generation: int
    epoch: int
    membership_version: int
    state: Literal["active", "detached"] = "active"
    key_id: Uid
    spec: GroupSpec
    members: dict[Name, MemberAssignment]
    targets: dict[Name, TargetSpec]
    record: CatalogueRecord | None = None
    """None in one that an earlier version wrote; control replaces it when it starts."""

    def identity(self) -> dict[str, object]:
        """Everything but name, site, generation and spec, which a repository's spec object has fields of its own for."""
        return self.model_dump(mode="json", exclude={"name", "site_uid", "generation", "spec"})
