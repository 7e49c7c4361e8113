"""Pause, resume, resync: what a person orders of a group's legs, in the worker.

An order is on record, durably, before it counts: a leg that is paused stays so through restarts, until it is resumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dpac_api.errors import Conflict, DpacError, NotFound
from dpac_api.models import Condition, Model, Name, PauseStatus
from dpac_engine.control.group_state import LegMemory, Paused
from dpac_engine.control.moments import moment

if TYPE_CHECKING:
    from dpac_engine.control.group import Group
    from dpac_engine.control.shipper import Shipper

Verb = Literal["Pause", "Resume", "Resync"]


class LegOrder(Model):
    """What is to become of legs. Times are stamps, in nanoseconds."""

    verb: Verb
    leg: Name | None = None
    """None: every leg of the group."""
    by: str = ""
    reason: str = ""
    since_ns: int = 0
    full: bool = False
    """Resync: send everything, whatever the target holds."""


async def carry_out(group: Group, order: LegOrder) -> None:
    """Do it, and return once it is on record. NotFound without such a leg, Conflict for a resync of a paused one."""
    async with group.applying:  # a leg that goes meanwhile would come back
        legs = _named(group, order.leg)
        if order.verb == "Resync" and (paused := [leg.name for leg in legs if leg.memory.paused]):
            raise Conflict(
                f"The leg {paused[0]} is paused: nothing is compared or sent. Resume it first. Nothing was changed."
            )
        before = {leg.name: _said(leg.memory) for leg in legs}
        for leg in legs:
            _enter(leg.memory, order)
        try:
            await group.record()
        except OSError as error:
            for leg in legs:
                leg.memory.paused, leg.memory.resync = before[leg.name]
            raise DpacError(
                f"{group.folder} cannot be written ({error.strerror or error}), so the order would not outlive a restart. Nothing was changed: "
                "make room there."
            ) from error
        for leg in legs:
            if order.verb == "Pause" and leg.name in group.sync_legs:
                group.sync_legs[leg.name].pause()
            leg.hurry()


def _named(group: Group, name: str | None) -> list[Shipper]:
    if name is not None and name not in group.legs:
        there = ", ".join(group.legs) or "none"
        raise NotFound(f"The group {group.assignment.name!r} has no leg {name!r} (its legs: {there}).")
    return [group.legs[name]] if name is not None else list(group.legs.values())


def _said(memory: LegMemory) -> tuple[Paused | None, Literal["compare", "anew"] | None]:
    return memory.paused, memory.resync


def _enter(memory: LegMemory, order: LegOrder) -> None:
    match order.verb:
        case "Pause":
            # Who paused it first is who is to be asked.
            memory.paused = memory.paused or Paused(order.by, order.since_ns, order.reason)
        case "Resume":
            memory.paused = None
        case "Resync":
            memory.resync = "anew" if order.full else "compare"


# ------------------------------------------------------------------ what people see


def status_of(memory: LegMemory) -> PauseStatus | None:
    """Since when and by whom a leg is paused."""
    paused = memory.paused
    return None if paused is None else PauseStatus(since=moment(paused.since_ns), by=paused.by, reason=paused.reason)


def condition(leg: Shipper, group: str) -> Condition | None:
    """That it is paused, and what that means."""
    found = status_of(leg.memory)
    if found is None:
        return None
    why = f" ({found.reason})" if found.reason else ""
    waits = leg.spec.mode == "sync" and leg.spec.on_loss == "stop"
    what = "the application waits, because of on_loss=stop" if waits else "the application goes on"
    return Condition(
        type="Paused",
        subject=f"leg/{leg.name}",
        message=f"The leg was paused by {found.by}{why}. Nothing is sent to target {leg.spec.target}, {what}, and what the target lacks grows. It "
        f"is caught up with once somebody runs `dpac resume {group} {leg.name}`.",
        since=found.since,
        severity="warning",
    )
