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
        "* Copies: from declaring the group until its first checkpoint can be recovered, and a whole restore, against backup programs",
        "  that compress with zstd and encrypt too (restic with its defaults; kopia with `--compression=zstd` and parallel upload);",
        "  every time ends when the data is on disk. The source is warm in the page cache for everyone. A volume's data is text,",
        "  database pages and incompressible bytes, a third each, a quarter of it holes; nothing occurs twice. The goal is",
        "  against the best of the peers. The S3 server is versitygw on the same machine.",
        "* Steady writes to a bucket: the age of the newest checkpoint that could be recovered from it, asked ten times a second.",
        "",
        f"Run on {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, by `{command}`.",
        "",
        "| what | dpac | peer | ratio | goal | met |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        digits = 2 if row["unit"] == "s" else 0
        ours = f"{row['ours']:,.{digits}f} {row['unit']}"
        peer = f"{row['peer_name']} {row['peer']:,.{digits}f} {row['unit']}" if row["peer"] is not None else "-"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else "-"
        met = {True: "yes", False: "no", None: "-"}[row["met"]]
        lines.append(f"| {row['name']} | {ours} | {peer} | {ratio} | {row['goal'] or '-'} | {met} |")
    return "\n".join(lines) + "\n"
