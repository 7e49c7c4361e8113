"""`dpac policy`: the rules of the policy pack, without Pulumi."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpac_engine.control.commands.session import Json, aside, client, print_json, say

if TYPE_CHECKING:
    from dpac_api.client import Client
    from dpac_policy.configuration import Level
    from dpac_policy.declared import Declared
    from dpac_policy.rules import Finding

app = typer.Typer(help="What every declaration of protection must say (docs/policy.md).", no_args_is_help=True)
DRILLS_READ = 100
"""A group's newest drills; one that passed before so many others failed does not count."""


@app.callback()
def policy() -> None:
    """Keep `check` a command of its own: a typer of one command would become that command."""


@app.command("check")
def check(
    preview: Annotated[
        Path | None,
        typer.Option(
            "--preview",
            metavar="FILE",
            help="Judge what `pulumi preview --json --show-sames` or `pulumi stack export` wrote; - reads standard input. "
            "Else what the site has.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", dir_okay=False, help="Levels and settings, as JSON (docs/policy.md)."),
    ] = None,
    json: Json = False,
) -> None:
    """Judge groups by the rules of the policy pack. The exit status is 1 if a mandatory one is violated."""
    from datetime import UTC, datetime

    from dpac_policy.declared import GROUP, Stack
    from dpac_policy.rules import configuration_of, judge, violated

    configuration = configuration_of({} if config is None else _json_of(config))
    if preview is None:
        with client() as site:
            resources = _at_site(site)
    else:
        from dpac_policy.documents import read_document

        resources = read_document(_text_of(preview))
    stack = Stack(resources, datetime.now(UTC))
    found, groups = judge(stack, configuration), len(stack.of_kind(GROUP))
    failing = len(violated(found))
    if json:
        print_json({"groups": groups, "violated": failing, "findings": [_plain(level, one) for level, one in found]})
    else:
        for level, one in found:
            say(f"{level}{'' if one.known else ', not known yet'}: {one.message}")
        aside().print(f"{_count(groups, 'group')} judged, {_count(failing, 'mandatory violation')}.")
    if failing:
        raise typer.Exit(1)


def _at_site(site: Client) -> list[Declared]:
    from dpac_policy.site import of_site

    groups = {group.name: (group, site.group_status(group.name)) for group in site.groups(lifecycle="active")}
    drills = [drill for name in groups for drill in site.operations(group=name, kind="Drill", limit=DRILLS_READ)]
    return of_site(groups, site.targets(), drills)


def _text_of(file: Path) -> str:
    import sys

    from dpac_api.errors import Invalid

    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise Invalid(f"{file} cannot be read ({error}).") from None


def _json_of(file: Path) -> Any:
    from dpac_api.errors import Invalid

    try:
        return json_module.loads(_text_of(file))
    except ValueError as error:
        raise Invalid(f"{file} is not JSON: {error}.") from None


def _plain(level: Level, finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "level": level.value,
        "known": finding.known,
        "resource": finding.resource.name,
        "urn": finding.resource.urn,
        "property": finding.property_path,
        "problem": finding.problem,
        "fix": finding.fix,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
