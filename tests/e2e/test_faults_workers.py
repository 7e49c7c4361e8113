"""A group whose start ends its worker: found, named, held back, and served again when the cause is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.nbd.serving import until
from tests.processes.backend import Backend, assignment, put_assignment

pytestmark = pytest.mark.e2e


def test_one_group_does_not_take_the_others_down_for_ever(tmp_path: Path) -> None:
    """The innocent ones, started beside it at first, are served within a few deaths, and stay so."""
    with Backend(tmp_path / "data") as backend:
        groups = backend.data / "groups"
        good = [put_assignment(groups, assignment(f"good-{number}")) for number in range(3)]
        bad = put_assignment(groups, assignment("bad"))
        backend.start()
        assert backend.serves("bad/disk")
        (bad / "crash").touch()
        backend.kill("worker-0")
        until(lambda: any("held back" in line["message"] for line in backend.log_lines("worker-0")), "it is found", 60)
        until(lambda: all(backend.serves(f"good-{number}/disk") for number in range(3)), "the others are served", 60)
        assert backend.child("worker-0").last_exit == "ended with status 4"
        pid = backend.pids()["worker-0"]
        assert not backend.serves("bad/disk")
        assert any(
            "bad" in line["message"] and "held back" in line["message"] for line in backend.log_lines("worker-0")
        )
        assert not any((folder / "starting").exists() for folder in good)
        (bad / "crash").unlink()
        an_hour_ago = (bad / "starting").stat().st_mtime - 3600
        os.utime(bad / "starting", (an_hour_ago, an_hour_ago))
        until(lambda: backend.serves("bad/disk"), "it is tried again and served", 60)
        assert backend.pids()["worker-0"] == pid
        assert not (bad / "starting").exists()
