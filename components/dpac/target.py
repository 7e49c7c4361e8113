"""Targets that a program declares."""

from __future__ import annotations

import pulumi

from dpac.arguments import Site
from dpac.component import Component, site_name, without_none
from dpac_provider import resources


class FilesystemTarget(Component):
    """A directory on a file system of the backend's host, where copies go: another disk or a network mount.

    Deleting it forgets the target and leaves what lies there. It refuses to go while a group has a leg to it.
    """

    name: pulumi.Output[str]
    """The target's name on its site."""
    uid: pulumi.Output[str]
    """The target's id, which it keeps for life."""

    def __init__(
        self,
        resource_name: str,
        *,
        path: pulumi.Input[str],
        name: pulumi.Input[str] | None = None,
        site: Site | None = None,
        adopt: pulumi.Input[bool] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare a target.

        :param resource_name: The resource's name in the program.
        :param path: The directory, an absolute path on the backend's host; created if its parent exists.
        :param name: The target's name on the site; the resource's name by default. Another name is another target.
        :param site: Which backend, where there are several.
        :param adopt: Take the target over if another stack declared it, or the CLI made it.
        :param opts: Pulumi's options.
        """
        super().__init__(resource_name, opts)
        self.declared_name = resource_name if name is None else name
        inputs = without_none(
            kind="filesystem",
            name=self.declared_name,
            path=path,
            site=site_name(f"FilesystemTarget {resource_name!r}", site),
            adopt=adopt,
        )
        target = resources.Target(f"{resource_name}-target", inputs, self._child_options(opts))
        self.name, self.uid = target.name, target.uid
        self.register_outputs({"name": self.name, "uid": self.uid})
