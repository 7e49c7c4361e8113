"""A target's checkpoints as a line of text: where there are some, where there is a gap, where tags are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from dpac_api.models import CheckpointRange
from dpac_engine.control.commands.session import duration, moment

GAP_SECONDS = 5.0
"""Checkpoints come about one a second; a longer pause between two runs is a gap."""


def draw(target: str, ranges: Sequence[CheckpointRange], tags: Sequence[tuple[str, datetime]], width: int) -> list[str]:
    """The lines of one target's timeline, `width` columns wide at most; runs must be of that target."""
    runs = sorted(ranges, key=lambda run: run.first_time)
    begin, end = runs[0].first_time, max(run.last_time for run in runs)
    columns = max(20, min(width, 100) - 4)
    count = sum(run.count for run in runs)
    app = sum(run.app_consistent for run in runs)
    heading = (
        f"{target}: {count} checkpoints, {app} application-consistent, over {duration((end - begin).total_seconds())}"
    )
    lines = [heading, f"  {_bar(runs, begin, end, columns)}"]
    if tags:
        lines.append(f"  {_markers(tags, begin, end, columns)}")
        lines += [f"    ▲ {tag}  {moment(at)}" for tag, at in sorted(tags, key=lambda pair: pair[1])]
    first, last = moment(begin), f"{moment(end)} (newest: {runs[-1].last})"
    lines.append(f"  {first}{last:>{max(len(last) + 2, columns - len(first))}}")
    lines += [
        f"  gap: {moment(before)} to {moment(after)} ({duration((after - before).total_seconds())})"
        for before, after in gaps(runs)
    ]
    return lines


def gaps(runs: Sequence[CheckpointRange]) -> list[tuple[datetime, datetime]]:
    """Where nothing can be recovered between two runs, oldest first."""
    found = []
    for before, after in pairwise(runs):
        if after.first_time - before.last_time > timedelta(seconds=GAP_SECONDS):
            found.append((before.last_time, after.first_time))
    return found


def _bar(runs: Sequence[CheckpointRange], begin: datetime, end: datetime, columns: int) -> str:
    cells = ["·"] * columns
    for run in runs:
        for column in range(
            _column(run.first_time, begin, end, columns), _column(run.last_time, begin, end, columns) + 1
        ):
            cells[column] = "█"
    return "".join(cells)


def _markers(tags: Sequence[tuple[str, datetime]], begin: datetime, end: datetime, columns: int) -> str:
    cells = [" "] * columns
    for _, at in tags:
        cells[_column(at, begin, end, columns)] = "▲"
    return "".join(cells).rstrip()


def _column(at: datetime, begin: datetime, end: datetime, columns: int) -> int:
    span = (end - begin).total_seconds()
    share = (at - begin).total_seconds() / span if span > 0 else 1.0
    return min(columns - 1, max(0, int(share * columns)))
