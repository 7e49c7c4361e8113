"""The resources that a Pulumi program registers; `import dpac` composes them.

As a native plugin they will be `dpac:backend:Target`, `dpac:backend:ProtectionGroup` and so on, with the same
properties and ids.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pulumi
from pulumi import dynamic

from dpac_provider.dynamic import (
    CheckpointProvider,
    DrillProvider,
    GroupProvider,
    ReadyProvider,
    ResourceProvider,
    TargetProvider,
)

NATIVE_MODULE = "dpac:backend"
_DYNAMIC_MODULE = "dpac"


class Resource(dynamic.Resource):
    """A dynamic resource with the outputs that its handler names."""

    provider: ClassVar[type[ResourceProvider]]

    site_uid: pulumi.Output[str]

    def __init__(self, resource_name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        handler = self.provider.handler
        owner = {"owner": _this_stack()} if "owner" in handler.input_names() else {}
        awaited = dict.fromkeys((*handler.input_names(), *handler.output_names))
        super().__init__(self.provider(), resource_name, {**awaited, **owner, **inputs}, opts)


class Target(Resource, module=_DYNAMIC_MODULE, name="Target"):
    """A target of a site."""

    provider = TargetProvider

    name: pulumi.Output[str]
    uid: pulumi.Output[str]


class ProtectionGroup(Resource, module=_DYNAMIC_MODULE, name="ProtectionGroup"):
    """A protection group of a site."""

    provider = GroupProvider

    name: pulumi.Output[str]
    uid: pulumi.Output[str]
    epoch: pulumi.Output[int]
    role: pulumi.Output[str]
    home_site: pulumi.Output[str]
    active_site: pulumi.Output[str]
    member_outputs: pulumi.Output[dict[str, dict[str, str]]]


class Ready(Resource, module=_DYNAMIC_MODULE, name="Ready"):
    """The wait for a group."""

    provider = ReadyProvider

    group: pulumi.Output[str]


class Checkpoint(Resource, module=_DYNAMIC_MODULE, name="Checkpoint"):
    """A checkpoint that the program takes."""

    provider = CheckpointProvider

    checkpoint: pulumi.Output[str]
    time: pulumi.Output[str]
    consistency: pulumi.Output[str]
    available: pulumi.Output[bool]


class Drill(Resource, module=_DYNAMIC_MODULE, name="Drill"):
    """A drill that the program runs."""

    provider = DrillProvider

    operation: pulumi.Output[str]
    checkpoint: pulumi.Output[str]
    checkpoint_time: pulumi.Output[str]
    from_target: pulumi.Output[str]
    rto_seconds: pulumi.Output[float]
    rpo_seconds: pulumi.Output[float]
    passed: pulumi.Output[bool]


def _this_stack() -> str:
    return f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
