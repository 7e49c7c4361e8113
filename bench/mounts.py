"""How long until a checkpoint is open and read, for volumes and directories of any size, from a folder and from a bucket."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.backend import OWNER, wait_for
from bench.load import Load, run
from bench.places import Place
from bench.row import Row
from dpac_api.client import Client
from dpac_api.models import GroupSpec
from dpac_engine.control.site import Site
from dpac_engine.control.supervisor_report import SupervisorReport

GIB = 2**30
_NUMBERS = itertools.count()
AT_ONCE = 20
LIMIT_SECONDS = {"a folder": 1.0, "an S3 server": 3.0}


def mount_rows(client: Client, folder: Path, place: Place, files: int) -> Iterator[Row]:
    """Volumes after many random writes, many of their checkpoints at once, and a directory of small files."""
    most = LIMIT_SECONDS[place.title]
    for size, writes, limit in (("1GiB", 100_000, None), ("100GiB", 1_000_000, most)):
        group = f"mounts-{next(_NUMBERS)}"
        disk = {"kind": "volume", "path": str(folder / "mounted.raw"), "size": size}
        with protected(client, place, group, disk) as uri:
            done, tagged = 0, []
            while done < writes:
                load = Load("fill", "randwrite", "4k", 32, 10, drain=True)
                done += run(load, uri, int(size.removesuffix("GiB")) * GIB).writes
                tagged.append(client.take_checkpoint(group, tag=f"after-{done}").id)
            wait_for("the checkpoint at the target", partial(_there, client, group, tagged[-1]))
            title = f"mount a checkpoint of {size} after {done:,} writes from {place.title}"
            yield Row.alone(f"{title}, first block read", mount_seconds(client, group, tagged[-1]), "s", most=limit)
            if limit is not None:
                yield from _at_once(client, folder, group, tagged, title)
        (folder / "mounted.raw").unlink(missing_ok=True)
    yield from _directory_rows(client, folder, place, files)


def _at_once(client: Client, folder: Path, group: str, tagged: list[str], title: str) -> Iterator[Row]:
    """Different checkpoints, all at the same time."""
    wanted = [tagged[number % len(tagged)] for number in range(AT_ONCE)]
    before, began = _workers_bytes(folder), time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        mounts = list(pool.map(lambda at: client.mount(group, at=at), wanted))
        list(pool.map(lambda mount: _read_volume(mount.members["disk"]), mounts))
    took = time.monotonic() - began
    grown = (_workers_bytes(folder) - before) / AT_ONCE
    for mount in mounts:
        client.unmount(mount.id)
    yield Row.alone(f"{title}: {AT_ONCE} at the same time, of {len(tagged)} checkpoints, all read", took, "s")
    yield Row.alone(f"{title}: memory of a worker for each of these", grown / 2**20, "MiB")


def _directory_rows(client: Client, folder: Path, place: Place, files: int) -> Iterator[Row]:
    root, group = folder / "mounted-tree", f"mounts-{next(_NUMBERS)}"
    for number in range(files):
        path = root / f"{number // 1000}" / f"file-{number}"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(1000 + number % 7000))
    with protected(client, place, group, {"kind": "directory", "path": str(root)}):
        tagged = client.take_checkpoint(group, tag="bench").id
        wait_for("the checkpoint at the target", partial(_there, client, group, tagged))
        title = f"mount a directory of {files:,} files from {place.title}, first file read"
        seconds = mount_seconds(client, group, tagged, lambda where: (Path(where) / "0" / "file-0").read_bytes())
        yield Row.alone(title, seconds, "s", most=LIMIT_SECONDS[place.title])
    subprocess.run(["rm", "-r", root], check=True)


@contextmanager
def protected(client: Client, place: Place, name: str, member: dict[str, str]) -> Iterator[str]:
    """A group of one member, `disk`, with a leg to that place; gives its NBD URI."""
    client.put_target(name, place.target(name), owner=OWNER)
    spec: dict[str, Any] = {
        "members": {"disk": member},
        "replication": {"copies": {"target": name, "rpo": "15s"}},
        "journal": {"history": "1h", "size_max": "64GiB", "spool_max": "4GiB"},
    }
    group = client.put_group(name, GroupSpec.model_validate(spec), owner=OWNER)
    wait_for(f"{name} protected", lambda: client.group_status(name).protected, seconds=1200)
    try:
        yield group.members["disk"].nbd_uri or ""
    finally:
        client.delete_group(name)
        place.remove(name)


def _read_volume(uri: str) -> None:
    subprocess.run(["qemu-img", "info", "--output=json", uri], check=True, capture_output=True)


def mount_seconds(client: Client, group: str, at: str, read: Callable[[str], object] = _read_volume) -> float:
    """From asking for a mount until its first block or file is read; the median of three."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        mount = client.mount(group, at=at)
        read(mount.members["disk"])
        took.append(time.monotonic() - began)
        client.unmount(mount.id)
    return statistics.median(took)


def _workers_bytes(folder: Path) -> int:
    """Memory that the site's workers have to themselves."""
    report = SupervisorReport.read(Site.read(folder / "site").supervisor_file)
    assert report is not None
    pids = [child.pid for name, child in report.children.items() if name.startswith("worker-")]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _there(client: Client, group: str, checkpoint: str) -> bool:
    found = client.checkpoints(group, limit=1).items
    return bool(found) and int(found[0].id.rpartition("-")[2]) >= int(checkpoint.rpartition("-")[2])
