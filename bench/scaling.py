"""How cost grows: with the number of groups, of members, of records in the history, and with the size of a volume.

Each series begins on a backend of its own, so that none carries what another left behind.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.backend import OWNER, backend, wait_for
from bench.load import Load, run
from bench.mounts import mount_seconds
from bench.processes import Usage, of_site, of_workers
from bench.row import Row
from bench.writes import protected
from dpac_api.client import Client
from dpac_api.models import FilesystemTargetSpec, GroupSpec

IDLE_SECONDS = 10
MIB = 2**20
MEMORY_MIB_MAX = 300
"""Of the workers, with a hundred idle groups."""
_PROTECTED_SECONDS_MAX = 1800


def scaling_rows(folder: Path, *, groups: Sequence[int], records: Sequence[int]) -> Iterator[Row]:
    """Every series, at each of its sizes."""
    with _site(folder, "groups") as (client, home):
        yield from _groups(client, home, groups)
    with _site(folder, "members") as (client, home):
        yield from _members(client, home)
    with _site(folder, "sizes") as (client, home):
        yield from _volume_sizes(client, home)
    with _site(folder, "history") as (client, home):
        yield from _history(client, home, records)


@contextmanager
def _site(folder: Path, name: str) -> Iterator[tuple[Client, Path]]:
    home = folder / name
    home.mkdir()
    with backend(home) as client:
        client.put_target("copies", FilesystemTargetSpec(path=str(home / "copies")), owner=OWNER)
        yield client, home


def _spec(home: Path, name: str, members: int, size: str = "1MiB") -> GroupSpec:
    volumes = {
        f"disk-{at}": {"kind": "volume", "path": str(home / f"{name}-{at}.raw"), "size": size} for at in range(members)
    }
    return GroupSpec.model_validate(
        {
            "members": volumes,
            "replication": {"copies": {"target": "copies", "rpo": "15s"}},
            "journal": {"history": "1h"},
        }
    )


def _cpu_seconds(home: Path) -> float:
    return sum(usage.cpu_seconds for usage in of_site(home / "site").values())


def _protect(client: Client, home: Path, specs: dict[str, GroupSpec]) -> tuple[float, float]:
    """(seconds, CPU seconds of all processes) until every one of these new groups is protected."""
    began, before = time.monotonic(), _cpu_seconds(home)
    for name, spec in specs.items():
        client.put_group(name, spec, owner=OWNER)
    for name in specs:
        wait_for(f"{name} protected", partial(_is_protected, client, name), _PROTECTED_SECONDS_MAX)
    return time.monotonic() - began, _cpu_seconds(home) - before


def _is_protected(client: Client, name: str) -> bool:
    return client.group_status(name).protected


def _idle_percent(home: Path) -> float:
    """CPU of all processes while nobody writes, in percent of a core."""
    before = _cpu_seconds(home)
    time.sleep(IDLE_SECONDS)
    return (_cpu_seconds(home) - before) / IDLE_SECONDS * 100


def _milliseconds(ask: Callable[[], object]) -> float:
    """How long an answer takes; the median of seven."""
    took = []
    for _ in range(7):
        began = time.monotonic()
        ask()
        took.append((time.monotonic() - began) * 1000)
    return statistics.median(took)


def _workers(home: Path) -> Usage:
    return of_workers(home / "site")


def _groups(client: Client, home: Path, counts: Sequence[int]) -> Iterator[Row]:
    there = 0
    for count in counts:
        seconds, cpu = _protect(
            client, home, {f"g-{number}": _spec(home, f"g-{number}", 1) for number in range(there, count)}
        )
        added, there = count - there, count
        row = partial(Row.of_series, axis="groups", at=count)
        yield row("groups: until protected, each", seconds / added * 1000, "ms")
        yield row("groups: CPU until protected, each", cpu / added * 1000, "ms")
        yield row("groups: CPU when idle, of a core", _idle_percent(home), "%")
        usage = _workers(home)
        most = MEMORY_MIB_MAX if count == 100 else None
        yield row("groups: memory of the workers", usage.memory_bytes / MIB, "MiB", most=most)
        yield row("groups: threads of the workers", usage.threads, "")
        yield row("groups: open files of the workers", usage.descriptors, "")
        yield row("groups: status of one", _milliseconds(lambda: client.group_status("g-0")), "ms")
        yield row("groups: list of all", _milliseconds(client.groups), "ms")


def _members(client: Client, home: Path) -> Iterator[Row]:
    for count in (1, 8, 64):
        name = f"m-{count}"
        seconds, cpu = _protect(client, home, {name: _spec(home, name, count)})
        row = partial(Row.of_series, axis="members of a group", at=count)
        yield row("members: until protected", seconds, "s")
        yield row("members: CPU until protected", cpu, "s")
        yield row("members: CPU when idle, of a core", _idle_percent(home), "%")
        yield row("members: memory of the workers", _workers(home).memory_bytes / MIB, "MiB")
        yield row("members: status", _milliseconds(partial(client.group_status, name)), "ms")
        client.delete_group(name)


def _volume_sizes(client: Client, home: Path) -> Iterator[Row]:
    for gib in (1, 32, 1024):
        with protected(client, home, f"size-{gib}", f"{gib}GiB") as uri:
            row = partial(Row.of_series, axis="size of the volume, GiB", at=gib)
            before = _cpu_seconds(home)
            done = run(Load("fill", "randwrite", "4k", 32, 5, drain=True), uri, gib * 2**30).writes
            tagged = client.take_checkpoint(f"size-{gib}", tag="bench")
            wait_for("the checkpoint at the target", partial(_is_there, client, f"size-{gib}", tagged.id))
            yield row("volume size: CPU of a write, shipped", (_cpu_seconds(home) - before) / done * 1e6, "us")
            yield row("volume size: memory of the workers", _workers(home).memory_bytes / MIB, "MiB")
            yield row("volume size: mount of a checkpoint", mount_seconds(client, f"size-{gib}", tagged.id), "s")


def _history(client: Client, home: Path, counts: Sequence[int]) -> Iterator[Row]:
    tags = itertools.count()
    with protected(client, home, "history", "1GiB") as uri:
        done = 0
        for count in counts:
            while done < count:
                left = (count - done) / 20_000
                load = Load("fill", "randwrite", "512", 32, max(1, min(30, int(left))), drain=True)
                done += run(load, uri, 2**30).writes
            tagged = client.take_checkpoint("history", tag=f"bench-{next(tags)}")
            wait_for("the checkpoint at the target", partial(_is_there, client, "history", tagged.id), 1800)
            row = partial(Row.of_series, axis="records in the history", at=done)
            yield row("history: memory of the workers", _workers(home).memory_bytes / MIB, "MiB")
            yield row("history: CPU when idle, of a core", _idle_percent(home), "%")
            yield row("history: mount of the newest checkpoint", mount_seconds(client, "history", tagged.id), "s")
            yield row("history: first page of checkpoints", _milliseconds(partial(client.checkpoints, "history")), "ms")


def _is_there(client: Client, group: str, checkpoint: str) -> bool:
    found = client.checkpoints(group, limit=1).items
    return bool(found) and int(found[0].id.rpartition("-")[2]) >= int(checkpoint.rpartition("-")[2])
