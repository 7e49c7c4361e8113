"""`dpac files` and `dpac diff`: what a checkpoint holds, and how two differ."""

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
    client,
    console,
    escape,
    moment,
    print_json,
    say,
    say_more,
    size,
    table,
)

if TYPE_CHECKING:
    from dpac_api.models import Change, MemberDifference


def files(
    group: GroupName,
    member: Annotated[str, typer.Option("--member", help="The directory member.")],
    glob: Annotated[
        str | None, typer.Argument(metavar="[GLOB]", help="Only what this means, such as 'etc/*.conf' or '**/*.db'.")
    ] = None,
    at: At = "latest",
    target: FromTarget = None,
    json: Json = False,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> None:
    """List the files of a directory member at a checkpoint."""
    with client() as site:
        page = site.files(group, member=member, at=at, target=target, glob=glob, limit=limit, cursor=cursor)
    if json:
        print_json(page)
        return
    rows = table("SIZE", "CHANGED", "PATH")
    for item in page.items:
        tail = {"directory": "/", "symlink": "@"}.get(item.type, "")
        rows.add_row(size(item.size_bytes), moment(item.mtime), escape(item.path + tail))
    console().print(f"{member} of {page.checkpoint}")
    console().print(rows)
    say_more(page.next_cursor)


def diff(
    group: GroupName,
    before: Annotated[str, typer.Option("--from", metavar="SELECTOR", help="The checkpoint before.")],
    after: Annotated[str, typer.Option("--to", metavar="SELECTOR", help="The checkpoint after.")] = "latest",
    member: Annotated[str | None, typer.Option("--member", help="Only this member; else all.")] = None,
    target: FromTarget = None,
    json: Json = False,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> None:
    """Tell how two checkpoints differ: changed paths of directories, changed ranges of volumes. No data is read for it."""
    with client() as site:
        page = site.difference(
            group, before=before, after=after, member=member, target=target, limit=limit, cursor=cursor
        )
    if json:
        print_json(page)
        return
    say(f"{page.before} to {page.after}")
    for found in page.members:
        say(f"  {found.member}: {change_summary(found)}")
    for change in page.items:
        say(change_line(change))
    say_more(page.next_cursor)


def change_summary(found: MemberDifference) -> str:
    """How much of a member differs, in a few words."""
    if found.kind == "volume":
        return f"{found.changed} ranges changed, {size(found.changed_bytes)}"
    return f"{found.added} added, {found.removed} removed, {found.changed} changed"


def change_line(change: Change) -> str:
    """One change on a line."""
    sign = {"added": "+", "removed": "-", "changed": "~"}[change.what]
    if change.path is None:
        assert change.offset is not None
        assert change.length is not None
        return f"{sign} {change.member}: bytes {change.offset} to {change.offset + change.length}"
    sizes = [size(count) for count in (change.size_before, change.size_after) if count is not None]
    return f"{sign} {change.member}: {change.path} ({' -> '.join(sizes)})"
