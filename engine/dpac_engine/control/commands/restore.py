"""`dpac restore`: one member as it was, at a new path or over what it holds now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpac_engine.control.commands.browsing import change_line, change_summary
from dpac_engine.control.commands.session import (
    At,
    FromTarget,
    GroupName,
    Json,
    Timeout,
    Wait,
    aside,
    client,
    escape,
    print_json,
    say,
    size,
)
from dpac_engine.control.commands.waiting import WAIT_SECONDS, finish, raise_failure

if TYPE_CHECKING:
    from dpac_api.models import DifferencePage, RestoreReport

SHOWN_MAX = 10
"""Changes listed before somebody is asked."""


def restore(
    group: GroupName,
    member: Annotated[str, typer.Option("--member", help="The member to restore.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="A path on the backend's host that does not exist yet, or an empty folder."),
    ] = None,
    over: Annotated[
        bool,
        typer.Option(
            "--over", help="Volumes: --to is an image or disk that is there; only what differs is fetched and written."
        ),
    ] = False,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place", help="Bring the member itself back, after a safety checkpoint of what it holds now."
        ),
    ] = False,
    at: At = "latest",
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path", metavar="GLOB", help="Directories: only what this means, such as 'etc/*.conf'; may be repeated."
        ),
    ] = None,
    target: FromTarget = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --in-place: show what would change, and change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --in-place: do not ask.")] = False,
    force_disconnect: Annotated[
        bool,
        typer.Option(
            "--force-disconnect", help="With --in-place: also while something uses the member; clients are dropped."
        ),
    ] = False,
    waits: Wait = True,
    timeout: Timeout = WAIT_SECONDS,
    json: Json = False,
) -> None:
    """Write one member, as it was at a checkpoint, to a new path, or over itself with --in-place."""
    from dpac_api.models import RestoreReport

    _check(to, in_place=in_place, over=over, paths=bool(path), only_in_place=dry_run or yes or force_disconnect)
    with client() as site:
        if in_place:
            page = site.difference(group, before="latest", after=at, member=member, target=target, limit=SHOWN_MAX)
            at = page.after  # what was shown is what is done, whatever the selector means by then
            if dry_run or not yes:
                _show(page, group, json=json and dry_run)
            if dry_run:
                return
            if not yes:
                typer.confirm(f"Bring {member} of {group} back to {at}?", abort=True, err=True)
        begun = site.restore(
            group,
            member=member,
            to=None if to is None else str(to.expanduser().absolute()),
            at=at,
            target=target,
            paths=path or (),
            over=over,
            in_place=in_place,
            force_disconnect=force_disconnect,
        )
        operation = finish(site, begun, waits=waits, timeout=timeout, json=json)
    if json:
        print_json(operation)
    raise_failure(operation)
    if not json:
        _say_done(RestoreReport.model_validate(operation.result), group)


def _check(to: Path | None, *, in_place: bool, over: bool, paths: bool, only_in_place: bool) -> None:
    from dpac_api.errors import Invalid

    if over and (in_place or paths):
        raise Invalid("--over goes with --to alone: a whole volume over what lies there.")

    if in_place == (to is not None):
        raise Invalid("Say where to: `--to PATH`, a new path, or `--in-place`, over what the member holds now.")
    if in_place and paths:
        raise Invalid(
            "In place a member comes back whole. Restore single paths with `--to` to a new path, and copy them."
        )
    if only_in_place and not in_place:
        raise Invalid("--dry-run, --yes and --force-disconnect go with --in-place: a new path has nothing to lose.")


def _show(page: DifferencePage, group: str, *, json: bool) -> None:
    """From the newest checkpoint to the one that is meant: what going back changes."""
    if json:
        print_json(page)
        return
    tell = aside().print
    tell(f"From {page.before}, the newest checkpoint there, back to {page.after}:")
    for found in page.members:
        tell(escape(f"  {found.member}: {change_summary(found)}"))
    for change in page.items:
        tell(escape(f"  {change_line(change)}"))
    if page.next_cursor is not None:
        tell(f"  and more: dpac diff {group} --from {page.before} --to {page.after}")


def _say_done(report: RestoreReport, group: str) -> None:
    took = f"in {report.seconds:.1f} s"
    if report.safety_tag is None:
        kept = f", {size(report.bytes_kept)} were there" if report.bytes_kept else ""
        say(f"{report.member} of {report.checkpoint} is in {report.to}: {size(report.bytes_written)} {took}{kept}")
        return
    parts = [f"{size(report.bytes_written)} written"]
    parts += [f"{size(report.bytes_zeroed)} zeroed"] if report.bytes_zeroed else []
    parts += [f"{report.paths_written} paths"] if report.paths_written else []
    parts += [f"{report.paths_removed} paths removed"] if report.paths_removed else []
    say(f"{report.member} is as it was at {report.checkpoint}: {', '.join(parts)} {took}")
    say(f"To undo: dpac restore {group} --member {report.member} --in-place --at tag:{report.safety_tag}")
