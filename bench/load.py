"""Loads, by fio's NBD engine."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """One fio job."""

    name: str
    pattern: str
    block: str
    depth: int
    seconds: int
    fsync_every: int = 0
    drain: bool = False
    writes_per_second: int | None = None
    """None: as fast as it goes."""
    compressible_percent: int = 50


@dataclass(frozen=True)
class Result:
    """What fio measured. Latency is completion latency."""

    writes_per_second: float
    mebibytes_per_second: float
    p99_milliseconds: float
    wall_seconds: float
    writes: int


def run(load: Load, uri: str, size_bytes: int) -> Result:
    """Run a load against an export; with `drain` a final FLUSH counts."""
    command = [
        "fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", f"--rw={load.pattern}", f"--bs={load.block}",
        f"--iodepth={load.depth}", f"--size={size_bytes}", "--time_based", f"--runtime={load.seconds}",
        "--output-format=json", "--randrepeat=1", "--refill_buffers=0", f"--buffer_compress_percentage={load.compressible_percent}",
    ]  # fmt: skip
    if load.fsync_every:
        command.append(f"--fsync={load.fsync_every}")
    if load.writes_per_second:
        command.append(f"--rate_iops={load.writes_per_second}")
    if load.drain:
        command.append("--end_fsync=1")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    write = job["write"]
    wall = job["job_runtime"] / 1000
    return Result(
        writes_per_second=write["total_ios"] / wall,
        mebibytes_per_second=write["io_kbytes"] / 1024 / wall,
        p99_milliseconds=write["clat_ns"]["percentile"]["99.000000"] / 1e6,
        wall_seconds=wall,
        writes=write["total_ios"],
    )
