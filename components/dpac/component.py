"""What every component of dpac is: a noun with one child that the provider serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from dpac.arguments import Site, optional


class Component(pulumi.ComponentResource):
    """A component `dpac:index:NAME`, NAME being the class's."""

    def __init__(self, resource_name: str, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(f"dpac:index:{type(self).__name__}", resource_name, None, opts)

    def _child_options(
        self, opts: pulumi.ResourceOptions | None, after: Sequence[pulumi.Resource] = ()
    ) -> pulumi.ResourceOptions:
        """The child's options: what Pulumi does not carry from a component to its children is carried here."""
        mine = opts or pulumi.ResourceOptions()
        carried = pulumi.ResourceOptions(
            depends_on=mine.depends_on,
            retain_on_delete=mine.retain_on_delete,
            ignore_changes=mine.ignore_changes,
        )
        return pulumi.ResourceOptions.merge(carried, pulumi.ResourceOptions(parent=self, depends_on=list(after)))


def without_none(**inputs: Any) -> dict[str, Any]:
    """The inputs that were given."""
    return {name: value for name, value in inputs.items() if value is not None}


def site_name(what: str, site: Site | None, group: Any = None) -> str | None:
    """The name of a site, if one was named, or else of the one that `group` was declared at."""
    named: Site | None = optional(f"{what}: site", site, Site)
    if named is not None:
        return named.name
    return getattr(group, "declared_site", None) if isinstance(group, Component) else None
