"""What the processes of a site use, from /proc: CPU time, memory, threads and open files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dpac_engine.control.site import Site
from dpac_engine.control.supervisor_report import SupervisorReport

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of one process, or of several together. `memory_bytes` counts what several share once (PSS)."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    threads: int = 0
    descriptors: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_seconds + other.cpu_seconds,
            self.memory_bytes + other.memory_bytes,
            self.threads + other.threads,
            self.descriptors + other.descriptors,
        )


def of_process(pid: int) -> Usage:
    """Of one process now."""
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    pss = next(line for line in (proc / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return Usage(
        (int(fields[11]) + int(fields[12])) / _TICKS,
        int(pss.split()[1]) * 1024,
        int(fields[17]),
        len(list((proc / "fd").iterdir())),
    )


def pids_of(data: Path) -> dict[str, int]:
    """Process name -> its id, of the site in a data folder: control, worker-0 and so on."""
    report = SupervisorReport.read(Site.read(data).supervisor_file)
    if report is None:
        raise RuntimeError(f"no supervisor reports in {data}")
    return {name: child.pid for name, child in report.children.items() if child.pid is not None}


def of_site(data: Path) -> dict[str, Usage]:
    """By process name, now."""
    return {name: of_process(pid) for name, pid in pids_of(data).items()}


def of_workers(data: Path) -> Usage:
    """Of all workers together, the standby left out."""
    return sum((usage for name, usage in of_site(data).items() if name.startswith("worker")), Usage())
