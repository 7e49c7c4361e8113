"""The data path against NBD servers that protect nothing."""

from __future__ import annotations

import itertools
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import peers
from bench.backend import OWNER, wait_for
from bench.load import Load, Result, run
from bench.row import Row
from dpac_api.client import Client
from dpac_api.models import FilesystemTargetSpec, GroupSpec

GIB = 2**30
_NUMBERS = itertools.count()


@contextmanager
def protected(client: Client, folder: Path, name: str, size: str, history: str = "1h") -> Iterator[str]:
    """A protected volume with an async leg; its NBD URI."""
    client.put_target(name, FilesystemTargetSpec(path=str(folder / f"copies-{name}")), owner=OWNER)
    spec = GroupSpec.model_validate(
        {
            "members": {"disk": {"kind": "volume", "path": str(folder / f"{name}.raw"), "size": size}},
            "replication": {"copies": {"target": name, "rpo": "15s"}},
            "journal": {"history": history, "size_max": "64GiB", "spool_max": "4GiB"},
        }
    )
    group = client.put_group(name, spec, owner=OWNER)
    wait_for(f"{name} protected", lambda: client.group_status(name).protected)
    try:
        yield group.members["disk"].nbd_uri
    finally:
        client.delete_group(name)
        (folder / f"{name}.raw").unlink(missing_ok=True)
        shutil.rmtree(folder / f"copies-{name}", ignore_errors=True)


def write_rows(client: Client, folder: Path, seconds: int, long_seconds: int, repeats: int) -> Iterator[Row]:
    """Writes against nbdkit's file plugin and qemu-nbd, interleaved."""
    loads = [
        (Load("4 KiB random writes, qd32", "randwrite", "4k", 32, seconds), ">= 1.0", 1.0),
        (Load(f"the same for {long_seconds} s, final FLUSH counted", "randwrite", "4k", 32, long_seconds, drain=True), ">= 0.45", 0.45),
        (Load("4 KiB random writes with a FLUSH every 16", "randwrite", "4k", 32, seconds, fsync_every=16), ">= 1.0", 1.0),
        (Load(f"1 MiB writes, qd8, {long_seconds} s with FLUSH", "write", "1m", 8, long_seconds, drain=True), ">= 0.45", 0.45),
    ]  # fmt: skip
    for load, goal, least in loads:
        size = 4 * GIB if load.block == "1m" else GIB
        ours: list[Result] = []
        theirs: dict[str, list[Result]] = {"nbdkit": [], "qemu-nbd": []}
        for _ in range(1 if load.drain else repeats):
            name = f"bench-{next(_NUMBERS)}"
            with protected(client, folder, name, f"{size // GIB}GiB") as uri:
                ours.append(run(load, uri, size))
                wait_for("shipped", partial(_shipped, client, name))
            with peers.nbdkit(folder, size) as uri:
                theirs["nbdkit"].append(run(load, uri, size))
            with peers.qemu_nbd(folder, size) as uri:
                theirs["qemu-nbd"].append(run(load, uri, size))
        for peer, results in theirs.items():
            unit = "MiB/s" if load.block == "1m" else "writes/s"
            mine, other = _median(ours, unit), _median(results, unit)
            counts = peer == "nbdkit"
            yield Row(load.name, mine, other, peer, unit, mine / other, goal if counts else "", mine / other >= least if counts else None)  # fmt: skip


def _shipped(client: Client, group: str) -> bool:
    return client.group_status(group).legs["copies"].lag_seconds < 15


def _median(results: list[Result], unit: str) -> float:
    return statistics.median(
        result.mebibytes_per_second if unit == "MiB/s" else result.writes_per_second for result in results
    )
