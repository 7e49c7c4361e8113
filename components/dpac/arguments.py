"""What components take: plain values with names, each of whose fields may be an Output.

They are checked by the provider, once outputs have resolved, so a mistake is reported with its property's path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pulumi

from dpac_api.models import Target

if TYPE_CHECKING:
    from dpac.target import TargetComponent


class Mistake(pulumi.RunError):
    """A mistake in the program, shown as its message."""


@dataclass(frozen=True)
class Site:
    """One of several backends, by its name.

    The endpoint is found when it is needed: `DPAC_ENDPOINT_NAME` in the environment, then the stack's configuration
    (`pulumi config set --path dpac:sites.NAME.endpoint URL`, and `tokenFile`), then the context of that name. A program
    that talks to one backend only needs no `Site`.
    """

    name: str
    """The name, as in `dpac:sites.NAME`."""


@dataclass(frozen=True)
class Volume:
    """A block volume: a raw file that is served over NBD, every write journalled before it reaches the file.

    The application connects to `group.members[NAME].nbd_uri` instead of opening the file.
    """

    path: pulumi.Input[str]
    """The raw file, an absolute path on the backend's host. Created if it is missing and `size` is given."""
    size: pulumi.Input[str] | None = None
    """The size that it has at least, such as `150GiB`: a missing file is created, a smaller one grows. Never shrinks."""

    def inputs(self) -> dict[str, Any]:
        """As the provider takes it."""
        return {"kind": "volume", **given(self)}


@dataclass(frozen=True)
class Directory:
    """A directory tree: every stable version of every file is journalled while applications use it as before."""

    path: pulumi.Input[str]
    """The directory, an absolute path on the backend's host; it must exist."""
    blueprint: pulumi.Input[str] | None = None
    """How the application in it is quiesced and checked. `sqlite`: databases are copied by SQLite's own backup interface."""

    def inputs(self) -> dict[str, Any]:
        """As the provider takes it."""
        return {"kind": "directory", **given(self)}


@dataclass(frozen=True)
class Retention:
    """How checkpoints thin out at a target once they are older than the journal's history.

    Each count keeps the newest checkpoint of that many periods (UTC), 0 keeps none of that kind.
    """

    hourly: pulumi.Input[int] | None = None
    """Hours of which one checkpoint is kept."""
    daily: pulumi.Input[int] | None = None
    """Days of which one checkpoint is kept."""
    weekly: pulumi.Input[int] | None = None
    """ISO weeks of which one checkpoint is kept."""
    monthly: pulumi.Input[int] | None = None
    """Months of which one checkpoint is kept."""
    yearly: pulumi.Input[int] | None = None
    """Years of which one checkpoint is kept."""
    keep_good: pulumi.Input[int] | None = None
    """Application-consistent checkpoints that are kept whatever their age (1); for want of those, the newest of any kind."""
    tagged: pulumi.Input[str] | None = None
    """How long a tagged checkpoint is kept, such as `30d` (the default)."""
    immutable_for: pulumi.Input[str] | None = None
    """For how long nobody can destroy what lies there, such as `14d`; the target must be a bucket with `object_lock`."""


@dataclass(frozen=True)
class Journal:
    """How far back every second can be recovered, and how much space that may take."""

    history: pulumi.Input[str] | None = None
    """How far back every checkpoint is kept, such as `24h` (the default is `1d`)."""
    size_max: pulumi.Input[str] | None = None
    """The most that history may take at one target (`16GiB`); older history goes first."""
    spool_max: pulumi.Input[str] | None = None
    """The most the spool on the backend's host may take while targets lag (`1GiB`)."""
    shards: pulumi.Input[int] | None = None
    """By how many workers the group is served at once (1), fixed at its creation; its checkpoints are `barrier` then."""


@dataclass(frozen=True)
class Encryption:
    """Who beside the site can open the group's recovery points. They are encrypted in any case."""

    escrow: Sequence[pulumi.Input[str]] | None = None
    """Public escrow keys, from `dpac key generate-escrow`: the private half of one opens the copies at every target."""


