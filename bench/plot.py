"""The results as a picture: every ratio beside its goal, and how cost grows.

python -m bench.plot        draws build/bench.json again
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path("build/bench.json")
PICTURE = Path("docs/benchmarks.svg")
_GOOD, _BAD, _PLAIN = "#2a7f62", "#c0392b", "#7f8c8d"
_COLUMNS = 4


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """Write the picture. Ratios are ours/peer, whatever the unit: the arrow of the goal says which side is the better one."""
    os.environ.setdefault("MPLCONFIGDIR", str(Path("build/matplotlib").resolve()))
    import matplotlib

    matplotlib.use("svg")
    # The same results make the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "dpac", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    ratios = [row for row in rows if row["ratio"]]
    series = _series(rows)
    ratio_inches = 0.32 * len(ratios) + 0.6 if ratios else 0.0
    lines = -(-len(series) // _COLUMNS)
    figure = pyplot.figure(figsize=(12, max(2.0, ratio_inches + 2.2 * lines)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[max(ratio_inches, 0.01), max(2.2 * lines, 0.01)])
    upper, lower = parts
    if ratios:
        _draw_ratios(upper.subplots(), ratios)
    if series:
        axes = lower.subplots(lines, _COLUMNS, squeeze=False).flatten()
        for axis, (name, found) in zip(axes, series.items(), strict=False):
            _draw_series(axis, name, found)
        for axis in axes[len(series) :]:
            axis.set_visible(False)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _series(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["axis"]:
            found[row["name"]].append(row)
    return dict(found)


def _draw_ratios(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows))
    colours = [{True: _GOOD, False: _BAD, None: _PLAIN}[row["met"]] for row in rows]
    axis.barh(places, [row["ratio"] for row in rows], color=colours, height=0.6)
    for place, row in zip(places, rows, strict=True):
        if row["goal"]:
            goal = float(row["goal"].split()[1])
            axis.plot([goal, goal], [place - 0.42, place + 0.42], color="black", linewidth=1.4)
            axis.annotate(f" {row['goal']}", (max(goal, row["ratio"]), place), va="center", fontsize=7)
    axis.set_yticks(places, [textwrap.shorten(f"{row['name']} / {row['peer_name']}", 90) for row in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color=_PLAIN, linewidth=0.6)
    axis.set_xlabel("dpac / peer; green: the goal (black line) is met, red: it is not, grey: there is none")


def _draw_series(axis: Any, name: str, rows: Sequence[dict[str, Any]]) -> None:
    axis.plot([row["at"] for row in rows], [row["ours"] for row in rows], marker="o", color=_GOOD, markersize=3)
    axis.set_title("\n".join(textwrap.wrap(name, 38)), fontsize=8)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(rows[0]["axis"], fontsize=7)
    axis.set_ylabel(rows[0]["unit"], fontsize=7)


def main() -> int:
    """Draw what the last run found."""
    if not RESULTS.exists():
        print(f"{RESULTS} is not there: run `make bench` first.", file=sys.stderr)
        return 2
    draw(json.loads(RESULTS.read_text()), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
