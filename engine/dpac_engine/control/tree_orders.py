"""What a worker and the process that serves its mounted directories say to each other: lines of JSON on a pipe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dpac_api.models import Model, TargetSpec


@dataclass(frozen=True)
class TreeArguments:
    """What the process is given on its command line."""

    data: str
    """The site's folder."""
    index: int
    """The worker's number."""
    log_files: bool

    def to_json(self) -> str:
        """For its command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TreeArguments:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


class TreeOrder(Model):
    """Mount a directory of a checkpoint at `mounts/<mount id>/<member>`."""

    mount_id: str
    member: str
    group_uid: str
    target: TargetSpec
    checkpoint: str
    lsn: int
    """Where the checkpoint lies, in a group that has one shard."""
    shards: int = 1
    """How many the group has."""
    hydrate: bool


class TreeState(Model):
    """How a mounted directory is."""

    mount_id: str
    member: str
    fraction: float | None = None
    """None: it is not being copied."""
    whole: bool = False
    """It needs its target no more."""
    problem: str = ""


class Call(Model):
    """From the worker."""

    number: int
    verb: Literal["mount", "unmount"]
    mount_id: str
    order: TreeOrder | None = None
    """What to mount."""


class Said(Model):
    """To the worker: the answer to a call, or how a mount is."""

    answers: int | None = None
    error: dict[str, Any] | None = None
    """Of the one tree, as on the wire."""
    unavailable: str = ""
    """Why no directory can be mounted on this host."""
    state: TreeState | None = None


def tree_folder(member: str) -> str:
    """The folder in that of a mount that has what belongs to a mounted directory; no member is called so."""
    return f"{member}.tree"
