"""A protected volume in a bucket that is written to all the time: how old a checkpoint is when it can be recovered from there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from bench.backend import OWNER, wait_for
from bench.load import Load, run
from bench.mounts import mount_seconds
from bench.places import Bucket
from bench.row import Row
from dpac_api.client import Client
from dpac_api.models import GroupSpec

MIB = 2**20
WRITES_PER_SECOND = 200
_POLL_SECONDS = 0.1


def steady_rows(client: Client, folder: Path, place: Bucket, seconds: int) -> Iterator[Row]:
    """For an RPO of 5 s and of 15 s: ages, requests, and how long a mount takes from there."""
    for rpo_seconds in (5, 15):
        yield from _steady(client, folder, place, rpo_seconds, seconds)


def _steady(client: Client, folder: Path, place: Bucket, rpo_seconds: int, seconds: int) -> Iterator[Row]:
    name = f"steady-{rpo_seconds}"
    client.put_target(name, place.target(name), owner=OWNER)
    spec = GroupSpec.model_validate(
        {
            "members": {"disk": {"kind": "volume", "path": str(folder / f"{name}.raw"), "size": "256MiB"}},
            "replication": {"copies": {"target": name, "rpo": f"{rpo_seconds}s"}},
            "journal": {"history": "1h", "size_max": "8GiB", "spool_max": "1GiB"},
        }
    )
    uri = client.put_group(name, spec, owner=OWNER).members["disk"].nbd_uri
    try:
        wait_for("a first checkpoint", lambda: client.checkpoints(name, limit=1).items)
        load = Load("steady", "randwrite", "4k", 4, seconds, writes_per_second=WRITES_PER_SECOND)
        with ThreadPoolExecutor(1) as background:
            writing = background.submit(run, load, uri, 256 * MIB)
            ages = []
            while not writing.done():
                ages.append(_age_seconds(client, name))
                time.sleep(_POLL_SECONDS)
            writing.result()
        # Once more with nobody asking for checkpoints, which takes requests of its own.
        before = client.target_usage(name).traffic
        run(load, uri, 256 * MIB)
        after = client.target_usage(name).traffic
        title = f"{WRITES_PER_SECOND} writes/s to a bucket, RPO {rpo_seconds} s"
        yield Row.alone(f"{title}: age of the newest recoverable checkpoint, p50", statistics.median(ages), "s")
        p99 = statistics.quantiles(ages, n=100)[98]
        yield Row.alone(f"{title}: the same, p99", p99, "s", most=rpo_seconds)
        for kind in ("write", "read", "list"):
            asked = getattr(after, f"{kind}_requests") - getattr(before, f"{kind}_requests")
            yield Row.alone(f"{title}: {kind} requests", asked / seconds * 60, "/min")
        yield Row.alone(f"{title}: mount from the bucket, first block read", mount_seconds(client, name, "latest"), "s")
    finally:
        client.delete_group(name)
        (folder / f"{name}.raw").unlink(missing_ok=True)
        place.remove(name)


def _age_seconds(client: Client, group: str) -> float:
    newest = client.checkpoints(group, limit=1).items[0]
    return (datetime.now(UTC) - newest.time).total_seconds()
