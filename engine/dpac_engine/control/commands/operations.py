"""`dpac drill`, `verify` and `operation`: verbs that take their time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    At,
    Cursor,
    FromTarget,
    Json,
    Limit,
    Timeout,
    Wait,
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
    size,
    table,
)
from dpac_engine.control.commands.waiting import WAIT_SECONDS, finish, raise_failure, wait

if TYPE_CHECKING:
    from dpac_api.models import DrillReport, Operation, VerifyFinding, VerifyReport

app = typer.Typer(help="Drills, restores, verifications and checkpoints, past and present.", no_args_is_help=True)


# ------------------------------------------------------------------ drill


def drill(
    group: Annotated[
        str | None, typer.Argument(metavar="[GROUP]", help="The group's name; not with --verify-report.")
    ] = None,
    at: At = "latest",
    target: FromTarget = None,
    rto: Annotated[
        str | None, typer.Option("--rto", metavar="DURATION", help="Fail if it takes longer, such as 5m.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", dir_okay=False, help="Write the signed report to this file, as JSON.")
    ] = None,
    verify_report: Annotated[
        Path | None,
        typer.Option("--verify-report", dir_okay=False, help="Check the signature of a report file instead."),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", metavar="BASE64", help="With --verify-report: the site's key it must be of."),
    ] = None,
    waits: Wait = True,
    timeout: Timeout = WAIT_SECONDS,
    json: Json = False,
) -> None:
    """Rehearse recovery from a target without touching the application; leaves a signed report."""
    from dpac_api.errors import Invalid

    if verify_report is not None:
        _verify_report(verify_report, public_key, json)
        return
    if group is None:
        raise Invalid("Name the group to drill, or a report to check with --verify-report.")
    with client() as site:
        begun = site.drill(group, at=at, target=target, rto=_duration(rto))
        operation = finish(site, begun, waits=waits, timeout=timeout, json=json)
    if report is not None and operation.result:
        _write(report, operation.result)
    _show_drill(operation, json)
    raise_failure(operation)


def _duration(text: str | None) -> Any:
    from dpac_api.errors import Invalid
    from dpac_api.quantities import Duration

    try:
        return None if text is None else Duration.parse(text)
    except ValueError as error:
        raise Invalid(f"--rto: {error}.") from None


def _write(path: Path, result: dict[str, Any]) -> None:
    import json

    from dpac_api.errors import Invalid

    try:
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise Invalid(
            f"The report cannot be written to {path} ({error.strerror}). `dpac operation list` has it still."
        ) from None


def _show_drill(operation: Operation, json: bool) -> None:
    from dpac_api.models import DrillReport

    if json:
        print_json(operation)
    elif operation.result:
        _print_report(DrillReport.model_validate(operation.result))


def _print_report(report: DrillReport) -> None:
    verdict = "[green]passed[/green]" if report.passed else "[red]failed[/red]"
    console().print(
        f"Drill of {report.group} {verdict}: {report.checkpoint} of {moment(report.checkpoint_time)} from {report.target}"
    )
    goal = f" (goal {report.rto_goal_seconds:g} s)" if report.rto_goal_seconds else ""
    console().print(
        f"RPO {report.rpo_seconds:.1f} s, RTO {report.rto_seconds:.1f} s{goal}, {report.consistency}-consistent"
    )
    rows = table("MEMBER", "OPEN AFTER", "READ", "CHECKS")
    for name, member in report.members.items():
        checks = "; ".join(f"{check}: {found}" for check, found in member.checks.items())
        rows.add_row(name, f"{member.opened_seconds:.2f} s", size(member.checked_bytes), escape(checks))
    console().print(rows)
    for finding in report.findings:
        console().print(f"[red]✗[/red] {escape(finding)}")


def _verify_report(path: Path, public_key: str | None, json: bool) -> None:
    from pydantic import ValidationError

    from dpac_api.errors import Invalid
    from dpac_api.models import DrillReport
    from dpac_engine.control.drill_report import check

    try:
        report = DrillReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        raise Invalid(f"{path} is not a drill report: {error.errors()[0]['msg']}.") from None
    check(report, public_key)
    if json:
        print_json(
            {"valid": True, "public_key": report.public_key, "passed": report.passed, "site_uid": report.site_uid}
        )
        return
    say(f"The signature is sound: site {report.site_uid}, key {report.public_key}.")
    _print_report(report)


# ------------------------------------------------------------------ verify


def verify(
    group: Annotated[str | None, typer.Argument(metavar="[GROUP]", help="The group's name; else every group.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="Only this target; else every leg's.")] = None,
    waits: Wait = True,
    timeout: Timeout = WAIT_SECONDS,
    json: Json = False,
) -> None:
    """Read back what the targets hold and check every byte. Exit status 20 if anything is damaged."""
    from dpac_api.errors import Corruption
    from dpac_api.models import VerifyReport

    with client() as site:
        names = [group] if group else [found.name for found in site.groups()]
        begun = [site.verify(name, target=target) for name in names]
        if not waits and json:
            print_page(begun, None)
        elif not waits:
            for operation in begun:
                say(f"{operation.id} has begun: dpac operation show {operation.id}")
        if not waits:
            return
        ended = [wait(site, operation, timeout) for operation in begun]
    if json:
        print_json(ended[0]) if group else print_page(ended, None)
    reports = [VerifyReport.model_validate(operation.result) for operation in ended if operation.result]
    for operation, report in zip(ended, reports, strict=False):
        if not json:
            _print_verification(operation.group, report)
    damaged = sum(len(report.findings) for report in reports)
    if damaged:
        objects = "1 object is damaged. Keep it" if damaged == 1 else f"{damaged} objects are damaged. Keep them"
        raise Corruption(
            f"{objects} for analysis, and recover from a checkpoint that is not affected or from another target."
        )
    for operation in ended:
        raise_failure(operation)


def _print_verification(group: str, report: VerifyReport) -> None:
    through = (
        ", ".join(f"{target} through {checkpoint}" for target, checkpoint in report.verified_through.items())
        or "nothing"
    )
    console().print(
        f"{group}: {report.objects} objects, {size(report.bytes_read)} read, {report.checkpoints} checkpoints; proven: {through}"
    )
    for finding in report.findings:  # lines and no table: an object's name is long, and must be there in full
        say(f"  {finding.target}: {finding.object}: {finding.problem}")
        say(f"    checkpoints that need it: {_affected(finding)}")
        for part in finding.members:
            what = [f"bytes {found.offset} to {found.offset + found.length}" for found in part.ranges] + part.paths
            more = f" and {part.more} more" if part.more else ""
            say(f"    it holds of {part.member}: {', '.join(what)}{more}")
    for spare in report.spares:
        say(f"  {spare.target}: {spare.object} can go: {spare.reason}")


def _affected(finding: VerifyFinding) -> str:
    if not finding.checkpoints:
        return "none"
    runs = ", ".join(
        f"{run.first or 'the oldest'} to {run.last or 'the newest'}{' and later ones' if run.open_ended else ''}"
        for run in finding.checkpoints
    )
    return runs if finding.exact else f"{runs} (at most: what was lost cannot be told exactly)"


# ------------------------------------------------------------------ operations


@app.command("list")
def list_operations(
    group: Annotated[str | None, typer.Option("--group", help="Only of this group.")] = None,
    kind: Annotated[
        Literal["Drill", "Restore", "Verify", "Checkpoint", "Pause", "Resume", "Resync"] | None,
        typer.Option("--kind", help="Only of this kind."),
    ] = None,
    json: Json = False,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> None:
    """Operations, newest first; the newest thousand can be paged through."""
    with client() as site:
        found, more = page_of(
            site.operations(group=group, kind=kind, limit=1000), lambda operation: operation.id, limit, cursor
        )
    if json:
        print_page(found, more)
        return
    rows = table("OPERATION", "KIND", "GROUP", "PHASE", "BEGAN", "")
    for operation in found:
        rows.add_row(
            operation.id,
            operation.kind,
            operation.group,
            operation.phase,
            moment(operation.created),
            escape(operation.error or ""),
        )
    console().print(rows)
    say_more(more)


@app.command("show")
def show(
    operation_id: Annotated[str, typer.Argument(metavar="OPERATION", help="The operation's id.")],
    json: Json = False,
) -> None:
    """One operation: its plan, where it is, and what came of it."""
    with client() as site:
        operation = site.operation(operation_id)
    if json:
        print_json(operation)
        return
    console().print(
        f"[bold]{operation.id}[/bold]  {operation.kind} of {operation.group}  {operation.phase}  {moment(operation.created)}"
    )
    rows = table("STEP", "STATE", "")
    for step in operation.steps:
        rows.add_row(escape(step.name), step.state, escape(step.message))
    console().print(rows)
    if operation.error:
        aside().print(f"[red]{escape(operation.error)}[/red]")
    if operation.result:
        print_json(operation.result)
