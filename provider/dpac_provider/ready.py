"""Waiting until a group is seeded or protected, as a resource of its own.

If it fails, the group is in state all the same, and the next `pulumi up` goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from typing_extensions import override

from dpac_api.client import Client
from dpac_api.errors import DpacError, NotFound, Temporary, TimedOut
from dpac_api.models import Group, GroupStatus
from dpac_provider import session
from dpac_provider.act import ActHandler
from dpac_provider.handler import Connect, Made, Seen
from dpac_provider.inputs import ReadyInputs
from dpac_provider.values import Properties

POLL_SECONDS = 0.5
PERMANENT = ("TargetMissing", "TargetDenied", "TargetUnfit")
"""Conditions that wait for a person: nobody is served by waiting out the whole timeout for them."""
PERMANENT_SECONDS = 60.0
"""Such a condition may hold for so long first: a mount or a bucket's policy of the same update may be about to come."""


class ReadyHandler(ActHandler[ReadyInputs]):
    """The wait for a group; id `ready/GROUP/UNTIL`. Deleting it does nothing."""

    inputs_model = ReadyInputs
    output_names = ("site_uid", "group_uid")
    replace_on: ClassVar[tuple[str, ...]] = ("group", "until", "triggers")
    ignored: ClassVar[tuple[str, ...]] = ("timeout",)

    def __init__(
        self,
        connect: Connect = session.connect,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(connect)
        self._sleep = sleep
        self._monotonic = monotonic

    @override
    def create(self, inputs: Properties) -> Made:
        wanted = self._parse(inputs)
        group = self._await(self._connect(wanted.site, None), wanted)
        return Made(
            f"ready/{wanted.group}/{wanted.until}", {**inputs, "site_uid": group.site_uid, "group_uid": group.uid}
        )

    @override
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        """What was waited for came true once; it is waited for again only when the group is gone."""
        try:
            self._client_of(outputs).group(outputs["group"])
        except NotFound:
            return None
        return Seen(outputs, self._declared(outputs))

    def _await(self, client: Client, wanted: ReadyInputs) -> Group:
        deadline = self._monotonic() + wanted.timeout.seconds
        group, status, trouble, held_since = None, None, "", None
        while True:
            try:
                group = client.group(wanted.group)
                status, trouble = client.group_status(wanted.group), ""
                if status.observed_generation >= group.generation and getattr(status, wanted.until):
                    return group
                if not any(held.type in PERMANENT for held in status.conditions):
                    held_since = None
                elif held_since is None:
                    held_since = self._monotonic()
                elif self._monotonic() - held_since >= PERMANENT_SECONDS:
                    raise DpacError(_what_is_permanent(wanted, status))
            except Temporary as error:
                trouble = error.message
            if self._monotonic() >= deadline:
                raise TimedOut(_what_is_missing(wanted, group, status, trouble))
            self._sleep(POLL_SECONDS)


def _what_is_permanent(wanted: ReadyInputs, status: GroupStatus) -> str:
    why = "; ".join(
        f"{held.type} ({held.subject}): {held.message.rstrip('.')}"
        for held in status.conditions
        if held.type in PERMANENT
    )
    return (
        f"Group {wanted.group!r} will not be {wanted.until} by waiting: {why}. The group is declared and goes on; put that right, and "
        "run `pulumi up` again."
    )


def _what_is_missing(wanted: ReadyInputs, group: Group | None, status: GroupStatus | None, trouble: str) -> str:
    lacking = [trouble] if trouble else []
    if group is not None and status is not None:
        if status.observed_generation < group.generation:
            lacking.append("the site has not taken up the group's newest declaration yet")
        if wanted.until == "protected" and not group.spec.replication:
            lacking.append("it has no leg; add one to `replication`")
        lacking += _lacking_members(status) + _lacking_legs(status, wanted.until)
        lacking += _telling_conditions(status, said=" ".join(lacking))
    details = "; ".join(part.rstrip(".") for part in lacking) or "its site does not say why"
    return (
        f"Group {wanted.group!r} is not {wanted.until} after {wanted.timeout}: {details}. The group is declared and goes on; "
        f"see `dpac status {wanted.group}`, and run `pulumi up` again."
    )


def _lacking_members(status: GroupStatus) -> list[str]:
    lacking = []
    for name, member in status.members.items():
        if not member.seeded or member.state != "Attached":
            said = f" ({member.message.rstrip('.')})" if member.message else ""
            lacking.append(f"member {name} is {member.state}{'' if member.seeded else ', not seeded'}{said}")
    return lacking


def _lacking_legs(status: GroupStatus, until: str) -> list[str]:
    lacking = []
    for name, leg in status.legs.items():
        said = f" ({leg.message.rstrip('.')})" if leg.message else ""
        if leg.seeded_fraction < 1:
            lacking.append(f"leg {name} to {leg.target} has {leg.seeded_fraction:.0%} of the first copy{said}")
        elif until == "protected" and leg.latest_checkpoint is None:
            lacking.append(f"leg {name} to {leg.target} has no checkpoint yet{said}")
        elif until == "protected" and leg.lag_seconds > leg.rpo_seconds:
            lacking.append(
                f"leg {name} to {leg.target} lags {leg.lag_seconds:.0f}s, its RPO is {leg.rpo_seconds:g}s{said}"
            )
        elif until == "protected" and leg.mode == "sync" and not leg.in_sync:
            why = f": {leg.sync.reason.rstrip('.')}" if leg.sync and leg.sync.reason else ""
            lacking.append(f"leg {name} to {leg.target} is not in sync{why}")
    return lacking


def _telling_conditions(status: GroupStatus, *, said: str) -> list[str]:
    """Conditions that may be why, apart from what was said already."""
    return [
        f"{held.type} ({held.subject}): {held.message}"
        for held in status.conditions
        if held.severity != "info" and held.type != "KeyNotEscrowed" and held.message.rstrip(".") not in said
    ]
