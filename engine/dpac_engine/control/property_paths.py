"""What pydantic found, told in the words of the one error tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpac_api.errors import Invalid


def invalid(problems: Sequence[Any], body: Any) -> Invalid:
    """What pydantic found, as one error that names the first property and tells of the others."""
    told = [(property_path(problem["loc"], body), _message(problem)) for problem in problems]
    path, first = told[0]
    others = "".join(f"; {where}: {what}" if where else f"; {what}" for where, what in told[1:6])
    more = f"; and {len(told) - 6} more" if len(told) > 6 else ""
    return Invalid(f"{path}: {first}{others}{more}" if path else f"{first}{others}{more}", property_path=path or None)


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "this backend knows no such property; check its spelling, or upgrade the backend if the program's dpac is newer"
    if problem["type"] == "missing":
        return "it is missing; give it"
    return str(problem["msg"]).removeprefix("Value error, ")


def property_path(location: Sequence[str | int], body: Any) -> str:
    """`spec.members.disk.size` for pydantic's `("body", "spec", "members", "disk", "volume", "size")`.

    Pydantic puts a union's tag between: it is the `kind` or `mode` of the object it stands behind, and no key of it.
    """
    parts: list[str] = []
    here = body
    for part in location[1:] if location and location[0] in ("body", "query", "path", "header") else location:
        if isinstance(here, dict) and part not in here and part in (here.get("kind"), here.get("mode", "async")):
            continue
        if part == "[key]":
            continue
        parts.append(str(part))
        here = here.get(part) if isinstance(here, dict) else None
    return ".".join(parts)
