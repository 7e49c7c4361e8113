"""Targets: where copies go."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from dpac_api.errors import NotFound
from dpac_api.models import Target
from dpac_provider.checking import normal
from dpac_provider.handler import Handler, Made, Seen
from dpac_provider.inputs import TARGET_INPUTS, FilesystemTargetInputs, TargetInputs, owner_of
from dpac_provider.ownership import WRITTEN_BY, may_rewrite, require_ours
from dpac_provider.values import Properties


class TargetHandler(Handler[TargetInputs]):
    """A target of a site; id `target/NAME`."""

    inputs_model = TargetInputs
    output_names = ("uid", "site_uid", WRITTEN_BY)
    replace_on: ClassVar[tuple[str, ...]] = ("name",)
    ignored: ClassVar[tuple[str, ...]] = ("adopt",)

    @override
    @classmethod
    def model_of(cls, properties: Properties) -> type[TargetInputs]:
        # A kind that is none is refused by any of the models: it is the filesystem's, the oldest.
        return TARGET_INPUTS.get(str(properties.get("kind")), FilesystemTargetInputs)

    @override
    @classmethod
    def input_names(cls) -> list[str]:
        return list(dict.fromkeys(name for model in TARGET_INPUTS.values() for name in model.model_fields))

    @override
    def create(self, inputs: Properties) -> Made:
        wanted = self._parse(inputs)
        client = self._connect(wanted.site, None)
        made = client.put_target(wanted.name, wanted.spec(), owner=owner_of(wanted.owner), adopt=wanted.adopt)
        return Made(f"target/{made.name}", _outputs(made, inputs, wanted.owner))

    @override
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        try:
            live = self._client_of(outputs).target(resource_id.removeprefix("target/"))
        except NotFound:
            return None
        return Seen(_outputs(live, outputs, outputs.get(WRITTEN_BY)), _inputs(live, outputs))

    @override
    def update(self, resource_id: str, old: Properties, new: Properties) -> Properties:
        wanted = self._parse(new)
        client = self._connect(wanted.site, old.get("site_uid"))
        try:
            ours = may_rewrite(client.target(wanted.name), old, wanted.owner)
        except NotFound:
            ours = False  # nothing to take over: the put makes it again
        put = client.put_target(wanted.name, wanted.spec(), owner=owner_of(wanted.owner), adopt=ours or wanted.adopt)
        return _outputs(put, new, wanted.owner)

    @override
    def delete(self, resource_id: str, outputs: Properties) -> None:
        client, name = self._client_of(outputs), resource_id.removeprefix("target/")
        try:
            live = client.target(name)
            require_ours(live, outputs, "Target")
            if live.spec.kind != outputs.get("kind", live.spec.kind):
                return  # the same update has declared another kind of target by this name already
            client.delete_target(name)
        except NotFound:
            return


def _inputs(live: Target, declared: Properties) -> Properties:
    """The inputs that would make the target as it is; what the site cannot know comes from the declaration."""
    identity: Properties = {key: declared[key] for key in ("site", "adopt") if key in declared}
    owner = {} if live.owner is None else {"owner": str(live.owner)}
    return {**normal(live.spec), **identity, **owner, "name": live.name}


def _outputs(live: Target, declared: Properties, written_by: str | None) -> Properties:
    mine = {} if written_by is None else {WRITTEN_BY: written_by}
    return {**_inputs(live, declared), "uid": live.uid, "site_uid": live.site_uid, **mine}
