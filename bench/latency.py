"""How long a single write takes: protected, and by the same server with the journal off."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.backend import OWNER, wait_for
from bench.load import Load, Result, run
from bench.row import Row
from bench.unjournalled import unjournalled
from dpac_api.client import Client
from dpac_api.models import FilesystemTargetSpec, GroupSpec

SIZE_BYTES = 256 * 2**20
STEADY = "2,000 writes/s of 4 KiB, qd8"
MARKED = "8 volumes of a group, 100 writes/s each, a mark a second"


def latency_rows(client: Client, folder: Path, seconds: int, repeats: int) -> Iterator[Row]:
    """The p99 of writes at a steady rate, and how much later it comes where all volumes of a group are marked."""
    for name, count, load in (
        (STEADY, 1, Load("steady", "randwrite", "4k", 8, seconds, writes_per_second=2000)),
        (MARKED, 8, Load("marked", "randwrite", "4k", 1, seconds, writes_per_second=100)),
    ):
        ours: list[float] = []
        plain: list[float] = []
        for _ in range(repeats):
            with _protected(client, folder, f"latency-{count}", count) as uris:
                ours.append(_p99_milliseconds(load, uris))
            with unjournalled(folder, count, SIZE_BYTES) as uris:
                plain.append(_p99_milliseconds(load, uris))
        mine, other = statistics.median(ours), statistics.median(plain)
        yield Row.against(
            f"{name}: p99", mine, "the same server, journal off", other, "ms", most=1.25 if count == 1 else None
        )
        if count > 1:
            yield Row.alone(f"{name}: what a mark adds to the p99 at most", max(mine - other, 0.0), "ms", most=1)


def _p99_milliseconds(load: Load, uris: list[str]) -> float:
    """Of the volume that was slowest, all under load at once."""
    with ThreadPoolExecutor(len(uris)) as clients:
        return max(result.p99_milliseconds for result in clients.map(partial(_run, load), uris))


def _run(load: Load, uri: str) -> Result:
    return run(load, uri, SIZE_BYTES)


@contextmanager
def _protected(client: Client, folder: Path, name: str, count: int) -> Iterator[list[str]]:
    paths = {f"disk{number}": folder / f"{name}-{number}.raw" for number in range(count)}
    client.put_target(name, FilesystemTargetSpec(path=str(folder / f"copies-{name}")), owner=OWNER)
    spec = GroupSpec.model_validate(
        {
            "members": {
                member: {"kind": "volume", "path": str(path), "size": f"{SIZE_BYTES // 2**20}MiB"}
                for member, path in paths.items()
            },
            "replication": {"copies": {"target": name, "rpo": "15s"}},
        }
    )
    group = client.put_group(name, spec, owner=OWNER)
    wait_for(f"{name} protected", lambda: client.group_status(name).protected)
    try:
        yield [group.members[member].nbd_uri for member in paths]
    finally:
        client.delete_group(name)
        for path in paths.values():
            path.unlink(missing_ok=True)
