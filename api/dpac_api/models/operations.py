"""Operations: verbs at work on a group, and what they report."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpac_api.models.fields import AbsolutePath, Model, Name, RequestId, Selector, bounded
from dpac_api.quantities import Duration


class DrillRequest(Model):
    """Rehearse recovery from a target without touching the application."""

    request_id: RequestId
    at: Selector = "latest"
    target: Name | None = Field(
        default=None, description="The leg's target to recover from; None: the first that has the checkpoint."
    )
    rto: Annotated[Duration, bounded("1s", "30d")] | None = Field(
        default=None, description="The drill fails if it takes longer."
    )


class RestoreRequest(Model):
    """Write one member, as it was at a checkpoint, to a new path, or over what it holds now."""

    request_id: RequestId
    member: Name
    to: AbsolutePath | None = Field(
        default=None, description="A path that does not exist yet, or an empty directory; not given with `in_place`."
    )
    in_place: bool = Field(
        default=False,
        description="Bring the member itself back to the checkpoint, after a safety checkpoint of what it holds now.",
    )
    over: bool = Field(
        default=False,
        description="Volumes: `to` is an image or a disk that holds some state of the volume, or anything else; it becomes the checkpoint, "
        "and only what differs is fetched and written.",
    )
    force_disconnect: bool = Field(
        default=False,
        description="In place: drop clients that use the volume, or ignore programs that use the directory.",
    )
    at: Selector = "latest"
    target: Name | None = None
    paths: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(
        default=[],
        max_length=1000,
        description="Directories: only what these globs mean, relative to the member's root (`etc/*.conf`, `**/*.db`); none: all.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> RestoreRequest:
        if self.in_place == (self.to is not None):
            raise ValueError("give either `to`, a new path, or `in_place`")
        if self.in_place and self.paths:
            raise ValueError("in place a member comes back whole: restore single paths to a new path, and copy them")
        if self.over and (self.in_place or self.paths):
            raise ValueError("`over` goes with `to` alone: a whole volume over what lies there")
        if self.force_disconnect and not self.in_place:
            raise ValueError("`force_disconnect` is about a restore in place: nobody uses a new path")
        return self


class VerifyRequest(Model):
    """Read back what the targets hold and check every byte of it."""

    request_id: RequestId
    target: Name | None = Field(default=None, description="None: every leg's.")


class Phase(StrEnum):
    """Where an operation is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class OperationProgress(Model):
    """How far a step is that moves bytes."""

    done_bytes: int
    total_bytes: int | None = Field(default=None, description="None: not known.")
    bytes_per_second: float = Field(description="Since the step began.")
    remaining_seconds: float | None = Field(default=None, description="At that rate; None: not known.")


class OperationStep(Model):
    """One step of an operation's plan."""

    name: str
    state: Literal["pending", "running", "done", "failed"]
    message: str = ""
    progress: OperationProgress | None = None
    started: datetime | None = None
    finished: datetime | None = None


class Operation(Model):
    """A verb at work on a group: journalled, its own object, never a sticky field."""

    id: str
    kind: Literal["Drill", "Restore", "Verify", "Checkpoint", "Pause", "Resume", "Resync"]
    group: Name
    phase: Phase
    steps: list[OperationStep] = []
    request: dict[str, Any] = {}
    result: dict[str, Any] = Field(
        default={}, description="The report: DrillReport, RestoreReport, VerifyReport or Checkpoint."
    )
    error: str | None = None
    progress: OperationProgress | None = Field(default=None, description="Of the step that runs, if it moves bytes.")
    created: datetime
    finished: datetime | None = None


class MemberDrill(Model):
    """A member in a drill."""

    opened_seconds: float = Field(description="Until its first byte could be read.")
    checked_bytes: int
    checks: dict[str, str] = Field(default={}, description="Check -> what it found; `ok` if nothing.")


class DrillReport(Model):
    """What a drill proved. Signed with the site's Ed25519 key over the canonical JSON of every other field."""

    group: str
    group_uid: str
    site_uid: str
    target: str
    checkpoint: str
    checkpoint_time: datetime
    consistency: Literal["crash", "app"]
    started: datetime
    finished: datetime
    rpo_seconds: float = Field(description="Age of the checkpoint when the drill began.")
    rto_seconds: float = Field(description="From the start until every member was open, read in full and checked.")
    rto_goal_seconds: float | None = None
    members: dict[str, MemberDrill]
    passed: bool
    findings: list[str] = []
    public_key: str = Field(default="", description="Base64, raw Ed25519.")
    signature: str = Field(default="", description="Base64.")


class RestoreReport(Model):
    """What a restore wrote."""

    checkpoint: str
    member: str
    to: str
    bytes_written: int
    seconds: float
    bytes_kept: int = Field(default=0, description="What lay there already, and was neither fetched nor written.")
    bytes_zeroed: int = Field(
        default=0, description="In place or over, volumes: what became zeroes without being written."
    )
    paths_written: int = Field(default=0, description="In place, directories: made, replaced, or given other metadata.")
    paths_removed: int = Field(default=0, description="In place, directories: those that were not there then.")
    safety_checkpoint: str | None = Field(default=None, description="In place: the member as it was before.")
    safety_tag: str | None = Field(default=None, description="The tag of that checkpoint.")


class CheckpointRun(Model):
    """Checkpoints from one to another."""

    first: str = Field(description="Empty: from the oldest on.")
    last: str = Field(description="Empty: to the newest.")
    open_ended: bool = Field(description="Those taken later too, until what is damaged is overwritten or seeded anew.")


class DamagedRange(Model):
    """Bytes of a volume."""

    offset: int
    length: int


class DamagedMember(Model):
    """What of a member lies in a damaged object."""

    member: str
    ranges: list[DamagedRange] = []
    paths: list[str] = []
    more: int = Field(default=0, description="Ranges or paths beyond those listed.")


class VerifyFinding(Model):
    """Something a target holds that is not what was written."""

    target: str
    object: str
    problem: str
    checkpoints: list[CheckpointRun] = Field(default=[], description="Those that need it; none: no checkpoint does.")
    exact: bool = Field(default=True, description="False: it may be fewer checkpoints than that.")
    members: list[DamagedMember] = Field(default=[], description="What it held, as far as its index can be read.")


class SpareObject(Model):
    """Something a target holds that nothing there needs."""

    target: str
    object: str
    reason: str


class VerifyReport(Model):
    """What a verification read and found."""

    objects: int
    bytes_read: int
    checkpoints: int = Field(description="Recoverable, and every object they need is sound.")
    findings: list[VerifyFinding] = []
    spares: list[SpareObject] = Field(default=[], description="Reclaimable, no damage; at most a thousand a target.")
    verified_through: dict[str, str] = Field(default={}, description="Target -> newest checkpoint proven readable.")
