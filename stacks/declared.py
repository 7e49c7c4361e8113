"""From a stack's configuration to targets and groups.

The words are those of the components (`dpac.Volume`, `dpac.Async` ...): what a component learns, a stack can say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

import pulumi

import dpac

_Arguments = TypeVar("_Arguments")
_MEMBERS: dict[str, Any] = {"volume": dpac.Volume, "directory": dpac.Directory}
_LEGS: dict[str, Any] = {"async": dpac.Async, "sync": dpac.Sync}
_ROOT = Path(__file__).resolve().parent.parent
"""The project, in which relative paths begin: so a stack's file can be the same in every checkout."""
Target = dpac.FilesystemTarget | dpac.S3Target
_TARGETS: dict[str, type[Target]] = {"path": dpac.FilesystemTarget, "bucket": dpac.S3Target}
"""The word that says where copies go -> the kind of target."""
_PLAIN = ("labels", "on_destroy", "adopt")
"""Arguments of a group that are said as they are."""
_GROUP_FIELDS = ("members", "replication", "journal", "encryption", *_PLAIN, "site", "ready", "drill")


class Mistake(pulumi.RunError):
    """The configuration is wrong; the message names the place."""


def declare(targets: Any, groups: Any, *, site: str | None = None) -> None:
    """Declare everything in the stack's `dpac:targets` and `dpac:groups`, at `site` where they name none."""
    where = {"site": site} if site else {}
    made = {name: _target(name, {**where, **spec}) for name, spec in _entries("dpac:targets", targets)}
    for name, spec in _entries("dpac:groups", groups):
        _group(name, {**where, **spec}, made)


def _target(name: str, spec: Mapping[str, Any]) -> Target:
    where = f"dpac:targets.{name}"
    kind = next((kind for place, kind in _TARGETS.items() if place in spec), None)
    if kind is None:
        raise Mistake(f"{where} has neither path nor bucket; say where the copies go, such as /mnt/backup/copies.")
    words = tuple(word for word in signature(kind).parameters if word not in ("resource_name", "name", "opts"))
    _known(where, spec, words)
    given = {key: _path(value) if key == "path" else value for key, value in spec.items()}
    return kind(name, **{**given, "site": _site(spec)})


def _group(name: str, spec: Mapping[str, Any], targets: Mapping[str, Target]) -> None:
    where = f"dpac:groups.{name}"
    _known(where, spec, _GROUP_FIELDS)
    group = dpac.ProtectionGroup(
        name,
        members={key: _member(f"{where}.members.{key}", value) for key, value in _part(where, spec, "members")},
        replication={
            key: _leg(f"{where}.replication.{key}", value, targets) for key, value in _part(where, spec, "replication")
        },
        journal=_arguments(f"{where}.journal", dpac.Journal, spec["journal"]) if "journal" in spec else None,
        encryption=_arguments(f"{where}.encryption", dpac.Encryption, spec["encryption"])
        if "encryption" in spec
        else None,
        site=_site(spec),
        **{key: spec.get(key) for key in _PLAIN},
    )
    ready = [_ready(f"{where}.ready", name, group, spec["ready"])] if "ready" in spec else []
    if "drill" in spec:
        _drill(f"{where}.drill", name, group, spec["drill"], ready)
    pulumi.export(name, {key: member.nbd_uri for key, member in group.members.items()})


def _drill(where: str, name: str, group: dpac.ProtectionGroup, spec: Any, after: list[dpac.Ready]) -> None:
    _known(where, spec, ("at", "target", "rto", "timeout", "triggers"))
    dpac.Drill(f"{name}-drill", group=group, **spec, opts=pulumi.ResourceOptions(depends_on=after))


def _ready(where: str, name: str, group: dpac.ProtectionGroup, spec: Any) -> dpac.Ready:
    _known(where, spec, ("until", "timeout"))
    return dpac.Ready(name, group=group, until=spec.get("until"), timeout=spec.get("timeout"))


def _member(where: str, spec: Mapping[str, Any]) -> dpac.Volume | dpac.Directory:
    kind = _MEMBERS.get(str(spec.get("kind")))
    if kind is None:
        raise Mistake(f"{where}.kind must be one of {', '.join(_MEMBERS)}, not {spec.get('kind')!r}.")
    given = {key: _path(value) if key == "path" else value for key, value in spec.items() if key != "kind"}
    return cast(dpac.Volume | dpac.Directory, _arguments(where, kind, given))


def _leg(where: str, spec: Mapping[str, Any], targets: Mapping[str, Target]) -> dpac.Async | dpac.Sync:
    given = dict(spec)
    mode = given.pop("mode", "async")
    if mode not in _LEGS:
        raise Mistake(f"{where}.mode must be one of {', '.join(_LEGS)}, not {mode!r}.")
    # A target of this stack is made first; any other name is one the site knows already.
    given["to"] = targets.get(str(given.get("to")), given.get("to"))
    if given["to"] is None:
        raise Mistake(f"{where}.to is missing; name a target.")
    if "retention" in given:
        given["retention"] = _arguments(f"{where}.retention", dpac.Retention, given["retention"])
    return cast(dpac.Async | dpac.Sync, _arguments(where, _LEGS[mode], given))


def _arguments(where: str, kind: type[_Arguments], spec: Any) -> _Arguments:
    names = tuple(field.name for field in fields(cast(Any, kind)))
    _known(where, spec, names)
    try:
        return kind(**spec)
    except TypeError as error:  # a required argument is not there
        raise Mistake(f"{where} is not complete; it may have {', '.join(names)}: {error}.") from error


def _path(path: Any) -> str:
    return str(_ROOT / str(path))


def _site(spec: Mapping[str, Any]) -> dpac.Site | None:
    return dpac.Site(spec["site"]) if "site" in spec else None


def _part(where: str, spec: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    return _entries(f"{where}.{key}", spec.get(key, {}))


def _entries(where: str, named: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(named, Mapping):
        raise Mistake(f"{where} must be a dictionary by name, not {type(named).__name__}.")
    for name, spec in named.items():
        if not isinstance(spec, Mapping):
            raise Mistake(f"{where}.{name} must be a dictionary, not {type(spec).__name__}.")
    return list(named.items())


def _known(where: str, spec: Any, names: tuple[str, ...]) -> None:
    if not isinstance(spec, Mapping):
        raise Mistake(f"{where} must be a dictionary, not {type(spec).__name__}.")
    if unknown := sorted(set(spec) - set(names)):
        raise Mistake(f"{where}.{unknown[0]} is not known; it may have {', '.join(names)}.")
