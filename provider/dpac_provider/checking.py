"""Checks arguments against their model, and brings them to one spelling, as far as a preview knows them.

One spelling, defaults included, in inputs, in state and from the backend: so a second `pulumi up` is empty, and drift is
what really differs.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dpac_api.models import LabelKey, LabelValue, Name, Selector, Tag
from dpac_provider.inputs import OwnerLabel, SiteName
from dpac_provider.values import UNKNOWN, Properties, has_unknown

_TAGS = ("kind", "mode")
"""Properties that say which of several shapes an object has; pydantic names their value in an error's location."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one argument."""

    property_path: str
    reason: str


def check(model: type[BaseModel], given: Properties) -> tuple[Properties, list[Problem]]:
    """The arguments in normal form, and what is wrong with them; what is not known yet is no problem."""
    try:
        return normal(model.model_validate(given)), []
    except ValidationError as error:
        details = [detail for detail in error.errors(include_url=False) if not _is_for_lack_of_knowledge(detail)]
    if details:
        return given, [_problem(detail, given, model) for detail in details]
    return _partly_normal(model, FieldInfo(annotation=model), given), []


def normal(value: BaseModel) -> Properties:
    """A model as properties: defaults written out, nothing that is None."""
    return value.model_dump(mode="json", exclude_none=True)


def _is_for_lack_of_knowledge(detail: ErrorDetails) -> bool:
    return detail["type"] not in ("missing", "extra_forbidden") and has_unknown(detail["input"])


# ------------------------------------------------------------------ problems, said well


def _problem(detail: ErrorDetails, given: Properties, model: type[BaseModel]) -> Problem:
    path = _path(detail["loc"], given)
    reason = detail["msg"].removeprefix("Value error, ")
    match detail["type"]:
        case "missing":
            reason = "is required"
        case "extra_forbidden":
            reason = "is not an argument here; remove it or correct its name"
        case "string_pattern_mismatch":
            rule = _rules().get(str(detail.get("ctx", {}).get("pattern")))
            reason = f"{detail['input']!r} is not allowed: {rule}" if rule else reason
        case "too_short" if isinstance(detail["input"], Mapping):
            reason = "must not be empty"
        case "union_tag_invalid" | "union_tag_not_found":
            reason = "must be one of the kinds dpac knows: " + str(
                detail.get("ctx", {}).get("expected_tags", "volume, directory")
            )
        case _:
            pass
    return Problem(path or next(iter(model.model_fields)), reason)


def _path(location: tuple[int | str, ...], given: Any) -> str:
    """`members.disk.size` for pydantic's `("members", "disk", "volume", "size")`."""
    parts: list[str] = []
    value = given
    for part in location:
        if part == "[key]":
            continue
        if isinstance(value, Mapping):
            if part not in value and (part == "async" or any(value.get(tag) == part for tag in _TAGS)):
                continue
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        parts.append(str(part))
    return ".".join(parts)


@cache
def _rules() -> dict[str, str]:
    """What each of the patterns asks for, in words."""
    schemas = [
        TypeAdapter(kind).json_schema() for kind in (Name, Tag, LabelKey, LabelValue, Selector, SiteName, OwnerLabel)
    ]
    return {schema["pattern"]: schema["description"] for schema in schemas}


# ------------------------------------------------------------------ normal form around what is unknown


def _partly_normal(annotation: Any, field: FieldInfo, value: Any) -> Any:
    if value is UNKNOWN:
        return UNKNOWN
    if not has_unknown(value):
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[annotation, field])
        return adapter.dump_python(adapter.validate_python(value), mode="json", exclude_none=True)
    shape = _shape(annotation, value)
    if isinstance(value, Mapping):
        if isinstance(shape, type) and issubclass(shape, BaseModel):
            return _partly_normal_model(shape, value)
        item = typing.get_args(shape)[1] if typing.get_origin(shape) is dict else Any
        return {key: _partly_normal(item, FieldInfo(annotation=item), held) for key, held in value.items()}
    item = typing.get_args(shape)[0] if typing.get_origin(shape) is list else Any
    return [_partly_normal(item, FieldInfo(annotation=item), held) for held in value]


def _partly_normal_model(model: type[BaseModel], value: Mapping[str, Any]) -> Properties:
    out: Properties = {}
    for name, field in model.model_fields.items():
        if name in value:
            out[name] = _partly_normal(field.annotation, field, value[name])
        elif (default := field.get_default(call_default_factory=True)) is not None:
            out[name] = normal(default) if isinstance(default, BaseModel) else default
    return out


def _shape(annotation: Any, value: Any) -> Any:
    """The annotation without `Annotated` and, of a union, the branch that the value chose."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    branches = [_shape(branch, value) for branch in typing.get_args(annotation) if branch is not types.NoneType]
    return next((branch for branch in branches if _chosen(branch, value)), branches[0])


def _chosen(branch: Any, value: Any) -> bool:
    if not (isinstance(branch, type) and issubclass(branch, BaseModel) and isinstance(value, Mapping)):
        return False
    return all(tag not in branch.model_fields or branch.model_fields[tag].default == value.get(tag) for tag in _TAGS)
