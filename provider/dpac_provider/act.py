"""Resources that are acts: done once in create, a fact of the past from then on."""

from __future__ import annotations

from typing import TypeVar

from typing_extensions import override

from dpac_provider.handler import Handler
from dpac_provider.inputs import OfGroup
from dpac_provider.values import Properties

ActInputs = TypeVar("ActInputs", bound=OfGroup)


class ActHandler(Handler[ActInputs]):
    """An act on a group: another input is another act, and deleting it undoes nothing."""

    @override
    def update(self, resource_id: str, old: Properties, new: Properties) -> Properties:
        """Only the name of its site can change without doing it again, and only to another name of the same site."""
        self._connect(new.get("site"), old.get("site_uid"))
        return {**new, **{name: old[name] for name in self.output_names if name in old}}

    @override
    def delete(self, resource_id: str, outputs: Properties) -> None:
        return
