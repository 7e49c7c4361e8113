"""`dpac target`: where copies go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    Cursor,
    Json,
    Limit,
    client,
    console,
    escape,
    moment,
    page_of,
    print_json,
    print_page,
    say,
    say_more,
    size,
    table,
)

if TYPE_CHECKING:
    from dpac_api.models import TargetSpec

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
    rows = table("TARGET", "KIND", "WHERE", "OWNER", "USED BY")
    for target in found:
        rows.add_row(
            target.name,
            target.spec.kind,
            escape(target.spec.location),
            str(target.owner or "-"),
            ", ".join(target.used_by) or "-",
        )
    console().print(rows)
    say_more(more)


@app.command("show")
def show(target: TargetName, json: Json = False) -> None:
    """What a target holds, how it is used, and about what that costs a month."""
    with client() as site:
        found, usage = site.target(target), site.target_usage(target)
    if json:
        print_json({"target": found, "usage": usage})
        return
    seen, cost = usage.traffic, usage.monthly_cost
    console().print(f"[bold]{escape(found.name)}[/bold]  {found.spec.kind}  {escape(found.spec.location)}")
    console().print(f"stored {size(usage.stored_bytes)}, used by {escape(', '.join(found.used_by) or 'no group')}")
    console().print(
        f"since {moment(seen.since)}: {seen.write_requests} writes, {seen.read_requests} reads, "
        f"{seen.list_requests} listings, {seen.delete_requests} deletes, {seen.failed_requests} failed; "
        f"{size(seen.sent_bytes)} sent, {size(seen.received_bytes)} received"
    )
    if cost is not None:
        console().print(
            f"about {cost.total:.2f} {cost.currency} a month: storage {cost.storage:.2f}, requests {cost.requests:.2f}, "
            f"egress {cost.egress:.2f}"
        )
    elif found.spec.kind == "s3":
        console().print("cost unknown: declare `prices` for a server of your own (docs/s3.md)")


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
        Path | None, typer.Option("--path", help="A directory on the backend's host; created if its parent exists.")
    ] = None,
    bucket: Annotated[str | None, typer.Option("--bucket", help="A bucket of Amazon S3 or a server like it.")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="S3: every key begins with it.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="S3: the bucket's region.")] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="S3: the server's address; else Amazon S3.")
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option("--storage-class", help="S3: of objects of 128 KiB and more.")
    ] = None,
    path_style: Annotated[
        bool | None,
        typer.Option("--path-style/--host-style", help="S3: the bucket in the path, or in the host name."),
    ] = None,
    credentials: Annotated[
        str | None,
        typer.Option(
            "--credentials",
            help="S3: where the backend's host has the keys: default, environment:PREFIX, profile:NAME, file:/PATH.",
        ),
    ] = None,
    ca_file: Annotated[
        str | None, typer.Option("--ca-file", help="S3: certificates that the server's must be signed by.")
    ] = None,
    proxy: Annotated[str | None, typer.Option("--proxy", help="S3: address of an HTTP proxy.")] = None,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", help="S3: NAME=VALUE, for the estimate of its cost, such as storage_gib_month=0.02."),
    ] = None,
    offsite: Annotated[
        bool | None,
        typer.Option("--offsite/--onsite", help="Whether it lies at another place than the site. Else: S3 does."),
    ] = None,
    object_lock: Annotated[
        str | None,
        typer.Option("--object-lock", help="S3: the bucket has Object Lock; lock by compliance, or governance."),
    ] = None,
    json: Json = False,
) -> None:
    """Create or change a target: give --path or --bucket. Its owner, if it has one, stays."""
    given = {
        "path": str(path.expanduser().absolute()) if path else None,
        "bucket": bucket,
        "prefix": prefix,
        "region": region,
        "endpoint": endpoint,
        "storage_class": storage_class,
        "path_style": path_style,
        "credentials": credentials,
        "ca_file": ca_file,
        "proxy": proxy,
        "offsite": offsite,
        "object_lock": object_lock,
        "prices": _prices(price) if price else None,
    }
    spec = _spec({name: value for name, value in given.items() if value is not None})
    with client() as site:
        made = site.put_target(target, spec)
    if json:
        print_json(made)
    else:
        say(f"The target {made.name} is at {made.spec.location}.")


def _prices(given: list[str]) -> dict[str, str]:
    """`currency=EUR storage_gib_month=0.02` as properties."""
    from dpac_api.errors import Invalid

    for one in given:
        if "=" not in one:
            raise Invalid(f"--price {one}: write NAME=VALUE, such as storage_gib_month=0.02.")
    return dict(one.split("=", 1) for one in given)


def _spec(given: dict[str, Any]) -> TargetSpec:
    """The spec that options describe. Invalid if they do not."""
    from pydantic import ValidationError

    from dpac_api.errors import Invalid
    from dpac_api.models import target_spec_of
    from dpac_engine.control.property_paths import invalid

    if ("path" in given) == ("bucket" in given):
        raise Invalid("A target is a directory or a bucket: give either --path or --bucket.")
    spec = {"kind": "filesystem" if "path" in given else "s3", **given}
    try:
        return target_spec_of(spec)
    except ValidationError as error:
        raise invalid(error.errors(), spec) from None


@app.command("delete")
def delete(target: TargetName) -> None:
    """Forget a target; what lies there stays. Refused while a group uses it."""
    with client() as site:
        site.delete_target(target)
    say(f"The target {target} is forgotten; what lies there stays.")
