"""The data path against NBD servers that protect nothing, and how long a mount takes."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import time
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


def mount_rows(client: Client, folder: Path) -> Iterator[Row]:
    """How long until a checkpoint of a sparse volume is open and read, after many random writes."""
    for size, writes, goal, least in (("1GiB", 100_000, "", None), ("100GiB", 1_000_000, "<= 1 s", 1.0)):
        name = f"bench-{next(_NUMBERS)}"
        with protected(client, folder, name, size) as uri:
            size_bytes = int(size.removesuffix("GiB")) * GIB
            done = 0
            while done < writes:
                done += run(Load("fill", "randwrite", "4k", 32, 10, drain=True), uri, size_bytes).writes
            tagged = client.take_checkpoint(name, tag="bench")
            wait_for("the checkpoint at the target", partial(_there, client, name, tagged.id))
            seconds = mount_seconds(client, name, tagged.id)
            yield Row(f"mount a checkpoint of {size} after {done:,} writes, first block read", seconds, None, "", "s", None, goal, None if least is None else seconds <= least)  # fmt: skip


def mount_seconds(client: Client, group: str, at: str) -> float:
    """From asking for a mount until its first block is read; the median of three."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        mount = client.mount(group, at=at)
        subprocess.run(["qemu-img", "info", "--output=json", mount.members["disk"]], check=True, capture_output=True)
        took.append(time.monotonic() - began)
        client.unmount(mount.id)
    return statistics.median(took)


def _there(client: Client, group: str, checkpoint: str) -> bool:
    found = client.checkpoints(group, limit=1).items
    return bool(found) and int(found[0].id.rpartition("-")[2]) >= int(checkpoint.rpartition("-")[2])
