"""`dpac status`: what is protected, and how well, right now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    Cursor,
    Json,
    Limit,
    age,
    aside,
    client,
    console,
    duration,
    escape,
    labels_of,
    moment,
    page_of,
    print_json,
    print_page,
    say_more,
    size,
    table,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dpac_api.client import Client
    from dpac_api.models import Group, GroupStatus

WATCH_SECONDS = 1.0
_SEVERITY = {"info": "cyan", "warning": "yellow", "error": "red"}


def status(
    group: Annotated[
        str | None, typer.Argument(metavar="[GROUP]", help="One group in full; else all of them, a line each.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    json: Json = False,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> None:
    """What is protected, and how well, right now."""
    with client() as site:
        if watch:
            _watch(site, group, json, limit, cursor)
        elif group is not None:
            observed = site.group_status(group)
            if json:
                print_json(observed)
            else:
                console().print(_one(site.group(group), observed))
        else:
            _all(site, json, limit, cursor)


def _all(site: Client, json: bool, limit: int, cursor: str | None) -> None:
    found, more = _page(site, limit, cursor)
    if json:
        print_page([{"group": name, "status": observed} for name, observed in found], more)
        return
    if not found:
        aside().print("No group is protected here yet. Declare one in a Pulumi program, or `dpac group apply -f FILE`.")
        return
    console().print(_lines(found))
    say_more(more)


def _page(site: Client, limit: int, cursor: str | None) -> tuple[list[tuple[str, GroupStatus]], str | None]:
    names, more = page_of(sorted(group.name for group in site.groups()), str, limit, cursor)
    return [(name, site.group_status(name)) for name in names], more


def _watch(site: Client, group: str | None, json: bool, limit: int, cursor: str | None) -> None:
    import time

    from rich.live import Live

    from dpac_api.errors import Invalid, Temporary

    if json:
        raise Invalid("--watch and --json do not go together. Poll `dpac status --json` instead.")

    def look() -> RenderableType:
        try:
            return _one(site.group(group), site.group_status(group)) if group else _lines(_page(site, limit, cursor)[0])
        except Temporary as error:  # the backend may be restarting: keep watching
            return f"[red]{escape(error.message)}[/red]"

    if not console().is_terminal:  # a log rather than a screen: one picture below the other
        while True:
            console().print(look())
            time.sleep(WATCH_SECONDS)
    with Live(look(), console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(look(), refresh=True)


def _lines(found: list[tuple[str, GroupStatus]]) -> RenderableType:
    rows = table("GROUP", "PROTECTED", "DATA", "SLA", "NEWEST", "LAG", "CONDITIONS")
    for name, observed in found:
        newest = [leg.latest_checkpoint_time for leg in observed.legs.values()]
        oldest_newest = min((at for at in newest if at is not None), default=None)
        rows.add_row(
            name,
            _protected(observed),
            observed.data_state,
            observed.sla_state,
            age(oldest_newest),
            duration(max((leg.lag_seconds for leg in observed.legs.values()), default=0)),
            escape(", ".join(sorted({condition.type for condition in observed.conditions}))) or "-",
        )
    return rows


def _protected(observed: GroupStatus) -> str:
    return "[green]yes[/green]" if observed.protected else "[red]no[/red]"


def _one(group: Group, observed: GroupStatus) -> RenderableType:
    from rich.console import Group as Together

    parts: list[Any] = [
        f"[bold]{escape(group.name)}[/bold]  protected {_protected(observed)}  {observed.role}  {observed.data_state}  {observed.sla_state}",
        f"checkpoint {observed.checkpoint_sequence}, spool {size(observed.spool_bytes)}",
        *([f"labels {labels_of(group)}"] if group.spec.labels else []),
        "",
        _members(observed),
        "",
        _legs(observed),
        *_space(observed),
        *_messages(observed),
    ]
    for condition in observed.conditions:
        colour = _SEVERITY[condition.severity]
        parts += [
            "",
            f"[{colour}]{condition.type}[/{colour}] ({escape(condition.subject)}, since {moment(condition.since)})",
        ]
        parts += [f"  {escape(condition.message)}"]
    return Together(*parts)


def _messages(observed: GroupStatus) -> list[str]:
    """What members and legs say, a line each: a sentence in a column would be one word wide. What a condition says is said there."""
    said = {condition.message for condition in observed.conditions}
    told = [(name, member.message) for name, member in observed.members.items()]
    told += [(name, leg.message) for name, leg in observed.legs.items()]
    return [f"  {name}: {escape(message)}" for name, message in told if message and message not in said]


def _members(observed: GroupStatus) -> RenderableType:
    rows = table("MEMBER", "KIND", "STATE", "SEEDED", "SIZE", "UNAPPLIED")
    for name, member in observed.members.items():
        seeded = "yes" if member.seeded else "no"
        rows.add_row(
            name,
            member.kind,
            member.state,
            seeded,
            size(member.size_bytes),
            size(member.unapplied_bytes),
        )
    return rows


def _space(observed: GroupStatus) -> list[str]:
    """What takes how much at each target, as it was measured last."""
    return [
        f"at {escape(leg.target)}: {size(leg.space.unique_bytes)} for one kept checkpoint alone, {size(leg.space.shared_bytes)} shared, "
        f"{size(leg.space.reclaimable_bytes)} goes by itself (measured {age(leg.space.measured_at)} ago)"
        for leg in observed.legs.values()
        if leg.space is not None
    ]


def _legs(observed: GroupStatus) -> RenderableType:
    rows = table("LEG", "MODE", "TARGET", "STATE", "SEEDED", "RPO", "LAG", "BEHIND", "NEWEST", "STORED", "LOCKED UNTIL")
    for name, leg in observed.legs.items():
        rows.add_row(
            name,
            leg.mode,
            leg.target,
            f"{leg.data_state}, {leg.sync.phase}" if leg.sync else leg.data_state,
            f"{leg.seeded_fraction:.0%}",
            duration(leg.rpo_seconds),
            duration(leg.lag_seconds),
            size(leg.lag_bytes),
            age(leg.latest_checkpoint_time),
            size(leg.stored_bytes),
            moment(leg.immutable_until) if leg.immutable_until else "-",
        )
    return rows
