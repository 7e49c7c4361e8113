"""`dpac checkpoint`, `checkpoints`, `hold`, `release`, `mount`, `unmount`, `mounts`: moments to come back to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    At,
    Cursor,
    FromTarget,
    GroupName,
    Json,
    Limit,
    aside,
    client,
    console,
    escape,
    moment,
    page_of,
    print_json,
    print_page,
    say,
    say_more,
    table,
)

if TYPE_CHECKING:
    from datetime import datetime

    from dpac_api.client import Client
    from dpac_api.models import Checkpoint, CheckpointPage, CheckpointRange

SHOWN = 10
"""Checkpoints listed below the timeline."""
TAGS_DRAWN_MAX = 12


def checkpoint(
    group: GroupName,
    tag: Annotated[str | None, typer.Option("--tag", help="A name to come back to: `--at tag:NAME`.")] = None,
    app: Annotated[bool, typer.Option("--app", help="Quiesce the applications first, by their blueprints.")] = False,
    json: Json = False,
) -> None:
    """Mark the group now."""
    with client() as site:
        taken = site.take_checkpoint(group, tag=tag, app=app)
    if json:
        print_json(taken)
    else:
        tags = f", tagged {', '.join(taken.tags)}" if taken.tags else ""
        say(f"{taken.id} at {moment(taken.time)} ({taken.consistency}-consistent{tags})")


def checkpoints(
    group: GroupName,
    json: Json = False,
    held: Annotated[bool, typer.Option("--held", help="Only those that are held, with why and until when.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, max=1000, help=f"Checkpoints listed; else {SHOWN}, or {PAGE} as JSON."),
    ] = None,
    cursor: Cursor = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only those with this tag.")] = None,
    app: Annotated[bool, typer.Option("--app", help="Only application-consistent ones.")] = False,
    target: Annotated[str | None, typer.Option("--target", help="Only those at this target.")] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIMESTAMP", help="Only those before that moment (RFC 3339).")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="TIMESTAMP", help="Only those after that moment (RFC 3339).")
    ] = None,
) -> None:
    """The timeline of each target, and the newest checkpoints; with --json a page of checkpoints."""
    with client() as site:
        page = site.checkpoints(
            group,
            limit=limit or (PAGE if json else SHOWN),
            cursor=cursor,
            tag=tag,
            app=app or None,
            target=target,
            before=_timestamp(before, "--before"),
            after=_timestamp(after, "--after"),
            held=held or None,
        )
        if json:
            print_json(page)
            return
        if held:
            say_held(page)
            return
        ranges = [found for found in site.checkpoint_ranges(group) if target in (None, found.target)]
        for line in _timelines(site, group, ranges):
            console().print(line)
    if not page.items:
        say("No checkpoint there is recoverable yet." if cursor is None else "There are no more.")
        return
    console().print(_listing(page.items))
    say_more(page.next_cursor)


def say_held(page: CheckpointPage) -> None:
    """The held checkpoints of a page."""
    if not page.items:
        say("No checkpoint is held.")
        return
    rows = table("CHECKPOINT", "TIME", "HELD UNTIL", "REASON", "TARGETS")
    for item in page.items:
        until = moment(item.held_until) if item.held_until else "released"
        rows.add_row(item.id, moment(item.time), until, escape(item.held_reason), ", ".join(sorted(item.targets)))
    console().print(rows)
    say_more(page.next_cursor)


def hold(
    group: GroupName,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's id, or a selector that means one.")
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever finds it later.")] = "",
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="TIMESTAMP", help="When it is released by itself (RFC 3339); else never."),
    ] = None,
    json: Json = False,
) -> None:
    """Keep a checkpoint, at every target that has it, until it is released."""
    with client() as site:
        found = site.hold(group, checkpoint, reason=reason, until=_timestamp(until, "--until"))
    if json:
        print_json(found)
        return
    end = f"until {moment(found.held_until)}" if found.held_until else f"until `dpac release {group} {found.id}`"
    say(f"{found.id} of {moment(found.time)} is held at {', '.join(sorted(found.targets))} {end}.")


def release(
    group: GroupName,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The held checkpoint's id.")],
) -> None:
    """Hold a checkpoint no longer: it ages out like any other."""
    with client() as site:
        site.release(group, checkpoint)
    say(f"{checkpoint} is not held any more.")


def _timestamp(text: str | None, option: str) -> datetime | None:
    from datetime import datetime

    from dpac_api.errors import Invalid

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{option} {text!r} is not a timestamp; write it like 2026-11-21T09:30:00Z.") from None
    return found.astimezone()  # without a zone it is the reader's own


def _timelines(site: Client, group: str, ranges: list[CheckpointRange]) -> list[str]:
    from dpac_engine.control.commands.timeline_drawing import draw

    lines: list[str] = []
    for target in sorted({found.target for found in ranges}):
        mine = [found for found in ranges if found.target == target]
        tags = list(dict.fromkeys(tag for found in mine for tag in found.tags))[-TAGS_DRAWN_MAX:]
        times: list[tuple[str, datetime]] = []
        for tag in tags:
            tagged = site.checkpoints(group, tag=tag, target=target, limit=1).items
            times += [(tag, item.time) for item in tagged]
        lines += [escape(line) for line in draw(target, mine, times, console().width)]
        lines.append("")
    return lines


def _listing(items: list[Checkpoint]) -> object:
    rows = table("CHECKPOINT", "TIME", "CONSISTENT", "CUTS", "TAGS", "TARGETS")
    for item in items:
        cuts = ", ".join(f"{name} {cut.kind}" for name, cut in sorted(item.cuts.items()))
        targets = ", ".join(
            f"{name}{' ✓' if at.verified_at else '' if at.available else ' ✗ damaged'}"
            f"{f' locked until {moment(at.locked_until)}' if at.locked_until else ''}"
            for name, at in sorted(item.targets.items())
        )
        rows.add_row(
            item.id,
            moment(item.time),
            item.consistency,
            escape(cuts),
            escape(", ".join(item.tags)),
            targets,
        )
    return rows


# ------------------------------------------------------------------ mounts


def mount(
    group: GroupName,
    at: At = "latest",
    member: Annotated[str | None, typer.Option("--member", help="Only this member; else all.")] = None,
    target: FromTarget = None,
    hydrate: Annotated[
        bool, typer.Option("--hydrate/--no-hydrate", help="Copy what is mounted to this host behind its clients.")
    ] = True,
    json: Json = False,
) -> None:
    """Open a checkpoint for use at once: volumes as writable NBD exports, directories as writable mounted folders."""
    with client() as site:
        made = site.mount(group, at=at, member=member, target=target, hydrate=hydrate)
    if json:
        print_json(made)
        return
    if made.note:
        aside().print(f"[yellow]{escape(made.note)}[/yellow]")
    say(f"{made.id}: {made.checkpoint} of {moment(made.checkpoint_time)}")
    for name, where in sorted(made.members.items()):
        say(f"  {name}: {where}")
    say(f"Close it, and drop what was written to it, with: dpac unmount {made.id}")


def unmount(mount_id: Annotated[str, typer.Argument(metavar="MOUNT", help="The mount's id.")]) -> None:
    """Close a mount and drop what was written to it."""
    with client() as site:
        site.unmount(mount_id)
    say(f"{mount_id} is closed.")


def mounts(json: Json = False, limit: Limit = PAGE, cursor: Cursor = None) -> None:
    """What is mounted, how much of it is copied to this host, and what is wrong with it, if anything."""
    with client() as site:
        found, more = page_of(site.mounts(), lambda mount: mount.id, limit, cursor)
    if json:
        print_page(found, more)
        return
    for made in found:  # lines and no table: a URI that is folded cannot be copied
        copied = "" if made.hydrated_fraction is None else f", {int(made.hydrated_fraction * 100)} % copied"
        say(f"{made.id}: {made.group} at {made.checkpoint} of {moment(made.checkpoint_time)}{copied}")
        if made.problem:
            say(f"  [yellow]{escape(made.problem)}[/yellow]")
        for name, where in sorted(made.members.items()):
            say(f"  {name}: {where}")
    say_more(more)
