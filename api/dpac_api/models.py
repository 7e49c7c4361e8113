"""What is said over the wire: the single source for provider checks, REST validation, OpenAPI, CLI and policy.

Times are RFC 3339 in UTC, durations and sizes are canonical strings
(`quantities`), byte counts are integers. Models refuse unknown fields and are
immutable.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dpac_api.quantities import Duration, Size

API_VERSION = 1
"""The version of this wire format that this client and this backend speak best."""
API_VERSION_OLDEST = 1
"""The oldest version this backend still answers."""

SECTOR_BYTES = 512


class Model(BaseModel):
    """Base of every wire model: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, ser_json_bytes="base64")


Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Lower-case letters, digits and dashes, 1 to 63 of them, starting and ending with a letter or digit.",
    ),
]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="A checkpoint's tag.")]
Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="128 random bits in lower-case hexadecimal.")]
RequestId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._-]{8,64}$", description="Made by the client; a retry with the same id never acts twice."
    ),
]
Selector = Annotated[
    str,
    Field(
        pattern=r"^(latest|latest-clean|latest-app|tag:[A-Za-z0-9][A-Za-z0-9._-]{0,62}|before:.{1,40}|ck-[0-9]+-[0-9]+)$",
        description="latest, latest-clean, latest-app, tag:NAME, before:TIMESTAMP (RFC 3339), or a checkpoint's id.",
    ),
]


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\x00" in path or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} must be an absolute path on the backend's host without '..'")
    return str(PurePosixPath(path))


AbsolutePath = Annotated[
    str,
    Field(min_length=2, max_length=1024, description="An absolute path on the backend's host."),
    AfterValidator(_absolute),
]


def _bounded(low: str, high: str) -> AfterValidator:
    def check(value: Duration) -> Duration:
        if not Duration.parse(low).seconds <= value.seconds <= Duration.parse(high).seconds:
            raise ValueError(f"{value} is out of bounds; it may be from {low} to {high}")
        return value

    return AfterValidator(check)


def _at_least(low: str) -> AfterValidator:
    def check(value: Size) -> Size:
        if value.bytes < Size.parse(low).bytes:
            raise ValueError(f"{value} is too small; it must be at least {low}")
        return value

    return AfterValidator(check)


def _whole_sectors(value: Size) -> Size:
    if value.bytes % SECTOR_BYTES:
        raise ValueError(f"{value} is not a multiple of {SECTOR_BYTES} bytes; use a whole number of KiB")
    return value


# ------------------------------------------------------------------ desired state


