"""`dpac group`: what is declared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    Cursor,
    GroupName,
    Json,
    Limit,
    client,
    console,
    labels_of,
    page_of,
    print_json,
    print_page,
    say,
    say_more,
    table,
)

app = typer.Typer(help="Protection groups as they are declared.", no_args_is_help=True)
Retained = Annotated[bool, typer.Option("--retained", help="Those deleted whose recovery points are kept.")]


@app.command("list")
def list_groups(retained: Retained = False, json: Json = False, limit: Limit = PAGE, cursor: Cursor = None) -> None:
    """Groups by name."""
    with client() as site:
        found = site.groups(lifecycle="retained" if retained else "active")
    groups, more = page_of(found, lambda group: group.name, limit, cursor)
    if json:
        print_page(groups, more)
        return
    rows = table("GROUP", "LIFECYCLE", "OWNER", "MEMBERS", "TARGETS", "LABELS")
    for group in groups:
        targets = ", ".join(leg.target for leg in group.spec.replication.values())
        rows.add_row(
            group.name,
            group.lifecycle,
            str(group.owner or "-"),
            ", ".join(group.spec.members),
            targets,
            labels_of(group),
        )
    console().print(rows)
    say_more(more)


@app.command("show")
def show(group: GroupName, retained: Retained = False, json: Json = False) -> None:
    """One group: its spec, as `apply` takes it, and where its members are served."""
    with client() as site:
        found = site.group(group, retained=retained)
    if json:
        print_json(found)
        return
    import yaml

    console().print(
        f"[bold]{found.name}[/bold]  {found.lifecycle}  epoch {found.epoch}  owner {found.owner or '-'}  uid {found.uid}"
    )
    for name, member in found.members.items():
        if member.nbd_uri:
            console().print(f"  {name}: {member.nbd_uri}", soft_wrap=True)
    say("")
    document = {"name": found.name, **found.spec.model_dump(mode="json", exclude_none=True)}
    say(yaml.safe_dump(document, sort_keys=False).rstrip())


@app.command("apply")
def apply(
    file: Annotated[
        Path, typer.Option("--file", "-f", help="YAML or JSON: `name`, and the spec's fields; - reads standard input.")
    ],
    json: Json = False,
) -> None:
    """Create, change or resume the group that a file declares. Its owner, if it has one, stays."""
    name, spec = _read(file)
    with client() as site:
        group = site.put_group(name, spec)
    if json:
        print_json(group)
        return
    say(f"The group {group.name} is declared (generation {group.generation}).")
    for member, outputs in group.members.items():
        say(f"  {member}: {outputs.nbd_uri or outputs.path}")


def _read(file: Path) -> tuple[str, Any]:
    import sys

    import yaml
    from pydantic import ValidationError

    from dpac_api.errors import Invalid
    from dpac_api.models import GroupSpec
    from dpac_engine.control.property_paths import invalid

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        document = yaml.safe_load(text)
    except OSError as error:
        raise Invalid(f"{file} cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise Invalid(f"{file} is neither YAML nor JSON: {error}.") from None
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise Invalid(
            f"{file} declares no group: it needs a `name` beside the spec's fields (`dpac group show NAME` prints one)."
        )
    spec = document["spec"] if "spec" in document else {key: value for key, value in document.items() if key != "name"}
    try:
        return document["name"], GroupSpec.model_validate(spec)
    except ValidationError as error:
        raise invalid(error.errors(), spec) from None


@app.command("delete")
def delete(
    group: GroupName,
    on_destroy: Annotated[
        Literal["retain", "expire", "purge"] | None,
        typer.Option("--on-destroy", help="What becomes of the recovery points; else as the group's spec says."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before recovery points are deleted.")] = False,
) -> None:
    """Stop protecting a group. Recovery points are kept unless it says purge, or expire."""
    with client() as site:
        found = site.group(group, retained=True)
        fate = on_destroy or found.spec.on_destroy
        if fate == "purge" and not yes:
            typer.confirm(f"Delete every recovery point of {group} at every target, for good?", abort=True)
        site.delete_group(group, on_destroy=fate)
    kept = {
        "retain": "its recovery points are kept",
        "expire": "its recovery points will age out",
        "purge": "its recovery points are being deleted",
    }
    say(f"The group {group} is no longer protected; {kept[fate]}.")