@dataclass(frozen=True)
class Async:
    """A leg that ships the journal to a target behind the application's back, within an RPO."""

    to: TargetComponent | pulumi.Input[str] | pulumi.Output[Target]
    """The target: one that this program declares, the name of another, or what `get_target` found."""
    rpo: pulumi.Input[str] | None = None
    """The most that may be lost, such as `15s` (the default)."""
    retention: Retention | None = None
    """What is kept beyond the journal's history; nothing if it is not given."""
    compression_level: pulumi.Input[int] | None = None
    """zstd level of what is stored, 1 to 19 (3)."""

    def inputs(self, what: str) -> dict[str, Any]:
        """As the provider takes it, the target by name; `what` is where it stands, for messages."""
        return {"mode": "async", **_leg(self, what)}


@dataclass(frozen=True)
class Sync:
    """A leg whose target has what was acknowledged: the application waits for it, so nothing of that is ever lost.

    The target is a file system: another disk or a network mount. Until its first copy is there, the leg works as `Async` does.
    """

    to: TargetComponent | pulumi.Input[str] | pulumi.Output[Target]
    """The target: one that this program declares, the name of another, or what `get_target` found."""
    acknowledge: pulumi.Input[str] | None = None
    """What waits for the target: `flush` (the default), every FLUSH and FUA; `write`, every change."""
    timeout: pulumi.Input[str] | None = None
    """How long the target may take to answer before it counts as lost (`5s`)."""
    on_loss: pulumi.Input[str] | None = None
    """Once it is lost: `async` (the default) notes the loss and goes on without it; `stop` holds what waits until it is back."""
    rpo: pulumi.Input[str] | None = None
    """The most that may be lost while the leg is not in sync, such as `15s` (the default)."""
    retention: Retention | None = None
    """What is kept beyond the journal's history; nothing if it is not given."""
    compression_level: pulumi.Input[int] | None = None
    """zstd level of what is stored, 1 to 19 (3)."""

    def inputs(self, what: str) -> dict[str, Any]:
        """As the provider takes it, the target by name; `what` is where it stands, for messages."""
        return {"mode": "sync", **_leg(self, what)}


def _leg(leg: Async | Sync, what: str) -> dict[str, Any]:
    held = given(leg)
    del held["to"]
    if optional(f"{what}.retention", leg.retention, Retention) is not None:
        held["retention"] = given(leg.retention)
    return {"target": name_of(leg.to), **held}


def given(arguments: Any) -> dict[str, Any]:
    """The fields of an argument object that were given."""
    return {field.name: value for field in fields(arguments) if (value := getattr(arguments, field.name)) is not None}


def name_of(reference: Any) -> pulumi.Input[str]:
    """The name of a target or group, given as a component, a name, or what a `get_` function found."""
    if isinstance(reference, pulumi.ComponentResource):
        # Known in a preview, unlike an output of the resource: so the preview shows exactly what changes.
        return reference.declared_name  # type: ignore[attr-defined, no-any-return]
    if isinstance(reference, pulumi.Output):
        return reference.apply(lambda found: found if isinstance(found, str) else found.name)
    return reference  # type: ignore[no-any-return]


def each(what: str, named: Any, *kinds: type[Any]) -> dict[str, Any]:
    """A dictionary of arguments by name, each of them of one of some kinds; raises `Mistake`, naming the property."""
    allowed = " or ".join(f"dpac.{kind.__name__}(...)" for kind in kinds)
    if not isinstance(named, Mapping):
        raise Mistake(f"{what} must be a dictionary from names to {allowed}, not {type(named).__name__}.")
    for name, value in named.items():
        if not isinstance(value, kinds):
            raise Mistake(f"{what}.{name} must be {allowed}, not {type(value).__name__}.")
    return dict(named)


def optional(what: str, value: Any, kind: type[Any]) -> Any:
    """An argument that is None or of one kind; raises `Mistake`, naming the property."""
    if value is not None and not isinstance(value, kind):
        raise Mistake(f"{what} must be dpac.{kind.__name__}(...), not {type(value).__name__}.")
    return value
