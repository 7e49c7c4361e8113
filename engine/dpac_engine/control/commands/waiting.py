"""Waiting for an operation while showing where it is."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from dpac_engine.control.commands.session import aside, escape

if TYPE_CHECKING:
    from rich.status import Status

    from dpac_api.client import Client
    from dpac_api.models import Operation

WAIT_SECONDS = 24 * 3600.0


def wait(client: Client, operation: Operation, timeout_seconds: float) -> Operation:
    """The operation once it has ended. Steps are told on standard error as they end, or as one moving line."""
    told: set[int] = set()
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
                    status.update(f"{escape(step.name)} {escape(step.message)}")

        return client.wait(operation.id, timeout_seconds=timeout_seconds, watch=watch)
