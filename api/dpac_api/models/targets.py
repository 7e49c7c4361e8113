"""Targets: where copies go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpac_api.models.fields import AbsolutePath, Model, Name, Owner, RequestId, Uid


class FilesystemTargetSpec(Model):
    """A directory on a file system of the backend's host: another disk or a network mount."""

    kind: Literal["filesystem"] = "filesystem"
    path: AbsolutePath = Field(description="The directory; created if its parent exists.")


TargetSpec = FilesystemTargetSpec


class PutTarget(Model):
    """Create or change a target."""

    request_id: RequestId
    owner: Owner | None = Field(default=None, description="None from the CLI.")
    adopt: bool = Field(default=False, description="Take it over from another owner.")
    spec: TargetSpec


class Target(Model):
    """A target as the catalogue has it."""

    name: Name
    uid: Uid
    site_uid: Uid
    owner: Owner | None
    spec: TargetSpec
    generation: int
    used_by: list[str] = Field(default=[], description="Groups with a leg to it.")


class TargetCheck(Model):
    """What probing a target found."""

    target: str
    ok: bool
    checks: dict[str, str] = Field(description="Probe -> `ok`, or what is wrong and what to do.")
