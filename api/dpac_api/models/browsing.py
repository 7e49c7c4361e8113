"""What checkpoints hold and how two of them differ, without opening them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from dpac_api.models.fields import Model


class FileInfo(Model):
    """A path of a directory member at a checkpoint."""

    path: str = Field(description="Relative to the member's root; bytes that are no UTF-8 as `\\xNN`.")
    type: Literal["file", "directory", "symlink", "other"]
    size_bytes: int
    mtime: datetime
    mode: int = Field(description="Permission bits.")


class FilePage(Model):
    """Paths, sorted; the cursor stays with the checkpoint."""

    checkpoint: str
    items: list[FileInfo]
    next_cursor: str | None = None


class Change(Model):
    """Something that differs between two checkpoints: a path of a directory, or a range of a volume."""

    member: str
    what: Literal["added", "removed", "changed"]
    path: str | None = None
    size_before: int | None = None
    size_after: int | None = None
    offset: int | None = None
    length: int | None = None


class MemberDifference(Model):
    """How much of a member differs."""

    member: str
    kind: str
    added: int = 0
    removed: int = 0
    changed: int = Field(default=0, description="Paths, or ranges of a volume.")
    changed_bytes: int = Field(default=0, description="Volumes: in those ranges.")


class DifferencePage(Model):
    """The difference between two checkpoints: all of it in numbers, and a page of the changes."""

    before: str
    after: str
    members: list[MemberDifference]
    items: list[Change]
    next_cursor: str | None = None
