"""First copy and full restore of a volume and of many small files, against backup programs at the same place."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.backend import OWNER, wait_for
from bench.backup_programs import Kopia, Restic
from bench.data import make_tree, make_volume
from bench.places import Place
from bench.row import Row
from dpac_api.client import Client
from dpac_api.models import GroupSpec, Phase

_NUMBERS = itertools.count()
_POLL_SECONDS = 0.05
_WAIT_SECONDS = 1800


class Figures(NamedTuple):
    """Of one program's run. Times end when the data is on disk."""

    copy_seconds: float
    restore_seconds: float
    stored_bytes: int


@dataclass(frozen=True)
class Source:
    """What is copied: a raw file or a folder. `amount` in `unit`s of work; speeds are `unit`/s."""

    title: str
    path: Path
    kind: str
    amount: float
    unit: str
    least: float
    """How much faster than the fastest peer."""


def volume_source(folder: Path, size_bytes: int) -> Source:
    """A raw volume of the realistic mix."""
    path = folder / "source.raw"
    held = make_volume(path, size_bytes)
    title = f"a volume of {size_bytes / 2**30:g} GiB, {held / 2**30:g} GiB of it allocated"
    return Source(title, path, "volume", held / 2**20, "MiB", 2.0)


def tree_source(folder: Path, files: int) -> Source:
    """A tree of small files."""
    path = folder / "source"
    held = make_tree(path, files)
    return Source(f"{files:,} small files, {held / 2**20:,.0f} MiB", path, "directory", files, "files", 1.0)


def copy_rows(client: Client, folder: Path, place: Place, source: Source, repeats: int) -> Iterator[Row]:
    """The programs take turns; figures are medians."""
    runs: dict[str, list[Figures]] = defaultdict(list)
    for _ in range(repeats):
        runs["dpac"].append(_ours(client, folder, place, source))
        for program in (Restic, Kopia):
            runs[program.name].append(_theirs(program, folder, place, source))
    ours = _speeds(runs.pop("dpac"), source)
    peers = {name: _speeds(found, source) for name, found in runs.items()}
    for at, what in enumerate(("first copy", "full restore")):
        best = max(peers, key=lambda name: peers[name][at])
        for name, speeds in peers.items():
            title = f"{what} of {source.title}, {'to' if at == 0 else 'from'} {place.title}"
            least = source.least if name == best else None
            yield Row.against(title, ours[at], name, speeds[at], f"{source.unit}/s", least=least)
    smallest = min(peers, key=lambda name: peers[name][2])
    for name, speeds in peers.items():
        most = 1.05 if name == smallest else None
        yield Row.against(f"stored of {source.title}, at {place.title}", ours[2], name, speeds[2], "MiB", most=most)


def _speeds(runs: list[Figures], source: Source) -> tuple[float, float, float]:
    return (
        source.amount / statistics.median(run.copy_seconds for run in runs),
        source.amount / statistics.median(run.restore_seconds for run in runs),
        statistics.median(run.stored_bytes for run in runs) / 2**20,
    )


def _theirs(program: type[Restic] | type[Kopia], folder: Path, place: Place, source: Source) -> Figures:
    part = f"{program.name}-{next(_NUMBERS)}"
    with tempfile.TemporaryDirectory(dir=folder, prefix="peer") as scratch_name:
        scratch = Path(scratch_name)
        repository = program(place, part, scratch)
        copy_seconds = _timed(folder, lambda: repository.back_up(source.path))
        stored = place.stored_bytes(part)
        restore_seconds = _timed(folder, lambda: repository.restore(scratch / "restored"))
    place.remove(part)
    return Figures(copy_seconds, restore_seconds, stored)


def _ours(client: Client, folder: Path, place: Place, source: Source) -> Figures:
    part = f"dpac-{next(_NUMBERS)}"
    restored = folder / f"restored-{part}"
    client.put_target(part, place.target(part), owner=OWNER)
    spec = GroupSpec.model_validate(
        {
            "members": {"data": {"kind": source.kind, "path": str(source.path)}},
            "replication": {"copies": {"target": part, "rpo": "15s"}},
            "journal": {"history": "1h", "size_max": "64GiB", "spool_max": "4GiB"},
        }
    )

    def copy() -> None:
        client.put_group(part, spec, owner=OWNER)
        wait_for("a first checkpoint", lambda: client.checkpoints(part, limit=1).items, _WAIT_SECONDS, _POLL_SECONDS)

    def restore() -> None:
        begun = client.restore(part, member="data", to=str(restored))
        done = client.wait(begun.id, timeout_seconds=_WAIT_SECONDS, poll_seconds=_POLL_SECONDS)
        if done.phase is not Phase.SUCCEEDED:
            raise RuntimeError(f"the restore failed: {done.error}")

    try:
        copy_seconds = _timed(folder, copy)
        stored = place.stored_bytes(part)
        restore_seconds = _timed(folder, restore)
        # A restore that is fast and wrong is worth nothing.
        subprocess.run(["diff", "--recursive", "--brief", source.path, restored], check=True)
    finally:
        client.delete_group(part)
        place.remove(part)
        shutil.rmtree(restored) if restored.is_dir() else restored.unlink(missing_ok=True)
    return Figures(copy_seconds, restore_seconds, stored)


def _timed(folder: Path, work: Callable[[], None]) -> float:
    """Seconds until the work is done and on disk: not every program syncs what it writes."""
    os.sync()
    began = time.monotonic()
    work()
    subprocess.run(["sync", "--file-system", folder], check=True)
    return time.monotonic() - began
