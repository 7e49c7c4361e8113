"""What control tells a worker to do: written to `groups/<uid>/assignment.json`, read by the worker."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from dpac_api.models import GroupSpec, JournalSpec, Model, Name, Owner, TargetSpec, Uid
from dpac_api.quantities import Size

ShardKey = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.[1-9][0-9]*)?$")]
"""The group's uid; behind it, for shard N but the first, `.N`."""


def shard_key(group_uid: str, shard: int) -> str:
    """The key of a group's shard."""
    return f"{group_uid}.{shard}" if shard else group_uid


def group_of(key: str) -> tuple[str, int]:
    """(group uid, shard) of a shard's key."""
    uid, _, shard = key.partition(".")
    return uid, int(shard or 0)


class MemberAssignment(Model):
    """A member's identity: `ordinal` (in records, never used twice in a group) and `uid`; and its shard, for life."""

    ordinal: int
    uid: Uid
    shard: int = 0


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
    """A group, or one of its shards, as one worker shall serve it."""

    group_uid: Uid
    shard: int = 0
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

    @property
    def shards(self) -> int:
        """How many shards the group has."""
        return self.spec.journal.shards

    @property
    def key(self) -> str:
        """The shard's key: where it lies on this host, and how workers and targets know it."""
        return shard_key(self.group_uid, self.shard)

    @property
    def own_members(self) -> dict[Name, MemberAssignment]:
        """The members of this shard."""
        return {name: member for name, member in self.members.items() if member.shard == self.shard}

    @property
    def journal(self) -> JournalSpec:
        """The group's journal as this shard may fill it: each gets an equal part of the limits."""
        journal, shards = self.spec.journal, self.shards
        if shards == 1:
            return journal
        limits = {name: Size.of_bytes(getattr(journal, name).bytes // shards) for name in ("size_max", "spool_max")}
        return journal.model_copy(update=limits)

    def identity(self) -> dict[str, object]:
        """Everything but name, site, generation and spec, which a repository's spec object has fields of its own for."""
        return self.model_dump(mode="json", exclude={"name", "site_uid", "generation", "spec"})
