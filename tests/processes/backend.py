"""A backend of real processes that a test starts, kills and looks at."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dpac_engine.control import serve
from dpac_engine.control.assignment import MemberAssignment, WorkerAssignment
from dpac_engine.control.serve_options import ServeOptions
from dpac_engine.control.site import Site, supervisor_pid
from dpac_engine.control.supervisor_report import ChildReport, SupervisorReport
from tests.nbd.client import Client, write
from tests.nbd.serving import until
from tests.processes.rig import SUPERVISOR


def assignment(name: str, worker: int = 0, uid: str | None = None, **changes: Any) -> WorkerAssignment:
    """A group with one volume, `disk`."""
    uid = uid or os.urandom(16).hex()
    fields: dict[str, Any] = {
        "group_uid": uid,
        "name": name,
        "site_uid": "5" * 32,
        "shard_uid": "6" * 32,
        "worker": worker,
        "generation": 1,
        "epoch": 1,
        "membership_version": 1,
        "key_id": "7" * 32,
        "spec": {"members": {"disk": {"kind": "volume", "path": "/nowhere/disk.raw", "size": "1MiB"}}},
        "members": {"disk": MemberAssignment(ordinal=1, uid="8" * 32)},
        "targets": {},
    }
    return WorkerAssignment.model_validate({**fields, **changes})


def put_assignment(groups: Path, wanted: WorkerAssignment) -> Path:
    """Write what control would; returns the group's folder."""
    folder = groups / wanted.group_uid
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "assignment.json").write_text(wanted.model_dump_json())
    return folder


class Backend:
    """`with Backend(folder) as backend:` — started by `start`, ended whatever happens."""

    def __init__(self, data: Path, supervisor: Sequence[str] = SUPERVISOR, **options: Any) -> None:
        self.data = data
        self._supervisor = supervisor
        self.options = ServeOptions(data=str(data), **{"listen": "127.0.0.1:0", "workers": 1, **options}).checked()
        self.said: list[str] = []

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for path in sorted((self.data / "log").glob("*.log")):
                print(f"--- {path.name}\n{path.read_text()[-4000:]}")
        with suppress(Exception):
            serve.stop(self.data, 15)
        if (pid := supervisor_pid(self.data)) is not None:
            os.kill(pid, signal.SIGKILL)

    @property
    def site(self) -> Site:
        """The site in the data folder."""
        return Site.read(self.data)

    def start(self) -> serve.Endpoint:
        """`dpac serve --detach`."""
        assert serve.serve(self.options, detach=True, say=self.said.append, supervisor=self._supervisor) == 0
        return serve.Endpoint.read(self.site)

    def child(self, name: str) -> ChildReport:
        """What the supervisor says of a child."""
        report = SupervisorReport.read(self.site.supervisor_file)
        assert report is not None
        return report.children[name]

    def pids(self) -> dict[str, int]:
        """The processes that run now: the supervisor, and its children by name."""
        report = SupervisorReport.read(self.site.supervisor_file)
        assert report is not None
        children = {name: child.pid for name, child in report.children.items() if child.pid is not None}
        return {"supervisor": report.pid, **children}

    def standby_pid(self) -> int | None:
        """The worker in waiting that has loaded."""
        report = SupervisorReport.read(self.site.supervisor_file)
        return report.standby_pid if report else None

    def kill(self, name: str) -> int:
        """kill -9 one process; returns its pid."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def log_lines(self, process: str) -> list[dict[str, Any]]:
        """What a process logged."""
        return [json.loads(line) for line in (self.site.log / f"{process}.log").read_text().splitlines()]

    def connect(self, export: str, worker: int = 0, seconds_max: float = 60.0) -> Client:
        """A client of an export, after the handshake; raises OSError if that does not come about."""
        client = Client(str(self.site.nbd_socket(worker)), seconds_max)
        try:
            return client.enter(export)
        except BaseException:
            client.sock.close()
            raise

    def serves(self, export: str, worker: int = 0) -> bool:
        """Whether a client gets through to the export now."""
        try:
            self.connect(export, worker, 5.0).sock.close()
        except (OSError, AssertionError):
            return False
        return True

    def seconds_until_served(self, export: str, worker: int = 0) -> float:
        """How long it takes until a client gets through."""
        began = time.monotonic()
        until(lambda: self.serves(export, worker), f"{export} is served", 90)
        return time.monotonic() - began


def is_alive(pid: int) -> bool:
    """Whether a thread of a process runs (one that has ended and was not waited for has none, whatever its first thread's state)."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
                return True
    return False


class Load:
    """A client that writes one sector after the other, reconnects when it must, and remembers what was acknowledged."""

    def __init__(self, backend: Backend, export: str) -> None:
        self._backend = backend
        self._export = export
        self._stop = threading.Event()
        self.acknowledged: dict[int, int] = {}
        """Sector -> the newest number acknowledged there."""
        self.connects = 0
        self.connected_at = 0.0
        """When it came through last, by time.monotonic."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def writes(self) -> int:
        """How many were acknowledged."""
        return sum(self.acknowledged.values())

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._backend.connect(self._export) as client:
                    self.connects, self.connected_at = self.connects + 1, time.monotonic()
                    self._write(client)
            except (OSError, AssertionError):
                self._stop.wait(0.002)

    def _write(self, client: Client) -> None:
        while not self._stop.is_set():
            for sector in range(64):
                number = self.acknowledged.get(sector, 0) + 1
                client.send(write(number, sector * 512, number.to_bytes(8, "big") * 64))
                assert client.reply().error == 0
                self.acknowledged[sector] = number

    def lost(self) -> dict[int, tuple[int, int]]:
        """Sector -> (acknowledged, found) of every acknowledged write that is not there."""
        missing = {}
        with self._backend.connect(self._export) as client:
            for sector, number in self.acknowledged.items():
                client.read(sector, sector * 512, 512)
                found = int.from_bytes(client.reply().data[:8], "big")
                if found < number:
                    missing[sector] = (number, found)
        return missing
