"""The quickstart as a newcomer runs it: up, again, down, preview, up, get it back, clean."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from setup import checkout, environment, orders, quickstart
from setup.checkout import State
from tests.tools import require_pulumi

pytestmark = [pytest.mark.e2e, pytest.mark.pulumi]

DPAC = checkout.VENV_BIN / "dpac"


def dpac(*arguments: str) -> Any:
    """What `dpac ... --json` says; no flags, no endpoint: the context file that set-up wrote."""
    result = subprocess.run([DPAC, *arguments, "--json"], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A state folder and a copy of the example, so that the developer's own quickstart is left alone."""
    require_pulumi()
    example = tmp_path / "quickstart"
    shutil.copytree(checkout.QUICKSTART, example, ignore=shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__"))
    monkeypatch.setattr(quickstart, "QUICKSTART", example)
    monkeypatch.setattr(quickstart, "_STACK_SETTINGS", example / f"Pulumi.{quickstart.STACK}.yaml")
    # The tests run in the environment that set-up would make.
    monkeypatch.setattr(environment, "ensure", lambda _: Path(sys.executable))
    monkeypatch.setenv("DPAC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("YES", "1")
    yield State.of_checkout()
    quickstart.clean()


def unchanged(output: str) -> bool:
    """Pulumi found nothing to do."""
    return "unchanged" in output and "to create" not in output and "to update" not in output


def test_the_quickstart_from_nothing_to_a_proven_restore(
    state: State, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One command protects, the second changes nothing; after a stop it goes on; what comes back is whole."""
    quickstart.up()
    shown = capfd.readouterr().out
    assert "what to try next" in shown
    status = dpac("status", "quickstart")
    assert status["protected"] is True
    assert {name for name, member in status["members"].items() if member["seeded"]} == {"disk", "orders"}
    drills = [entry for entry in dpac("operation", "list")["items"] if entry["kind"] == "Drill"]
    assert [drill["phase"] for drill in drills] == ["Succeeded"]

    quickstart.up()
    assert unchanged(capfd.readouterr().out)

    quickstart.down()
    assert not orders.running(state)
    capfd.readouterr()
    quickstart.preview()
    assert unchanged(capfd.readouterr().out), "a preview needs no backend"

    quickstart.up()
    assert unchanged(capfd.readouterr().out)
    assert orders.running(state)

    told = state.acknowledged.read_text().splitlines()[-1].split()[1]
    checkpoint = dpac("checkpoint", "quickstart", "--app", "--tag", "proof")
    assert checkpoint["consistency"] == "app"
    restored = tmp_path / "restored"
    subprocess.run(
        [DPAC, "restore", "quickstart", "--member", "orders", "--at", "tag:proof", "--to", restored], check=True
    )
    check = [sys.executable, checkout.QUICKSTART / "orders.py", "check", restored / "orders.db"]
    proven = subprocess.run(
        [*check, "--acknowledged", state.acknowledged, "--by", told], capture_output=True, text=True, check=False
    )
    assert proven.returncode == 0, proven.stdout
    assert "whole, nothing missing" in proven.stdout


def test_the_stack_keeps_no_secret_in_plain_text_and_nothing_of_the_user(state: State) -> None:
    """The token is in no stack file; Pulumi's home is ours; the shell file leads to this site."""
    quickstart.up()
    token = (state.site / "tokens" / "admin").read_text().strip()
    stacks = (state.pulumi / "stacks").rglob("*")
    assert not [file for file in stacks if file.is_file() and token in file.read_text(errors="replace")]
    shell = f'. {state.shell_environment} && dpac status quickstart --json && echo "$PULUMI_HOME" && command -v pulumi'
    result = subprocess.run(
        ["env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent", "sh", "-c", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-2:] == [str(state.pulumi / "home"), str(require_pulumi() / "pulumi")]
