"""`make bench`: ours and the peers in one run on one machine, interleaved; build/bench.json and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench import backup_programs, disk, peers
from bench.backend import backend
from bench.copies import copy_rows, tree_source, volume_source
from bench.latency import latency_rows
from bench.mounts import mount_rows
from bench.places import Folder, bucket
from bench.plot import PICTURE, RESULTS, draw
from bench.pulumi_up import pulumi_rows
from bench.render import render
from bench.resync import resync_rows
from bench.row import Row
from bench.scaling import scaling_rows
from bench.sqlite import sqlite_rows
from bench.steady import steady_rows
from bench.writes import write_rows
from dpac_api.client import Client

PARTS = ("writes", "latency", "mount", "volume", "tree", "steady", "resync", "sqlite", "pulumi", "scaling")


def main() -> int:
    """Run what is asked for and write the results."""
    arguments = _arguments()
    lacking = peers.missing_tools() + backup_programs.missing_tools()
    if lacking:
        print(
            f"bench needs {', '.join(lacking)}: run `make bench`, as root on Debian to install packages.",
            file=sys.stderr,
        )
        return 2
    build = Path("build")
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder or build, prefix="b") as name:
        folder = Path(name).resolve()
        rows: list[Row] = []
        with backend(folder) as client:
            for row in _rows(client, folder, arguments):
                rows.append(row)
                print(row, flush=True)
                # After each: a run that ends early has told what it found.
                found = [asdict(row) for row in rows]
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if tuple(arguments.only) == PARTS:
        draw(found, PICTURE)
        Path("docs/benchmarks.md").write_text(render(found, " ".join(["python -m bench", *sys.argv[1:]])))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="of a short load")
    parser.add_argument("--long-seconds", type=int, default=60, help="of a load that drains")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of short loads and of copies")
    parser.add_argument("--volume-gib", type=float, default=4, help="size of the volume that is copied")
    parser.add_argument("--files", type=int, default=95_000, help="small files that are copied")
    parser.add_argument("--groups", type=int, default=1000, help="of `pulumi up`, and most of the series")
    parser.add_argument("--records", type=float, default=1e7, help="most of the history's series")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter: within 15 minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts; the page stays as it is")
    parser.add_argument("--folder", type=Path, help="where disks and copies lie; else a temporary folder under build/")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.long_seconds, arguments.repeats = 5, 15, 1
        arguments.volume_gib, arguments.files = 0.5, 5000
        arguments.groups, arguments.records = 100, 1e5
    return arguments


def _rows(client: Client, folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    only, repeats = arguments.only, arguments.repeats
    copies = Folder(folder / "copies")
    copies.root.mkdir()
    if "writes" in only:
        yield from write_rows(client, folder, arguments.seconds, arguments.long_seconds, repeats)
    if "latency" in only:
        yield from latency_rows(client, folder, arguments.seconds, repeats)
    if "resync" in only:
        yield from resync_rows(client, folder, copies)
    with bucket(folder / "s3") as server:
        if "mount" in only:
            for place in (copies, server):
                yield from mount_rows(client, folder, place, arguments.files)
        if "volume" in only:
            yield from disk.write_rows(folder)
            volume = volume_source(folder, int(arguments.volume_gib * 2**30))
            for place in (copies, server):
                yield from copy_rows(client, folder, place, volume, repeats)
            volume.path.unlink()
        if "tree" in only:
            yield disk.create_row(folder)
            tree = tree_source(folder, arguments.files)
            for place in (copies, server):
                yield from copy_rows(client, folder, place, tree, repeats)
        if "steady" in only:
            yield from steady_rows(client, folder, server, arguments.long_seconds)
    if "sqlite" in only:
        yield from sqlite_rows(client, folder, arguments.long_seconds, repeats)
    if "pulumi" in only:
        yield from pulumi_rows(folder, arguments.groups)
    if "scaling" in only:
        counts = [count for count in (1, 10, 100, 1000) if count <= arguments.groups]
        records = [int(count) for count in (1e5, 1e6, 1e7) if count <= arguments.records]
        yield from scaling_rows(folder, groups=counts, records=records)


if __name__ == "__main__":
    sys.exit(main())
