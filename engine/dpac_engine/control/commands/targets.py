"""`dpac target`: where copies go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    Cursor,
    Json,
    Limit,
    client,
    console,
    escape,
    page_of,
    print_json,
    print_page,
    say,
    say_more,
    table,
)

app = typer.Typer(help="Where copies go.", no_args_is_help=True)
TargetName = Annotated[str, typer.Argument(metavar="TARGET", help="The target's name.")]


@app.command("list")
def list_targets(json: Json = False, limit: Limit = PAGE, cursor: Cursor = None) -> None:
    """Targets by name."""
    with client() as site:
        found, more = page_of(site.targets(), lambda target: target.name, limit, cursor)
    if json:
        print_page(found, more)
        return
    rows = table("TARGET", "KIND", "PATH", "OWNER", "USED BY")
    for target in found:
        rows.add_row(
            target.name,
            target.spec.kind,
            escape(target.spec.path),
            str(target.owner or "-"),
            ", ".join(target.used_by) or "-",
        )
    console().print(rows)
    say_more(more)


@app.command("check")
def check(target: TargetName, json: Json = False) -> None:
    """Probe what replication needs of a target. Exit status 10 if something is wrong."""
    from dpac_api.errors import Temporary

    with client() as site:
        found = site.check_target(target)
    if json:
        print_json(found)
    else:
        for probe, what in found.checks.items():
            mark = "[green]✓[/green]" if what == "ok" else "[red]✗[/red]"
            console().print(f"{mark} {probe}: {escape(what)}")
    if not found.ok:
        raise Temporary(f"The target {target} does not do all that replication needs. See the probes above.")


@app.command("add")
def add(
    target: TargetName,
    path: Annotated[
        Path, typer.Option("--path", help="A directory on the backend's host; created if its parent exists.")
    ],
    json: Json = False,
) -> None:
    """Create or change a filesystem target. Its owner, if it has one, stays."""
    from pydantic import ValidationError

    from dpac_api.models import FilesystemTargetSpec
    from dpac_engine.control.property_paths import invalid

    try:
        spec = FilesystemTargetSpec(path=str(path.expanduser().absolute()))
    except ValidationError as error:
        raise invalid(error.errors(), None) from None
    with client() as site:
        made = site.put_target(target, spec)
    if json:
        print_json(made)
    else:
        say(f"The target {made.name} is at {made.spec.path}.")


@app.command("delete")
def delete(target: TargetName) -> None:
    """Forget a target; what lies there stays. Refused while a group uses it."""
    with client() as site:
        site.delete_target(target)
    say(f"The target {target} is forgotten; what lies there stays.")
