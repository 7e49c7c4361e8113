"""Protection groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from dpac.arguments import Async, Directory, Encryption, Journal, Site, Sync, Volume, each, given, optional
from dpac.component import Component, site_name, without_none
from dpac.target import TargetComponent
from dpac_provider import resources


@dataclass(frozen=True)
class Member:
    """What an application wires to."""

    kind: pulumi.Output[str]
    """`volume` or `directory`."""
    path: pulumi.Output[str]
    """Where it lies on the backend's host."""
    nbd_uri: pulumi.Output[str]
    """Volumes: connect here instead of opening the file. Empty for a directory."""


class ProtectionGroup(Component):
    """Members that are recovered together, to any second of the journal's history.

    Made when the backend has accepted it; `Ready` waits until it is seeded or protected. Changes apply while capture
    goes on. Deleting it keeps its recovery points unless `on_destroy` says otherwise, and the same declaration resumes it.
    """

    name: pulumi.Output[str]
    """The group's name on its site."""
    uid: pulumi.Output[str]
    """The group's id, which it keeps for life, also when it is resumed."""
    epoch: pulumi.Output[int]
    """The fencing number, which rises with every failover."""
    role: pulumi.Output[str]
    """`primary` or `secondary`: whether this site writes or receives."""
    home_site: pulumi.Output[str]
    """The site it was created at."""
    active_site: pulumi.Output[str]
    """The site that is active for it; failover moves it."""
    members: dict[str, Member]
    """The members by name, for applications to wire to: `group.members["disk"].nbd_uri`."""

    def __init__(
        self,
        resource_name: str,
        *,
        members: Mapping[str, Volume | Directory],
        replication: Mapping[str, Async | Sync] | None = None,
        journal: Journal | None = None,
        encryption: Encryption | None = None,
        labels: Mapping[str, pulumi.Input[str]] | None = None,
        on_destroy: pulumi.Input[str] | None = None,
        name: pulumi.Input[str] | None = None,
        site: Site | None = None,
        adopt: pulumi.Input[bool] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare a group.

        :param resource_name: The resource's name in the program.
        :param members: What is recovered together, by name.
        :param replication: The legs (`Async` or `Sync`), by name: where the journal goes, and what waits for it.
        :param journal: How far back every second can be recovered, and the space that may take.
        :param encryption: Who beside the site can open the recovery points: escrow keys.
        :param labels: What the group is, for people and policies: `{"environment": "production"}`.
        :param on_destroy: What a delete does with recovery points: `retain` (the default) keeps them all, `expire` lets
            them age out, `purge` deletes them at once.
        :param name: The group's name on the site; the resource's name by default. Another name is another group.
        :param site: Which backend, where there are several.
        :param adopt: Take the group over if another stack declared it, or the CLI made it.
        :param opts: Pulumi's options.
        """
        what = f"ProtectionGroup {resource_name!r}"
        parts = each(f"{what}: members", members, Volume, Directory)
        legs = each(f"{what}: replication", replication or {}, Async, Sync)
        history = optional(f"{what}: journal", journal, Journal)
        keys = optional(f"{what}: encryption", encryption, Encryption)
        super().__init__(resource_name, opts)
        self.declared_name = resource_name if name is None else name
        self.declared_site = site_name(what, site)
        inputs = without_none(
            name=self.declared_name,
            members={key: member.inputs() for key, member in parts.items()},
            replication={key: leg.inputs(f"{what}: replication.{key}") for key, leg in legs.items()},
            journal=None if history is None else given(history),
            encryption=None if keys is None else given(keys),
            labels=None if labels is None else dict(labels),
            on_destroy=on_destroy,
            site=self.declared_site,
            adopt=adopt,
        )
        targets = [leg.to for leg in legs.values() if isinstance(leg.to, TargetComponent)]
        self._take(
            resources.ProtectionGroup(f"{resource_name}-group", inputs, self._child_options(opts, targets)), parts
        )

    def _take(self, backend: resources.ProtectionGroup, parts: Mapping[str, Any]) -> None:
        self.name, self.uid, self.epoch = backend.name, backend.uid, backend.epoch
        self.role, self.home_site, self.active_site = backend.role, backend.home_site, backend.active_site
        self.members = {key: _member(backend, key) for key in parts}
        self.register_outputs(
            {
                "name": self.name,
                "uid": self.uid,
                "epoch": self.epoch,
                "role": self.role,
                "home_site": self.home_site,
                "active_site": self.active_site,
                "members": backend.member_outputs,
            }
        )


def _member(backend: resources.ProtectionGroup, key: str) -> Member:
    def output(field: str) -> pulumi.Output[str]:
        return backend.member_outputs.apply(lambda members: members.get(key, {}).get(field, ""))

    return Member(kind=output("kind"), path=output("path"), nbd_uri=output("nbd_uri"))
