"""What every command shares: the client, what is printed as JSON, and how moments and numbers look."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table

    from dpac_api.client import Client
    from dpac_api.models import Group
    from dpac_engine.control.assignment import WorkerAssignment
    from dpac_engine.control.catalogue_rebuild import StoredGroups
    from dpac_engine.control.preseed_kit import PreseedKit
    from dpac_engine.control.site import Site
    from dpac_engine.io.repository import RepositoryWriter

T = TypeVar("T")
PAGE = 100
RETRY_SECONDS = 10.0
"""How long a command tries again while the backend is away."""
_NEVER_WRAPPED = (
    "STATE",
    "CHECKPOINT",
    "TIME",
    "BEGAN",
    "OPERATION",
    "MOUNT",
    "GROUP",
    "LEG",
    "TARGET",
    "RPO",
    "LAG",
    "OF",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, with times in UTC; its shape is stable (docs/cli.md).")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="Items on a page.")]
Cursor = Annotated[
    str | None, typer.Option("--cursor", help="Where the page begins: `next_cursor` of the page before.")
]
GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")]
At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="SELECTOR",
        help="latest, latest-clean, latest-app, tag:NAME, before:TIMESTAMP or a checkpoint's id.",
    ),
]
FromTarget = Annotated[
    str | None, typer.Option("--target", help="Recover from this target; else from any that has it.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait; the work goes on after them.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or print the operation and return.")]
DataFolder = Annotated[
    Path, typer.Option("--data", envvar="DPAC_DATA", file_okay=False, help="The site's data folder.", show_default=True)
]
DATA = Path("~/.local/share/dpac")


@dataclass
class Chosen:
    """What the global options said."""

    site: str | None = None
    stored_groups: Callable[[Site], StoredGroups] | None = None
    """How `dpac catalogue rebuild` reads targets; set by the wiring."""
    open_preseed: Callable[[PreseedKit, WorkerAssignment], RepositoryWriter] | None = None
    """How `dpac target preseed` writes to the target of a kit; set by the wiring."""


chosen = Chosen()


def client() -> Client:
    """The client of the chosen site, by the resolver that the Pulumi provider uses too."""
    from dpac_api.client import Client
    from dpac_api.resolve import resolve

    endpoint = resolve(chosen.site)
    return Client(endpoint, site_uid=endpoint.site_uid, retry_seconds=RETRY_SECONDS)


@cache
def console() -> Console:
    """Where people read."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@cache
def aside() -> Console:
    """Standard error: progress and hints, so that standard output stays what was asked for."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def say(text: str) -> None:
    """A plain line."""
    typer.echo(text)


def table(*columns: str) -> Table:
    """An empty table in the house's style."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in _NEVER_WRAPPED)
    return made


def print_json(value: BaseModel | dict[str, Any] | list[Any]) -> None:
    """One JSON document."""
    typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def page_of(items: Sequence[T], key: Callable[[T], str], limit: int, cursor: str | None) -> tuple[list[T], str | None]:
    """The page of a listing after the item whose key is `cursor`, and the next page's cursor."""
    from dpac_api.errors import Invalid

    keys = [key(item) for item in items]
    if cursor is not None and cursor not in keys:
        raise Invalid(f"There is no item {cursor!r} (any more) to go on from. List again without --cursor.")
    begin = keys.index(cursor) + 1 if cursor is not None else 0
    page = list(items[begin : begin + limit])
    return page, key(page[-1]) if begin + limit < len(items) else None


def print_page(items: Sequence[Any], next_cursor: str | None) -> None:
    """A page of a listing as JSON: `{"items": [...], "next_cursor": ...}`."""
    print_json({"items": list(items), "next_cursor": next_cursor})


def say_more(next_cursor: str | None) -> None:
    """Point to the next page, if there is one."""
    if next_cursor is not None:
        aside().print(f"[dim]There is more: add --cursor {next_cursor}[/dim]")


def moment(at: datetime | None) -> str:
    """A moment as the reader's clock shows it."""
    return "-" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(at: datetime | None, now: datetime | None = None) -> str:
    """How long ago that was."""
    return "-" if at is None else f"{duration(((now or datetime.now(UTC)) - at).total_seconds())} ago"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `4.2 s`, `3 min`, `5 h`, `12 d`."""
    if seconds < 100:
        return f"{max(seconds, 0):.1f} s"
    for unit, unit_seconds, limit in (("min", 60, 100), ("h", 3600, 48)):
        if seconds < limit * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def size(count: int) -> str:
    """Bytes in the largest binary unit that keeps at least one digit before the point."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def labels_of(group: Group) -> str:
    """A group's labels on a line."""
    return ", ".join(f"{key}={value}" for key, value in sorted(group.spec.labels.items())) or "-"


def escape(text: str) -> str:
    """Text from elsewhere, safe from being read as markup."""
    from rich.markup import escape as escape_markup

    return escape_markup(text)
