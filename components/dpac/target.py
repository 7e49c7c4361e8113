"""Targets that a program declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from dpac.arguments import Site
from dpac.component import Component, site_name, without_none
from dpac_provider import resources


class TargetComponent(Component):
    """Where copies go. Legs take any kind of it as `to`."""

    name: pulumi.Output[str]
    """The target's name on its site."""
    uid: pulumi.Output[str]
    """The target's id, which it keeps for life."""

    def __init__(
        self,
        resource_name: str,
        name: pulumi.Input[str] | None,
        site: Site | None,
        opts: pulumi.ResourceOptions | None,
        **inputs: Any,
    ) -> None:
        """Register the target that `inputs` describe."""
        super().__init__(resource_name, opts)
        self.declared_name = resource_name if name is None else name
        what = f"{type(self).__name__} {resource_name!r}"
        given = without_none(name=self.declared_name, site=site_name(what, site), **inputs)
        target = resources.Target(f"{resource_name}-target", given, self._child_options(opts))
        self.name, self.uid = target.name, target.uid
        self.register_outputs({"name": self.name, "uid": self.uid})


class FilesystemTarget(TargetComponent):
    """A directory on a file system of the backend's host, where copies go: another disk or a network mount.

    Deleting it forgets the target and leaves what lies there. It refuses to go while a group has a leg to it.
    """

    def __init__(
        self,
        resource_name: str,
        *,
        path: pulumi.Input[str],
        offsite: pulumi.Input[bool] | None = None,
        name: pulumi.Input[str] | None = None,
        site: Site | None = None,
        adopt: pulumi.Input[bool] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare a target.

        :param resource_name: The resource's name in the program.
        :param path: The directory, an absolute path on the backend's host; created if its parent exists.
        :param offsite: Whether it lies at another place than the site, such as a remote mount; false by default.
        :param name: The target's name on the site; the resource's name by default. Another name is another target.
        :param site: Which backend, where there are several.
        :param adopt: Take the target over if another stack declared it, or the CLI made it.
        :param opts: Pulumi's options.
        """
        super().__init__(resource_name, name, site, opts, kind="filesystem", path=path, offsite=offsite, adopt=adopt)


class S3Target(TargetComponent):
    """A bucket of Amazon S3, or of a server that speaks its protocol, where copies go.

    Deleting it forgets the target and leaves what lies there. It refuses to go while a group has a leg to it. No
    argument holds a key: `credentials` says where the backend's host has them.
    """

    def __init__(
        self,
        resource_name: str,
        *,
        bucket: pulumi.Input[str],
        prefix: pulumi.Input[str] | None = None,
        region: pulumi.Input[str] | None = None,
        endpoint: pulumi.Input[str] | None = None,
        storage_class: pulumi.Input[str] | None = None,
        path_style: pulumi.Input[bool] | None = None,
        credentials: pulumi.Input[str] | None = None,
        ca_file: pulumi.Input[str] | None = None,
        proxy: pulumi.Input[str] | None = None,
        offsite: pulumi.Input[bool] | None = None,
        object_lock: pulumi.Input[str] | None = None,
        prices: Mapping[str, Any] | None = None,
        name: pulumi.Input[str] | None = None,
        site: Site | None = None,
        adopt: pulumi.Input[bool] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare a target.

        :param resource_name: The resource's name in the program.
        :param bucket: The bucket; it must exist.
        :param prefix: Every key begins with it; none by default.
        :param region: The bucket's region; by default as the AWS configuration of the backend's host says, or us-east-1.
        :param endpoint: The server's address, such as `https://minio.example.com:9000`; Amazon S3 by default.
        :param storage_class: Of objects of 128 KiB and more, such as `STANDARD_IA`; `STANDARD` by default.
        :param path_style: Address the bucket as a path, not as a host name; by default where an endpoint is given.
        :param credentials: Where the backend's host has the keys: `default` (the SDK's own chain), `environment:PREFIX`,
            `profile:NAME` or `file:/absolute/path`.
        :param ca_file: Certificates (PEM) on the backend's host that the server's must be signed by.
        :param proxy: The address of an HTTP proxy; by default as the backend's environment says.
        :param offsite: Whether it lies at another place than the site; true by default.
        :param object_lock: `compliance` or `governance`: the bucket was created with S3 Object Lock, legs to it may ask for
            `immutable_for`, and what is read is the oldest version of each object; none by default.
        :param prices: For the estimate of its monthly cost, such as `{"storage_gib_month": 0.02, "egress_gib": 0}`; what
            is left out is Amazon's list price, or nothing where an endpoint is given.
        :param name: The target's name on the site; the resource's name by default. Another name is another target.
        :param site: Which backend, where there are several.
        :param adopt: Take the target over if another stack declared it, or the CLI made it.
        :param opts: Pulumi's options.
        """
        super().__init__(
            resource_name, name, site, opts, kind="s3", bucket=bucket, prefix=prefix, region=region, endpoint=endpoint,
            storage_class=storage_class, path_style=path_style, credentials=credentials, ca_file=ca_file, proxy=proxy,
            offsite=offsite, object_lock=object_lock, prices=prices, adopt=adopt,
        )  # fmt: skip
