"""Groups: what is protected together, as it is declared."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dpac_api.models.encryption import EncryptionSpec
from dpac_api.models.fields import (
    AbsolutePath,
    LabelKey,
    LabelValue,
    Model,
    Name,
    Owner,
    RequestId,
    Uid,
    at_least,
    bounded,
    whole_sectors,
)
from dpac_api.models.legs import LegSpec
from dpac_api.quantities import Duration, Size


class VolumeSpec(Model):
    """A block volume: a raw file served as an NBD export, every write journalled before it reaches the file."""

    kind: Literal["volume"] = "volume"
    path: AbsolutePath = Field(description="The raw file. Created, sparse, if it is missing and `size` is given.")
    size: Annotated[Size, at_least("512B"), AfterValidator(whole_sectors)] | None = Field(
        default=None,
        description="The size the volume has at least: a missing file is created, a smaller one grows. Never shrinks.",
    )


class DirectorySpec(Model):
    """A directory tree: every stable version of every file is journalled."""

    kind: Literal["directory"] = "directory"
    path: AbsolutePath = Field(description="The directory; it must exist.")
    blueprint: Literal["sqlite"] | None = Field(
        default=None,
        description="How the application in it is quiesced and checked. `sqlite`: databases are copied by SQLite's own backup interface.",
    )


MemberSpec = Annotated[VolumeSpec | DirectorySpec, Field(discriminator="kind")]


SHARDS_MAX = 16
"""More would hold the writers of all for longer than any of them gains."""


class JournalSpec(Model):
    """How far back every second can be recovered, and how much space that may take at each target."""

    history: Annotated[Duration, bounded("1m", "365d")] = Field(
        default=Duration("1d"), description="How far back every checkpoint is kept."
    )
    size_max: Annotated[Size, at_least("64MiB")] = Field(
        default=Size("16GiB"), description="The most that history may take at one target; older history goes first."
    )
    spool_max: Annotated[Size, at_least("128MiB")] = Field(
        default=Size("1GiB"), description="The most the spool on the backend's host may take while targets lag."
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=SHARDS_MAX,
        description="By how many workers the group is served at once, fixed at its creation; each keeps a journal of its own. "
        "Checkpoints of several are `barrier`: once a second the volumes hold new writes for some milliseconds.",
    )

    @model_validator(mode="after")
    def _room_for_each_shard(self) -> JournalSpec:
        for name, least in (("size_max", 64 * 2**20), ("spool_max", 128 * 2**20)):
            if getattr(self, name).bytes < self.shards * least:
                raise ValueError(f"{name} must be at least {least // 2**20} MiB for each of the {self.shards} shards")
        return self


class GroupSpec(Model):
    """What a protection group shall be. Who is active is not in it: that is `epoch` and `active_site`, which failover moves."""

    members: dict[Name, MemberSpec] = Field(
        min_length=1, max_length=256, description="What is recovered together, by name."
    )
    replication: dict[Name, LegSpec] = Field(default={}, max_length=16, description="The legs, by name.")
    journal: JournalSpec = Field(default=JournalSpec())
    encryption: EncryptionSpec = Field(default=EncryptionSpec(), description="Who beside the site opens the copies.")
    labels: dict[LabelKey, LabelValue] = Field(
        default={}, max_length=64, description="What the group is, for people and policies: `environment: production`."
    )
    on_destroy: Literal["retain", "expire", "purge"] = Field(
        default="retain",
        description="What a delete does with recovery points: keep them all, let them age out, or delete them now.",
    )

    @model_validator(mode="after")
    def _each_path_once(self) -> GroupSpec:
        seen: dict[str, str] = {}
        for name, member in self.members.items():
            if member.path in seen:
                raise ValueError(
                    f"members {seen[member.path]!r} and {name!r} both name {member.path}; a path belongs to one member"
                )
            seen[member.path] = name
        return self


class PutGroup(Model):
    """Create, change or resume a group."""

    request_id: RequestId
    owner: Owner | None = Field(default=None, description="None from the CLI.")
    adopt: bool = Field(default=False, description="Take it over from another owner.")
    spec: GroupSpec


class Role(StrEnum):
    """Whether this site writes or receives."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class MemberOutputs(Model):
    """What an application wires to."""

    kind: str
    path: str
    nbd_uri: str = Field(default="", description="Volumes: connect here instead of opening the file.")


class Group(Model):
    """A group as the catalogue has it: what was asked for, and what does not change by itself."""

    name: Name
    uid: Uid
    site_uid: Uid
    owner: Owner | None
    spec: GroupSpec
    generation: int
    lifecycle: Literal["active", "retained"]
    epoch: int
    role: Role
    home_site: str
    active_site: str
    membership_version: int
    members: dict[str, MemberOutputs]
