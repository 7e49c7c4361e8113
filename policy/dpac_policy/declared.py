"""Declared resources in one neutral form, whoever told of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

GROUP, TARGET, DRILL = "ProtectionGroup", "Target", "Drill"
_TYPE = re.compile(r"(?:pulumi-python:dynamic/dpac|dpac:backend):(ProtectionGroup|Target|Drill)")
_SUFFIX = {GROUP: "-group", TARGET: "-target", DRILL: "-drill"}
"""What a component adds to its own name to name its child."""


class Unknown:
    """The kind of `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()
"""A value that is not known before an update, or that was masked because it is secret."""


@dataclass(frozen=True)
class Declared:
    """One resource: what it is, how people call it, and its properties, which are never printed: some may be secret."""

    kind: str
    name: str
    urn: str
    properties: Mapping[str, Any]

    def at(self, *path: str) -> Any:
        """The property at a path: None if it is not there, UNKNOWN if it, or what it lies in, is not known."""
        return at(self.properties, *path)


def at(value: Any, *path: str) -> Any:
    """See `Declared.at`."""
    for part in path:
        if value is UNKNOWN:
            return UNKNOWN
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def kind_of(resource_type: str) -> str | None:
    """The kind that a Pulumi type means, served dynamically or natively; None if no rule is about it."""
    found = _TYPE.fullmatch(resource_type)
    return found[1] if found else None


def name_of(urn: str, kind: str) -> str:
    """How the program calls it: the component's name, where a component made it."""
    *_, types, name = urn.split("::", 3)
    return name.removesuffix(_SUFFIX[kind]) if "dpac:index:" in types else name


@dataclass(frozen=True)
class Stack:
    """Everything that was declared together, and when it is judged."""

    resources: Sequence[Declared]
    now: datetime

    def of_kind(self, kind: str) -> list[Declared]:
        """The resources of a kind."""
        return [resource for resource in self.resources if resource.kind == kind]