class VolumeSpec(Model):
    """A block volume: a raw file served as an NBD export, every write journalled before it reaches the file."""

    kind: Literal["volume"] = "volume"
    path: AbsolutePath = Field(description="The raw file. Created, sparse, if it is missing and `size` is given.")
    size: Annotated[Size, _at_least("512B"), AfterValidator(_whole_sectors)] | None = Field(
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


class RetentionSpec(Model):
    """How checkpoints thin out at a target once they are older than the journal's history.

    Each count keeps the newest checkpoint of that many calendar periods (UTC). Tagged checkpoints
    keep for `tagged`. All of them together are what the target still holds.
    """

    hourly: int = Field(default=0, ge=0, le=10_000, description="Hours of which one checkpoint is kept.")
    daily: int = Field(default=0, ge=0, le=10_000, description="Days of which one checkpoint is kept.")
    weekly: int = Field(default=0, ge=0, le=1_000, description="ISO weeks of which one checkpoint is kept.")
    monthly: int = Field(default=0, ge=0, le=1_000, description="Months of which one checkpoint is kept.")
    yearly: int = Field(default=0, ge=0, le=100, description="Years of which one checkpoint is kept.")
    tagged: Annotated[Duration, _bounded("0s", "36500d")] = Field(
        default=Duration("30d"), description="How long a tagged checkpoint is kept."
    )


class AsyncLegSpec(Model):
    """A leg that ships the journal to a target behind the application's back, within an RPO."""

    mode: Literal["async"] = "async"
    target: Name = Field(description="The target's name on this site.")
    rpo: Annotated[Duration, _bounded("1s", "7d")] = Field(
        default=Duration("15s"),
        description="The most that may be lost: the age of the newest change not yet at the target.",
    )
    retention: RetentionSpec = Field(default=RetentionSpec(), description="What is kept beyond the journal's history.")
    compression_level: int = Field(default=3, ge=1, le=19, description="zstd level of what this leg stores.")


LegSpec = AsyncLegSpec


class JournalSpec(Model):
    """How far back every second can be recovered, and how much space that may take at each target."""

    history: Annotated[Duration, _bounded("1m", "365d")] = Field(
        default=Duration("1d"), description="How far back every checkpoint is kept."
    )
    size_max: Annotated[Size, _at_least("64MiB")] = Field(
        default=Size("16GiB"), description="The most that history may take at one target; older history goes first."
    )
    spool_max: Annotated[Size, _at_least("128MiB")] = Field(
        default=Size("1GiB"), description="The most the spool on the backend's host may take while targets lag."
    )


class GroupSpec(Model):
    """What a protection group shall be. Who is active is not in it: that is `epoch` and `active_site`, which failover moves."""

    members: dict[Name, MemberSpec] = Field(
        min_length=1, max_length=256, description="What is recovered together, by name."
    )
    replication: dict[Name, LegSpec] = Field(default={}, max_length=16, description="The legs, by name.")
    journal: JournalSpec = Field(default=JournalSpec())
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


class FilesystemTargetSpec(Model):
    """A directory on a file system of the backend's host: another disk or a network mount."""

    kind: Literal["filesystem"] = "filesystem"
    path: AbsolutePath = Field(description="The directory; created if its parent exists.")


TargetSpec = FilesystemTargetSpec


class Owner(Model):
    """Whose declaration a resource is: a label, not an access right."""

    organization: str = Field(default="organization", max_length=200)
    project: str = Field(max_length=200)
    stack: str = Field(max_length=200)

    def __str__(self) -> str:
        return f"{self.organization}/{self.project}/{self.stack}"


# ------------------------------------------------------------------ requests


class PutTarget(Model):
    """Create or change a target."""

    request_id: RequestId
    owner: Owner | None = Field(default=None, description="None from the CLI.")
    adopt: bool = Field(default=False, description="Take it over from another owner.")
    spec: TargetSpec


class PutGroup(Model):
    """Create, change or resume a group."""

    request_id: RequestId
    owner: Owner | None = Field(default=None, description="None from the CLI.")
    adopt: bool = Field(default=False, description="Take it over from another owner.")
    spec: GroupSpec


class CheckpointRequest(Model):
    """Mark the group now."""

    request_id: RequestId
    tag: Tag | None = Field(
        default=None,
        description="A name to come back to: letters, digits, dots, dashes and underscores, at most 63, beginning with a letter or digit.",
    )
    app: bool = Field(
        default=False, description="Quiesce by the members' blueprints first, so that it is application-consistent."
    )


class DrillRequest(Model):
    """Rehearse recovery from a target without touching the application."""

    request_id: RequestId
    at: Selector = "latest"
    target: Name | None = Field(
        default=None, description="The leg's target to recover from; None: the first that has the checkpoint."
    )
    rto: Annotated[Duration, _bounded("1s", "30d")] | None = Field(
        default=None, description="The drill fails if it takes longer."
    )


class RestoreRequest(Model):
    """Write one member, as it was at a checkpoint, to a new path."""

    request_id: RequestId
    member: Name
    to: AbsolutePath = Field(description="A path that does not exist yet, or an empty directory.")
    at: Selector = "latest"
    target: Name | None = None


class VerifyRequest(Model):
    """Read back what the targets hold and check every byte of it."""

    request_id: RequestId
    target: Name | None = Field(default=None, description="None: every leg's.")


class MountRequest(Model):
    """Open a checkpoint for use at once: volumes as writable NBD exports, directories as a folder."""

    request_id: RequestId
    at: Selector = "latest"
    member: Name | None = Field(default=None, description="None: every member.")
    target: Name | None = None


# ------------------------------------------------------------------ observed state


class Role(StrEnum):
    """Whether this site writes or receives."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class DataState(StrEnum):
    """How changes reach a leg's target right now."""

    INITIAL_SYNC = "InitialSync"
    CONTINUOUS = "Continuous"
    BACKLOG = "Backlog"
    BITMAP_TRACKING = "BitmapTracking"
    DELTA_RESYNC = "DeltaResync"
    FULL_RESYNC = "FullResync"
    PAUSED = "Paused"
    STALLED = "Stalled"
    DISCONNECTED = "Disconnected"


class SlaState(StrEnum):
    """Whether what was asked for is kept."""

    MEETING = "Meeting"
    RPO_NOT_MET = "RpoNotMet"
    HISTORY_NOT_MET = "HistoryNotMet"


class Condition(Model):
    """Something a person should know: what, since when, and what to do."""

    type: str = Field(description="CamelCase, stable: SpoolFull, KeyNotEscrowed, MemberMissing, TargetUnavailable, ...")
    subject: str = Field(description="What it is about: `group`, `member/NAME` or `leg/NAME`.")
    message: str
    since: datetime
    severity: Literal["info", "warning", "error"] = "warning"


class Cut(Model):
    """How exact a member is in a checkpoint; never rounded up."""

    kind: Literal["exact", "barrier", "observed"]
    as_of: datetime | None = Field(default=None, description="`observed`: the newest moment all of which is in it.")
    skew_seconds: float | None = Field(default=None, description="`observed`: how long the scan behind it took.")


class CheckpointAvailability(Model):
    """A checkpoint at one target."""

    available: bool
    verified_at: datetime | None = None


class Checkpoint(Model):
    """A mark at which the group is recoverable."""

    id: str = Field(description="`ck-EPOCH-SEQUENCE`.")
    time: datetime
    lsn: dict[str, int] = Field(description="Shard uid -> position in that shard.")
    membership_version: int
    consistency: Literal["crash", "app"]
    tags: list[str] = []
    cuts: dict[str, Cut] = Field(default={}, description="Member name -> how exact it is.")
    targets: dict[str, CheckpointAvailability] = Field(default={}, description="Target name -> what it has of it.")
    suspect: bool = False
    held: bool = False


class CheckpointRange(Model):
    """A run of checkpoints, one about every second, that a target holds."""

    target: str
    first: str
    last: str
    first_time: datetime
    last_time: datetime
    count: int
    tags: list[str] = []
    app_consistent: int = 0


class CheckpointPage(Model):
    """Checkpoints, newest first."""

    items: list[Checkpoint]
    next_cursor: str | None = None


class MemberStatus(Model):
    """A member as the worker sees it."""

    kind: str
    state: Literal["Starting", "Attached", "Missing", "Detached", "Failed"]
    seeded: bool = Field(description="It is part of the group's checkpoints on every leg.")
    size_bytes: int = 0
    unapplied_bytes: int = Field(default=0, description="Journalled, not yet in the volume's own file.")
    as_of: datetime | None = Field(default=None, description="Directories: the newest scan's start.")
    message: str = ""


class LegStatus(Model):
    """A leg as its shipper sees it."""

    target: str
    data_state: DataState
    rpo_seconds: float
    lag_seconds: float = Field(
        description="Age of the oldest change not yet durable at the target; 0 when there is none."
    )
    lag_bytes: int
    seeded_fraction: float = Field(ge=0, le=1)
    shipped_lsn: int
    latest_checkpoint: str | None = None
    latest_checkpoint_time: datetime | None = None
    oldest_checkpoint_time: datetime | None = None
    stored_bytes: int = 0
    last_verified_checkpoint: str | None = None
    message: str = ""


class GroupStatus(Model):
    """Everything about a group that changes by itself."""

    role: Role = Role.PRIMARY
    data_state: DataState
    sla_state: SlaState
    protected: bool = Field(description="Seeded, a checkpoint durable on every leg that is not paused, every RPO met.")
    seeded: bool
    checkpoint_sequence: int = Field(description="Sequence of the newest checkpoint, shipped or not.")
    head_lsn: int
    durable_lsn: int
    spool_bytes: int
    members: dict[str, MemberStatus]
    legs: dict[str, LegStatus]
    conditions: list[Condition] = []
    observed_generation: int = Field(description="The generation of the spec that this status reflects.")


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


class Target(Model):
    """A target as the catalogue has it."""

    name: Name
    uid: Uid
    site_uid: Uid
    owner: Owner | None
    spec: TargetSpec
    generation: int
    used_by: list[str] = Field(default=[], description="Groups with a leg to it.")


class Phase(StrEnum):
    """Where an operation is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class OperationStep(Model):
    """One step of an operation's plan."""

    name: str
    state: Literal["pending", "running", "done", "failed"]
    message: str = ""
    started: datetime | None = None
    finished: datetime | None = None


class Operation(Model):
    """A verb at work on a group: journalled, its own object, never a sticky field."""

    id: str
    kind: Literal["Drill", "Restore", "Verify", "Checkpoint"]
    group: Name
    phase: Phase
    steps: list[OperationStep] = []
    request: dict[str, Any] = {}
    result: dict[str, Any] = Field(
        default={}, description="The report: DrillReport, RestoreReport, VerifyReport or Checkpoint."
    )
    error: str | None = None
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


class VerifyFinding(Model):
    """Something a target holds that is not what was written."""

    target: str
    object: str
    problem: str
    checkpoints_affected: str = ""


class VerifyReport(Model):
    """What a verification read and found."""

    objects: int
    bytes_read: int
    checkpoints: int
    findings: list[VerifyFinding] = []
    verified_through: dict[str, str] = Field(default={}, description="Target -> newest checkpoint proven readable.")


class Mount(Model):
    """A checkpoint opened for use."""

    id: str
    group: str
    checkpoint: str
    checkpoint_time: datetime
    members: dict[str, str] = Field(description="Member -> NBD URI (volumes) or path (directories).")
    created: datetime


class SiteInfo(Model):
    """Who answers at an endpoint."""

    site_uid: Uid
    name: str
    version: str
    api_version: int = API_VERSION
    api_version_oldest: int = API_VERSION_OLDEST


class TokenInfo(Model):
    """A token without its secret."""

    id: str
    name: str
    scope: Literal["admin", "operate", "read"]
    created: datetime
    last_used: datetime | None = None


class NewToken(TokenInfo):
    """A token at the only moment its secret is known."""

    secret: str


class TargetCheck(Model):
    """What probing a target found."""

    target: str
    ok: bool
    checks: dict[str, str] = Field(description="Probe -> `ok`, or what is wrong and what to do.")
