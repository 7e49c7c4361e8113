"""What a program does with a group once it is declared: wait for it, mark it, rehearse its recovery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from dpac.arguments import Site, name_of
from dpac.component import Component, site_name, without_none
from dpac.group import ProtectionGroup
from dpac.lookup import GroupView
from dpac.target import TargetComponent
from dpac_provider import resources

GroupReference = ProtectionGroup | pulumi.Input[str] | pulumi.Output[GroupView]


def _after(group: Any) -> list[pulumi.Resource]:
    return [group] if isinstance(group, ProtectionGroup) else []


class Ready(Component):
    """Waits until a group is seeded or protected, so that what depends on this starts with its data safe.

    If the time runs out the update fails and says what is missing; the group stays declared, and the next update waits on.
    It fails after a minute while a target waits for a person: not mounted, access denied, or unfit.
    """

    def __init__(
        self,
        resource_name: str,
        *,
        group: GroupReference,
        until: pulumi.Input[str] | None = None,
        timeout: pulumi.Input[str] | None = None,
        triggers: pulumi.Input[Sequence[Any]] | None = None,
        site: Site | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Wait for a group.

        :param resource_name: The resource's name in the program.
        :param group: The group, or its name.
        :param until: `seeded`: every member is in the group's checkpoints on every leg; `protected` (the default): also
            a checkpoint is durable on every leg and every RPO is met.
        :param timeout: How long to wait before the update fails (`10m`).
        :param triggers: Any values: it waits again when one of them changes.
        :param site: Which backend, where there are several.
        :param opts: Pulumi's options.
        """
        super().__init__(resource_name, opts)
        inputs = without_none(
            group=name_of(group),
            until=until,
            timeout=timeout,
            triggers=triggers,
            site=site_name(f"Ready {resource_name!r}", site, group),
        )
        resources.Ready(f"{resource_name}-ready", inputs, self._child_options(opts, _after(group)))
        self.register_outputs({})


class Checkpoint(Component):
    """A checkpoint taken by this very update, for example right before a schema is migrated.

    Deleting it releases it if it is held, and does nothing else to data. Once retention has dropped the checkpoint, `available` is false after a refresh.
    """

    checkpoint: pulumi.Output[str]
    """The checkpoint's id, a selector for `dpac mount`, `restore` and `drill`."""
    time: pulumi.Output[str]
    """When it was taken, RFC 3339 in UTC."""
    consistency: pulumi.Output[str]
    """`crash` or `app`."""
    available: pulumi.Output[bool]
    """Whether it could still be recovered at the last refresh."""

    def __init__(
        self,
        resource_name: str,
        *,
        group: GroupReference,
        tag: pulumi.Input[str] | None = None,
        app: pulumi.Input[bool] | None = None,
        hold: pulumi.Input[bool] | None = None,
        hold_reason: pulumi.Input[str] | None = None,
        hold_until: pulumi.Input[str] | None = None,
        triggers: pulumi.Input[Sequence[Any]] | None = None,
        site: Site | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Take a checkpoint.

        :param resource_name: The resource's name in the program.
        :param group: The group, or its name.
        :param tag: A name for it, by which it is found (`tag:NAME`) and kept as the legs' retention says for tags.
        :param app: Quiesce the members by their blueprints first, so that it is application-consistent.
        :param hold: Hold it at every target, whatever retention and size limits say, until this resource is deleted.
        :param hold_reason: Why, for whoever finds it held.
        :param hold_until: RFC 3339: when it is released by itself.
        :param triggers: Any values, such as a schema's version: another one is taken when one of them changes.
        :param site: Which backend, where there are several.
        :param opts: Pulumi's options.
        """
        super().__init__(resource_name, opts)
        inputs = without_none(
            group=name_of(group),
            tag=tag,
            app=app,
            hold=hold,
            hold_reason=hold_reason,
            hold_until=hold_until,
            triggers=triggers,
            site=site_name(f"Checkpoint {resource_name!r}", site, group),
        )
        taken = resources.Checkpoint(f"{resource_name}-checkpoint", inputs, self._child_options(opts, _after(group)))
        self.checkpoint, self.time = taken.checkpoint, taken.time
        self.consistency, self.available = taken.consistency, taken.available
        self.register_outputs(
            {
                "checkpoint": self.checkpoint,
                "time": self.time,
                "consistency": self.consistency,
                "available": self.available,
            }
        )


class Drill(Component):
    """A rehearsal of recovery from a target, while the application goes on. The update fails if it does not pass.

    It opens the checkpoint, reads every member in full, runs the blueprints' checks and cleans up. Deleting it does
    nothing; its signed report stays with the site.
    """

    operation: pulumi.Output[str]
    """The operation's id at the site."""
    checkpoint: pulumi.Output[str]
    """The checkpoint that was recovered."""
    from_target: pulumi.Output[str]
    """The target that it was recovered from."""
    rto_seconds: pulumi.Output[float]
    """From the start until every member was open, read in full and checked."""
    rpo_seconds: pulumi.Output[float]
    """The checkpoint's age when the drill began."""
    passed: pulumi.Output[bool]
    """True; a drill that does not pass fails the update."""

    def __init__(
        self,
        resource_name: str,
        *,
        group: GroupReference,
        at: pulumi.Input[str] | None = None,
        target: TargetComponent | pulumi.Input[str] | None = None,
        rto: pulumi.Input[str] | None = None,
        timeout: pulumi.Input[str] | None = None,
        triggers: pulumi.Input[Sequence[Any]] | None = None,
        site: Site | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run a drill.

        :param resource_name: The resource's name in the program.
        :param group: The group, or its name.
        :param at: Which checkpoint: `latest` (the default), `latest-clean`, `latest-app`, `tag:NAME`, `before:TIMESTAMP`,
            or an id.
        :param target: The target to recover from; by default the first that has the checkpoint.
        :param rto: The drill fails if it takes longer, such as `1m`.
        :param timeout: How long to wait for the report before the update fails (`1h`).
        :param triggers: Any values: the drill runs again when one of them changes.
        :param site: Which backend, where there are several.
        :param opts: Pulumi's options.
        """
        super().__init__(resource_name, opts)
        inputs = without_none(
            group=name_of(group),
            at=at,
            target=None if target is None else name_of(target),
            rto=rto,
            timeout=timeout,
            triggers=triggers,
            site=site_name(f"Drill {resource_name!r}", site, group),
        )
        run = resources.Drill(f"{resource_name}-drill", inputs, self._child_options(opts, _after(group)))
        self.operation, self.checkpoint, self.from_target = run.operation, run.checkpoint, run.from_target
        self.rto_seconds, self.rpo_seconds, self.passed = run.rto_seconds, run.rpo_seconds, run.passed
        self.register_outputs(
            {
                "operation": self.operation,
                "checkpoint": self.checkpoint,
                "from_target": self.from_target,
                "rto_seconds": self.rto_seconds,
                "rpo_seconds": self.rpo_seconds,
                "passed": self.passed,
            }
        )
