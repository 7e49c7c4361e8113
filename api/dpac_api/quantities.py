"""Durations and sizes as people write them: `15s`, `24h`, `150GiB`.

Both are strings on the wire and in Pulumi state, in one canonical spelling
(`60s` becomes `1m`), so that two spellings of one value never make a diff.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from decimal import Decimal
from typing import Any, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_SECOND = 1000
_DURATION_UNITS_MS = {
    "ms": 1,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3600 * _SECOND,
    "d": 86_400 * _SECOND,
    "w": 7 * 86_400 * _SECOND,
}
_SIZE_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "PiB": 2**50,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_CANONICAL_SIZE_UNITS = ("PiB", "TiB", "GiB", "MiB", "KiB", "B")
_CANONICAL_DURATION_UNITS = ("d", "h", "m", "s", "ms")


class _Quantity(str):
    """A string in canonical spelling; subclasses say which units there are."""

    _example: str
    _pattern: str

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self:
        """The value that `text` spells; ValueError says how to write it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls.parse, core_schema.str_schema(max_length=40))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": cls._pattern, "examples": [cls._example]}


class Duration(_Quantity):
    """A length of time: a number and one of `ms s m h d w`, such as `15s` or `24h`. Exact to the millisecond."""

    _example = "15s"
    _pattern = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d|w)$"

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a duration; write a number and a unit (ms, s, m, h, d, w), like '15s'")
        exact_ms = Decimal(match[1]) * _DURATION_UNITS_MS[match[2]]
        if exact_ms != int(exact_ms):
            raise ValueError(f"{text!r} is finer than a millisecond; write whole milliseconds, like '250ms'")
        return cls.of_milliseconds(int(exact_ms))

    @classmethod
    def of_milliseconds(cls, milliseconds: int) -> Self:
        for unit in _CANONICAL_DURATION_UNITS:
            if milliseconds and milliseconds % _DURATION_UNITS_MS[unit] == 0:
                return cls(f"{milliseconds // _DURATION_UNITS_MS[unit]}{unit}")
        return cls("0s")

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        match = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", self)
        assert match is not None, "a Duration is made by parse"
        return int(match[1]) * _DURATION_UNITS_MS[match[2]] / _SECOND


class Size(_Quantity):
    """A number of bytes: a number and a unit (`B KiB MiB GiB TiB`, or decimal `kB MB GB TB`), such as `150GiB`."""

    _example = "150GiB"
    _pattern = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB|PiB|kB|MB|GB|TB)$"

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|TiB|PiB|kB|MB|GB|TB)", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a size; write a number and a unit (MiB, GiB, TiB, ...), like '150GiB'")
        exact = Decimal(match[1]) * _SIZE_UNITS[match[2]]
        if exact != int(exact):
            raise ValueError(f"{text!r} is not a whole number of bytes")
        return cls.of_bytes(int(exact))

    @classmethod
    def of_bytes(cls, count: int) -> Self:
        for unit in _CANONICAL_SIZE_UNITS:
            if count and count % _SIZE_UNITS[unit] == 0:
                return cls(f"{count // _SIZE_UNITS[unit]}{unit}")
        return cls("0B")

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        match = re.fullmatch(r"([0-9]+)(B|KiB|MiB|GiB|TiB|PiB)", self)
        assert match is not None, "a Size is made by parse"
        return int(match[1]) * _SIZE_UNITS[match[2]]
