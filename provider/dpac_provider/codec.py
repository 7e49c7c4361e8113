"""Property values between Pulumi's SDK and handlers. The only place that knows how the SDK spells them.

In: numbers are floats, unknowns are a sentinel, secrets may be wrapped, `__provider` and other internal keys lie
beside the properties. Out: what the SDK can serialise, and nothing that would come back as something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.runtime import rpc

from dpac_provider.values import UNKNOWN, Properties, Unknown

EXACT_INTEGER_MAX = 2**53
"""Pulumi carries numbers as 64-bit floats: integers beyond this would change."""


def decode(properties: Mapping[str, Any]) -> Properties:
    """What a handler gets: properties without internal keys, absent where they are null."""
    return {
        key: _decoded(value)
        for key, value in properties.items()
        if not key.startswith("__") and _unwrapped(value) is not None
    }


def _unwrapped(value: Any) -> Any:
    return rpc.unwrap_rpc_secret(value)


def _decoded(value: Any) -> Any:
    value = _unwrapped(value)
    if isinstance(value, pulumi.output.Unknown) or (isinstance(value, str) and value == rpc.UNKNOWN):
        return UNKNOWN
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGER_MAX:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _decoded(item) for key, item in value.items() if _unwrapped(item) is not None}
    if isinstance(value, list | tuple):
        return [_decoded(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"{type(value).__name__} is not a property value; write text, numbers, booleans, lists or dictionaries"
    )


def encode(properties: Properties) -> dict[str, Any]:
    """What the SDK is given: JSON with its own sentinel for what is unknown."""
    return {key: _encoded(value) for key, value in properties.items() if value is not None}


def _encoded(value: Any) -> Any:
    if isinstance(value, Unknown):
        return rpc.UNKNOWN
    if isinstance(value, Mapping):
        return {str(key): _encoded(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT_INTEGER_MAX:
        raise ValueError(f"{value} is too large for a Pulumi number; it must be text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a number that Pulumi can carry")
    # Subclasses of str (Duration, Size, enumerations) are plain text in state.
    return str(value) if isinstance(value, str) else value
