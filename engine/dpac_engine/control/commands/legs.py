"""`dpac pause`, `resume` and `resync`: what becomes of a group's legs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dpac_engine.control.commands.session import GroupName, Json, client, print_json, say

if TYPE_CHECKING:
    from dpac_api.models import GroupSpec, LegSpec, Operation

LegName = Annotated[str | None, typer.Argument(metavar="[LEG]", help="The leg's name; else every leg of the group.")]


def pause(
    group: GroupName,
    leg: LegName = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever finds it later.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask, even if the application waits from then on.")
    ] = False,
    json: Json = False,
) -> None:
    """Send nothing to a leg's target, or to any, until it is resumed. Restarts do not end it."""
    with client() as site:
        spec = site.group(group).spec
        stops = _plan(group, spec, leg, quiet=json)
        if stops and not yes:
            typer.confirm("Pause it, and have the application wait?", abort=True, err=True)
        done = site.pause(group, leg, reason=reason, stop_writes=stops)
    _tell(done, json, "paused", f"Go on with: dpac resume {group}{f' {leg}' if leg else ''}")


def _plan(group: str, spec: GroupSpec, leg: str | None, *, quiet: bool) -> bool:
    """Say what becomes of the application and of each leg; whether the application would wait."""
    chosen = {name: one for name, one in spec.replication.items() if leg in (None, name)}
    if not quiet:
        for name, one in chosen.items():
            say(f"{name} to {one.target}: {_consequence(one)}")
        if chosen:
            say(
                f"Changes wait in the spool of {group}, up to {spec.journal.spool_max}; from then on bitmaps tell what the target lacks, and "
                "there are no checkpoints there of the time between."
            )
    return any(_stops(one) for one in chosen.values())


def _stops(leg: LegSpec) -> bool:
    return leg.mode == "sync" and leg.on_loss == "stop"


def _consequence(leg: LegSpec) -> str:
    if _stops(leg):
        return "the application WAITS, without an error, until it is resumed (sync, on_loss=stop)"
    if leg.mode == "sync":
        return "the application goes on; what it is told is durable would be lost with this host (sync, on_loss=async)"
    return f"the application goes on; its RPO of {leg.rpo} is not met for as long"


def resume(group: GroupName, leg: LegName = None, json: Json = False) -> None:
    """Go on with a leg, or with every leg: its target is caught up with."""
    with client() as site:
        done = site.resume(group, leg)
    _tell(done, json, "resumed", f"How far it is: dpac status {group}")


def resync(
    group: GroupName,
    leg: LegName = None,
    full: Annotated[bool, typer.Option("--full", help="Send everything, whatever the target holds.")] = False,
    json: Json = False,
) -> None:
    """Compare every member with what a leg's target holds, and send what differs. Until that is done no new checkpoint is recoverable there."""
    with client() as site:
        done = site.resync(group, leg, full=full)
    how = "everything is sent" if full else "compared, and what differs is sent"
    _tell(done, json, how, f"How far it is: dpac status {group}")


def _tell(done: Operation, json: bool, what: str, next_step: str) -> None:
    if json:
        print_json(done)
        return
    for leg in done.result["legs"]:
        say(f"{leg}: {what}.")
    say(next_step)
