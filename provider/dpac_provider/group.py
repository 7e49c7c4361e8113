"""Protection groups."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from dpac_api.errors import NotFound
from dpac_api.models import Group
from dpac_provider.checking import normal
from dpac_provider.handler import Handler, Made, Seen
from dpac_provider.inputs import GroupInputs, owner_of
from dpac_provider.ownership import WRITTEN_BY, may_rewrite, require_ours
from dpac_provider.values import Properties


class GroupHandler(Handler[GroupInputs]):
    """A protection group of a site; id `group/NAME`.

    Outputs are what does not change by itself. Create returns when the site has accepted the group; `Ready` waits.
    """

    inputs_model = GroupInputs
    output_names = (
        "uid", "site_uid", "epoch", "role", "home_site", "active_site", "member_outputs", WRITTEN_BY,
    )  # fmt: skip
    replace_on: ClassVar[tuple[str, ...]] = ("name",)
    ignored: ClassVar[tuple[str, ...]] = ("adopt",)
    # Both would capture the same paths, and a path belongs to one member of a site.
    delete_before_replace: ClassVar[bool] = True

    @override
    def create(self, inputs: Properties) -> Made:
        wanted = self._parse(inputs)
        client = self._connect(wanted.site, None)
        made = client.put_group(wanted.name, wanted.spec(), owner=owner_of(wanted.owner), adopt=wanted.adopt)
        return Made(f"group/{made.name}", _outputs(made, inputs, wanted.owner))

    @override
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        try:
            live = self._client_of(outputs).group(resource_id.removeprefix("group/"))
        except NotFound:
            return None
        return Seen(_outputs(live, outputs, outputs.get(WRITTEN_BY)), _inputs(live, outputs))

    @override
    def update(self, resource_id: str, old: Properties, new: Properties) -> Properties:
        wanted = self._parse(new)
        client = self._connect(wanted.site, old.get("site_uid"))
        try:
            ours = may_rewrite(client.group(wanted.name), old, wanted.owner)
        except NotFound:
            ours = False  # nothing to take over: the put makes it again, or resumes it
        put = client.put_group(wanted.name, wanted.spec(), owner=owner_of(wanted.owner), adopt=ours or wanted.adopt)
        return _outputs(put, new, wanted.owner)

    @override
    def delete(self, resource_id: str, outputs: Properties) -> None:
        client, name = self._client_of(outputs), resource_id.removeprefix("group/")
        try:
            require_ours(client.group(name), outputs, "Group")
            # What the program says, not what somebody may have set on the site since.
            client.delete_group(name, on_destroy=self._parse(outputs).on_destroy)
        except NotFound:
            return


def _inputs(live: Group, declared: Properties) -> Properties:
    """The inputs that would make the group as it is; what the site cannot know comes from the declaration."""
    identity: Properties = {key: declared[key] for key in ("site", "adopt") if key in declared}
    owner = {} if live.owner is None else {"owner": str(live.owner)}
    return {**normal(live.spec), **identity, **owner, "name": live.name}


def _outputs(live: Group, declared: Properties, written_by: str | None) -> Properties:
    mine = {} if written_by is None else {WRITTEN_BY: written_by}
    return {
        **_inputs(live, declared),
        "uid": live.uid,
        "site_uid": live.site_uid,
        "epoch": live.epoch,
        "role": live.role.value,
        "home_site": live.home_site,
        "active_site": live.active_site,
        "member_outputs": {name: normal(member) for name, member in live.members.items()},
        **mine,
    }
