"""kill -9 of any process of the whole product at random moments under load: nothing acknowledged is ever lost.

Fault model: any of the processes of `dpac serve`, or all of them, ends at any instruction; the host and its page cache
live on. One client writes numbered sectors and notes what was acknowledged.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dpac_api.client import Client
from dpac_api.models import FilesystemTargetSpec, GroupSpec
from dpac_api.resolve import resolve
from dpac_engine.control import serve
from dpac_engine.control.site import supervisor_pid
from tests.nbd.serving import until
from tests.processes.backend import Backend, Load, is_alive


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    """The whole product, with one volume that is copied to one target."""
    with Backend(tmp_path / "data", supervisor=serve.SUPERVISOR) as backend:
        backend.start()
        with Client(resolve()) as site:
            site.put_target("copies", FilesystemTargetSpec(path=str(tmp_path / "copies")))
            spec = {
                "members": {"disk": {"kind": "volume", "path": str(tmp_path / "disk.raw"), "size": "1MiB"}},
                "replication": {"copies": {"mode": "async", "target": "copies", "rpo": "1s"}},
            }
            site.put_group("shop", GroupSpec.model_validate(spec))
        yield backend


def kill(backend: Backend, victim: str, chance: random.Random) -> None:
    """kill -9 `victim`, or every process in any order; what needs `dpac serve` again gets it."""
    pids = backend.pids()
    for name, pid in chance.sample(sorted(pids.items()), len(pids)):
        if victim in ("all", name):
            with suppress(ProcessLookupError):  # the kernel was faster: its supervisor is dead
                os.kill(pid, signal.SIGKILL)
    if victim in ("all", "supervisor"):
        until(lambda: supervisor_pid(backend.data) is None, "the supervisor is gone")
        backend.start()
        assert not any(is_alive(pid) for pid in pids.values())


@pytest.mark.e2e
@pytest.mark.parametrize(
    "rounds",
    [pytest.param(10, id="10"), pytest.param(100, id="100", marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_no_acknowledged_write_is_lost_whatever_is_killed(
    backend: Backend, tmp_path: Path, seed: int, rounds: int
) -> None:
    """Rounds of kill -9 under load; in the end the export, and after a stop the raw file itself, hold every write."""
    chance = random.Random(seed)
    gaps: dict[str, list[float]] = {}
    with Load(backend, "shop/disk") as load:
        until(lambda: load.connects == 1, "the client has come through")
        for _ in range(rounds):
            goal = load.writes + chance.randrange(20, 2000)
            until(lambda goal=goal: load.writes >= goal, "the load has written", 60)
            victim = chance.choice(["worker-0", "worker-0", "control", "supervisor", "all"])
            began = time.monotonic()
            kill(backend, victim, chance)
            if victim != "control":
                until(lambda began=began: load.connected_at > began, "the client has come through again", 30)
                gaps.setdefault(victim, []).append(round(load.connected_at - began, 2))
    print("seconds from the kill until the client was served again:", gaps)
    assert load.lost() == {}
    serve.stop(backend.data)
    raw = (tmp_path / "disk.raw").read_bytes()
    for sector, number in load.acknowledged.items():
        assert int.from_bytes(raw[sector * 512 : sector * 512 + 8], "big") >= number
