"""Property values as handlers see them: JSON, plus `UNKNOWN` for what a preview cannot know yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


class Unknown:
    """The kind of `UNKNOWN`; there is one of it."""

    _only: Unknown | None = None

    def __new__(cls) -> Unknown:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()
"""A value that some resource will have once it is made."""

Properties = dict[str, Any]
"""A resource's inputs or outputs by name."""


def has_unknown(value: object) -> bool:
    """Whether `UNKNOWN` is anywhere in a value."""
    if isinstance(value, Mapping):
        return any(has_unknown(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(has_unknown(item) for item in value)
    return value is UNKNOWN
