"""Waiting for an operation while showing where it is."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING

import typer

from dpac_engine.control.commands.session import aside, duration, escape, print_json, say, size

if TYPE_CHECKING:
    from rich.status import Status

    from dpac_api.client import Client
    from dpac_api.models import Operation, OperationStep

WAIT_SECONDS = 24 * 3600.0
LINE_SECONDS = 10.0
"""How often progress is told where lines do not move."""


def _told(step: OperationStep) -> str:
    """How far the step is, how fast, and how long it will take."""
    found = step.progress
    if found is None:
        return step.message
    share = f" of {size(found.total_bytes)}" if found.total_bytes is not None else ""
    left = f", {duration(found.remaining_seconds)} left" if found.remaining_seconds is not None else ""
    return f"{size(found.done_bytes)}{share}, {size(int(found.bytes_per_second))}/s{left}"


def wait(client: Client, operation: Operation, timeout_seconds: float) -> Operation:
    """The operation once it has ended. Steps are told on standard error as they end, or as one moving line."""
    told: set[int] = set()
    lines = [monotonic()]
    live = sys.stderr.isatty()
    shown: AbstractContextManager[Status | None] = (
        aside().status(f"{operation.kind} of {operation.group}") if live else nullcontext(None)
    )
    with shown as status:

        def watch(now: Operation) -> None:
            for index, step in enumerate(now.steps):
                if step.state in ("done", "failed") and index not in told:
                    told.add(index)
                    mark = "[green]✓[/green]" if step.state == "done" else "[red]✗[/red]"
                    tail = f": {escape(step.message)}" if step.message else ""
                    aside().print(f"{mark} {escape(step.name)}{tail}")
                if step.state == "running" and status is not None:
                    status.update(f"{escape(step.name)} {escape(_told(step))}")
            if status is None and now.progress is not None and monotonic() - lines[-1] >= LINE_SECONDS:
                lines.append(monotonic())
                aside().print("; ".join(_told(step) for step in now.steps if step.state == "running"))

        return client.wait(operation.id, timeout_seconds=timeout_seconds, watch=watch)


def finish(site: Client, operation: Operation, *, waits: bool, timeout: float, json: bool) -> Operation:
    """The ended operation; without waiting the command ends here."""
    if not waits:
        if json:
            print_json(operation)
        else:
            say(f"{operation.id} has begun: dpac operation show {operation.id}")
        raise typer.Exit
    return wait(site, operation, timeout)


def raise_failure(operation: Operation) -> None:
    """Raise what the operation failed of."""
    from dpac_api.errors import DpacError
    from dpac_api.models import Phase

    if operation.phase == Phase.FAILED:
        raise DpacError(operation.error or f"{operation.kind} {operation.id} failed.")
