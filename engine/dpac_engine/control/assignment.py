"""What control tells a worker to do: written to `groups/<uid>/assignment.json`, read by the worker."""

from __future__ import annotations

from typing import Literal

from dpac_api.models import GroupSpec, Model, Name, TargetSpec, Uid


class MemberAssignment(Model):
    """A member's identity: `ordinal` (in records, never used twice in a group) and `uid`."""

    ordinal: int
    uid: Uid


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
