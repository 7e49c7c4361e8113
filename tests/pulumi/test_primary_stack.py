"""The repository's own project, from its root: `pulumi up -s primary` as it comes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pulumi.automation as auto
import pytest

from setup import checkout
from tests.pulumi.conftest import Backend
from tests.stack import Stack
from tests.tools import pulumi_environment

pytestmark = pytest.mark.pulumi


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the root project, beside the folders that `make up` leaves in a checkout."""
    folder = tmp_path / "checkout"
    (folder / ".dpac" / "data").mkdir(parents=True)
    shutil.copy(checkout.ROOT / "Pulumi.yaml", folder)
    shutil.copytree(checkout.ROOT / "stacks", folder / "stacks", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def primary(project: Path, tmp_path: Path, backend: Backend) -> Iterator[Stack]:
    """The stack `primary` of that copy."""
    environment = {**pulumi_environment(tmp_path / "pulumi"), **backend.variables}
    stack = Stack(project, environment, name="primary", project=None)
    yield stack
    stack.destroy()


def test_primary_from_up_to_destroy(primary: Stack, project: Path, tmp_path: Path, backend: Backend) -> None:
    """Up protects, a second up is empty, a change is previewed as what it is, destroy keeps the data; no secret stays."""
    uri = primary.up().outputs["primary"].value["disk"]
    assert uri.startswith("nbd+unix://")
    with backend.client() as client:
        assert client.group_status("primary").protected
        assert client.group("primary").spec.members["disk"].path == f"{project}/.dpac/data/primary.raw"
    primary.up(expect_no_changes=True)

    primary.configure("dpac:groups.primary.replication.copies.rpo", "5s")
    steps = primary.preview()
    del steps["default"]  # Pulumi's provider of dynamic resources is given all of the stack's configuration
    assert {name: step.operation for name, step in steps.items()} == {"primary-group": "update"}
    assert steps["primary-group"].changes() == {"replication.copies.rpo": ("15s", "5s")}
    primary.up()
    primary.up(expect_no_changes=True)

    token = (backend.folder / "site" / "tokens" / "admin").read_text().strip()
    assert json.loads(primary.exported())["deployment"]["resources"]
    assert token not in primary.exported(show_secrets=True)
    kept = [*(tmp_path / "pulumi").rglob("*"), *project.rglob("*")]
    assert not [file for file in kept if file.is_file() and token.encode() in file.read_bytes()]

    primary.destroy()
    assert primary.resources() == {}
    assert (project / ".dpac" / "data" / "primary.raw").stat().st_size == 64 * 2**20


def test_another_stack_says_which_program_it_runs(project: Path, tmp_path: Path, backend: Backend) -> None:
    """An unknown program is a message that lists those there are; `dpac:program` chooses one."""
    environment = {**pulumi_environment(tmp_path / "pulumi"), **backend.variables}
    stack = Stack(project, environment, name="shop", project=None)
    with pytest.raises(auto.CommandError) as caught:
        stack.preview()
    assert "'shop'; there is: primary" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    stack.configure("dpac:program", "primary")
    with pytest.raises(auto.CommandError, match="dpac:groups is empty"):
        stack.preview()
