"""What the supervisor says of its children: `run/supervisor.json`, for the CLI and for the condition WorkerCrashing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dpac_engine.io.files import replace_file


@dataclass(frozen=True)
class ChildReport:
    """One process."""

    pid: int | None
    """None while it does not run."""
    state: str
    """`waiting` (to be started again), `starting` or `serving`."""
    restarts: int
    crashing: bool
    """It died three times or more within the last minute."""
    last_exit: str
    """How it ended last, as in `was ended by SIGKILL`; empty if it never did."""
    start_seconds: float | None
    """From its start until it served; None while it does not."""


@dataclass(frozen=True)
class SupervisorReport:
    """The processes of a site, by name: `control`, `worker-0` and so on."""

    pid: int
    state: str
    """`serving`, `stopping` or `stopped`."""
    children: dict[str, ChildReport]
    standby_pid: int | None
    """The worker in waiting; None while there is none that has loaded."""

    @classmethod
    def read(cls, path: Path) -> SupervisorReport | None:
        """The report in a file; None if there is none that can be read."""
        try:
            fields = json.loads(path.read_bytes())
            children = {name: ChildReport(**child) for name, child in fields["children"].items()}
            return cls(int(fields["pid"]), str(fields["state"]), children, fields["standby_pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Replace the file. Raises OSError."""
        replace_file(path, json.dumps(asdict(self), indent=1).encode(), durable=False)

    @property
    def all_serve(self) -> bool:
        """Whether every process is up."""
        return all(child.state == "serving" for child in self.children.values())

    def crashing(self) -> dict[str, ChildReport]:
        """The processes that a person should look at."""
        return {name: child for name, child in self.children.items() if child.crashing}
