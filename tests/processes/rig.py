"""The processes of a backend with the plainest groups there are: real supervisor, workers and control, groups in files.

`python rig.py supervisor OPTIONS` is what `dpac serve` starts; it starts this file again for its children.
Files in `DATA/rig/` make them misbehave: `crash-NAME` ends a process as soon as it starts.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from dpac_api.errors import NotFound
from dpac_api.models import Checkpoint, CheckpointRequest, DataState, GroupStatus, MemberStatus, Mount, SlaState
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.child_process import ChildArguments
from dpac_engine.control.worker_api import HoldChange, HoldOutcome, MountStates, WorkerMount
from dpac_engine.io.nbd.export import Export
from tests.nbd.memory import MemoryExport

VOLUME_BYTES = 2**20
SUPERVISOR = (sys.executable, __file__, "supervisor")


class MappedExport(MemoryExport):
    """An export in a file's page cache, which outlives the process."""

    def __init__(self, path: Path) -> None:
        super().__init__(VOLUME_BYTES)
        with open(path, "ab+") as file:
            file.truncate(VOLUME_BYTES)
            self.data = mmap.mmap(file.fileno(), VOLUME_BYTES)  # type: ignore[assignment]


class FileRuntime:
    """A group whose volumes are mapped files in its folder. A file `fail` there keeps it from starting, `crash` ends its worker."""

    def __init__(self, assignment: WorkerAssignment, folder: Path) -> None:
        self.assignment = assignment
        self.folder = folder
        self.calls: list[str] = []
        self._exports: dict[str, Export] = {}

    async def start(self) -> None:
        self.calls.append("start")
        if (self.folder / "crash").exists():
            os._exit(4)
        if (self.folder / "fail").exists():
            raise OSError(f"{self.folder / 'fail'} is in the way")
        (self.folder / "spool").mkdir(exist_ok=True)
        self._export()

    def _export(self) -> None:
        for member in self.assignment.members:
            name = f"{self.assignment.name}/{member}"
            if name not in self._exports:
                self._exports[name] = MappedExport(self.folder / f"{member}.raw")

    async def apply(self, assignment: WorkerAssignment) -> None:
        self.calls.append("apply")
        self.assignment = assignment
        self._export()

    async def stop(self) -> None:
        self.calls.append("stop")
        (self.folder / "stopped").touch()
        self._exports.clear()

    async def drop(self) -> None:
        self.calls.append("drop")
        shutil.rmtree(self.folder)

    async def checkpoint(self, request: CheckpointRequest) -> Checkpoint:
        raise NotFound(f"no checkpoint of {request.tag}")

    async def ship(self) -> None:
        self.calls.append("ship")

    async def change_hold(self, change: HoldChange) -> HoldOutcome:
        raise NotFound(f"no checkpoint {change.checkpoint}")

    def status(self) -> GroupStatus:
        members = {name: MemberStatus(kind="volume", state="Attached", seeded=True) for name in self.assignment.members}
        return GroupStatus(
            data_state=DataState.CONTINUOUS,
            sla_state=SlaState.MEETING,
            protected=True,
            seeded=True,
            checkpoint_sequence=1,
            head_lsn=0,
            durable_lsn=0,
            spool_bytes=0,
            members=members,
            legs={},
            observed_generation=self.assignment.generation,
        )

    def exports(self) -> Mapping[str, Export]:
        return self._exports


class NoMounts:
    """A worker without mounts."""

    async def open(self, request: WorkerMount) -> Mount:
        raise NotFound(f"no mount {request.mount_id}")

    async def close(self, mount_id: str) -> None:
        raise NotFound(f"no mount {mount_id}")

    async def restore_all(self) -> None:
        return None

    async def stop(self) -> None:
        return None

    def exports(self) -> Mapping[str, Export]:
        return {}

    def states(self) -> MountStates:
        return MountStates(mounts=[])


def _crash_if_told(arguments: ChildArguments) -> None:
    if (Path(arguments.data) / "rig" / f"crash-{arguments.name}").exists():
        os._exit(3)


def run_child(role: str, text: str) -> int:
    """A worker with groups in files, or control with nothing but `/healthz`."""
    arguments = ChildArguments.from_json(text)
    _crash_if_told(arguments)
    if role == "worker":
        from dpac_engine.control.site import Site
        from dpac_engine.control.worker import Worker
        from dpac_engine.control.worker_process import WorkerParts, run_worker
        from dpac_engine.io.clock import SystemClock

        def build(arguments: ChildArguments) -> WorkerParts:
            _crash_if_told(arguments)  # it may have been in waiting until now
            site = Site.read(Path(arguments.data))
            worker = Worker(
                arguments.index,
                site.groups,
                lambda assignment: FileRuntime(assignment, site.group(assignment.group_uid)),
                NoMounts(),
                SystemClock(),
                retry_seconds=(0.05,),
            )
            return WorkerParts(worker, lambda: None)

        return run_worker(arguments, build, lambda: None)
    from asyncio import Event

    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from dpac_engine.control.control_process import ControlParts, run_control

    def healthz(_: object) -> JSONResponse:
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    async def never() -> None:
        await Event().wait()

    return run_control(arguments, lambda _: ControlParts(Starlette(routes=[Route("/healthz", healthz)]), never))


def main(role: str, text: str) -> int:
    """Any of the processes."""
    if role == "supervisor":
        from dpac_engine.control import supervisor

        return supervisor.main([text], (sys.executable, __file__))
    return run_child(role, text)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
