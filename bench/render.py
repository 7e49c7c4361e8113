"""The results as a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


def render(rows: Sequence[dict[str, Any]], command: str) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: ours and the peers in one run on one machine, interleaved and repeated, medians.",
        "Compare the ratios (ours/peer); single figures are the machine's.",
        "",
        "* Writes: a protected volume with an async leg to a file system on the same disk (sealing, compressing and encrypting",
        "  meanwhile), against NBD servers that protect nothing.",
        "* Latency: the p99 of writes at a steady rate, protected and by the same server with its journal off (`bench/unjournalled.py`), and of eight",
        "  volumes that are marked every second.",
        "* Copies: from declaring the group until its first checkpoint can be recovered, and a whole restore, against backup programs",
        "  that compress with zstd and encrypt too (restic with its defaults; kopia with `--compression=zstd` and parallel upload);",
        "  every time ends when the data is on disk. The source is warm in the page cache for everyone. A volume's data is text,",
        "  database pages and incompressible bytes, a third each, a quarter of it holes; nothing occurs twice. The goal is",
        "  against the best of the peers. The S3 server is versitygw on the same machine.",
        "* Steady writes to a bucket: the age of the newest checkpoint that could be recovered from it, asked ten times a second.",
        "* SQLite: dpac captures the directory of a database under the blueprint `sqlite`, litestream follows its log; both to a folder.",
        "  Restores are tried one after another from the last COMMIT on until one has it.",
        "* `pulumi up`: as many groups as resources of a dynamic provider that does nothing, the same state backend and settings.",
        "* Series: each on a backend of its own. CPU and memory (PSS) are of all its processes, from /proc.",
        "",
        "Not here: the FLUSH latency that a sync leg adds at a round-trip time of 2 and 10 ms. It takes a link that delays, and this",
        "kernel may have none (netem).",
        "",
        "![Ratios and series](benchmarks.svg)",
        "",
        f"Run on {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, by `{command}`.",
        "",
        "| what | dpac | peer | ratio | goal | met |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        if row["axis"]:
            continue
        digits = 2 if row["unit"] in ("s", "ms") else 0
        ours = f"{row['ours']:,.{digits}f} {row['unit']}"
        peer = f"{row['peer_name']} {row['peer']:,.{digits}f} {row['unit']}" if row["peer"] is not None else "-"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else "-"
        met = {True: "yes", False: "no", None: "-"}[row["met"]]
        lines.append(f"| {row['name']} | {ours} | {peer} | {ratio} | {row['goal'] or '-'} | {met} |")
    return "\n".join([*lines, *_series(rows)]) + "\n"


def _series(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How cost grows: a table for each axis, a line for each series."""
    lines: list[str] = []
    for axis in dict.fromkeys(row["axis"] for row in rows if row["axis"]):
        mine = [row for row in rows if row["axis"] == axis]
        places = sorted({row["at"] for row in mine})
        lines += ["", f"| {axis} | " + " | ".join(f"{at:,.0f}" for at in places) + " | goal | met |"]
        lines += ["|---|" + "---:|" * len(places) + "---|---|"]
        for name in dict.fromkeys(row["name"] for row in mine):
            found = {row["at"]: row for row in mine if row["name"] == name}
            cells = [f"{found[at]['ours']:,.3g} {found[at]['unit']}".strip() if at in found else "-" for at in places]
            judged = [row for row in found.values() if row["goal"]]
            goal = f"{judged[0]['goal']} at {judged[0]['at']:,.0f}" if judged else "-"
            met = {True: "yes", False: "no", None: "-"}[judged[0]["met"] if judged else None]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {goal} | {met} |")
    return lines
