"""What a handler is: the six verbs of a resource over plain properties, without Pulumi.

`check` and `diff` use inputs and state only, so a preview works with the backend down. The others ask the site that
the state names, and no other: only that very site may say that a resource is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from dpac_api.client import Client
from dpac_provider import session
from dpac_provider.checking import Problem, check, normal
from dpac_provider.inputs import Located
from dpac_provider.values import Properties

Inputs = TypeVar("Inputs", bound=Located)

Connect = Callable[[str | None, str | None], Client]
"""From a site's name and, where it is known, its uid to a client that has made sure who answers."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an update would do."""

    changed: list[str]
    replaces: list[str]
    delete_before_replace: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A resource after create."""

    id: str
    outputs: Properties


@dataclass(frozen=True, slots=True)
class Seen:
    """A resource as it is now: its outputs, and the inputs that would make it so."""

    outputs: Properties
    inputs: Properties


class Handler(ABC, Generic[Inputs]):
    """One kind of resource."""

    inputs_model: ClassVar[type[Located]]
    """The arguments; their base where there are several kinds (`model_of`)."""
    output_names: ClassVar[tuple[str, ...]]
    """Outputs beside the inputs."""
    replace_on: ClassVar[tuple[str, ...]] = ()
    """Inputs of which a change makes another resource."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Inputs of which a change alone needs no update."""
    delete_before_replace: ClassVar[bool] = False

    def __init__(self, connect: Connect = session.connect) -> None:
        self._connect = connect

    @classmethod
    def model_of(cls, properties: Properties) -> type[Located]:  # noqa: ARG003
        """What these properties are arguments of."""
        return cls.inputs_model

    @classmethod
    def input_names(cls) -> list[str]:
        """Every argument there can be."""
        return list(cls.inputs_model.model_fields)

    # ------------------------------------------------------------------ without the backend

    def check(self, given: Properties) -> tuple[Properties, list[Problem]]:
        """The inputs in normal form, and what is wrong with them."""
        return check(self.model_of(given), given)

    def diff(self, old: Properties, new: Properties) -> Change:
        """What differs between a resource's outputs and new, checked inputs."""
        was = self._declared(old)
        changed = [
            name
            for name in dict.fromkeys((*self.model_of(new).model_fields, *self.model_of(old).model_fields))
            if name not in self.ignored and was.get(name) != new.get(name)
        ]
        replaces = [name for name in changed if name in self.replace_on]
        return Change(changed, replaces, bool(replaces) and self.delete_before_replace)

    def _declared(self, outputs: Properties) -> Properties:
        """The inputs within outputs, with the defaults of today's models for what state of an older dpac lacks."""
        model = self.model_of(outputs)
        held = {name: value for name, value in outputs.items() if name in model.model_fields}
        try:
            return normal(model.model_validate(held))
        except ValidationError:
            return held

    # ------------------------------------------------------------------ with it

    @abstractmethod
    def create(self, inputs: Properties) -> Made:
        """Make it, or take it up again. Raises errors of `dpac_api.errors`."""

    @abstractmethod
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        """How it is now; None if that very site says there is none."""

    @abstractmethod
    def update(self, resource_id: str, old: Properties, new: Properties) -> Properties:
        """Make it so; every output."""

    @abstractmethod
    def delete(self, resource_id: str, outputs: Properties) -> None:
        """Let go of it, as its inputs say."""

    def _client_of(self, outputs: Properties) -> Client:
        """A client of the site that the state names; raises `WrongSite` if another answers."""
        return self._connect(outputs.get("site"), outputs.get("site_uid"))

    def _parse(self, properties: Properties) -> Inputs:
        model = self.model_of(properties)
        known = {name: value for name, value in properties.items() if name in model.model_fields}
        parsed: BaseModel = model.model_validate(known)
        return parsed  # type: ignore[return-value]
