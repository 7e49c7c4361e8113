"""`pulumi up` of many groups, against as many dynamic resources that do nothing, with the same state backend and settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.row import Row
from setup import checkout, pulumi_tools
from setup.pulumi_environment import pulumi_environment

_OURS = """
import dpac
copies = dpac.FilesystemTarget("copies", path={copies!r})
for number in range({count}):
    dpac.ProtectionGroup(
        f"up-{{number}}",
        members={{"disk": dpac.Volume(path=f"{volumes}/{{number}}.raw", size="1MiB")}},
        replication={{"copies": dpac.Async(copies, rpo="15s")}},
    )
"""
_NOTHING = """
from nothing import Nothing, NothingProvider
for number in range({count}):
    Nothing(NothingProvider(), f"nothing-{{number}}", {{"path": f"{volumes}/{{number}}.raw", "size": "1MiB", "rpo": "15s"}})
"""
_NOTHING_PROVIDER = """
from pulumi import dynamic


class NothingProvider(dynamic.ResourceProvider):
    def create(self, props):
        return dynamic.CreateResult(props["path"], props)

    def diff(self, _id, old, new):
        return dynamic.DiffResult(changes=old != new)


class Nothing(dynamic.Resource):
    pass
"""


class Project:
    """A program in a folder of its own, with a stack."""

    def __init__(self, folder: Path, program: str, variables: dict[str, str]) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "Pulumi.yaml").write_text(f"name: {folder.name}\nruntime: python\n")
        (folder / "nothing.py").write_text(_NOTHING_PROVIDER)
        (folder / "__main__.py").write_text(program)
        tools = pulumi_tools.find()
        if tools is None:
            raise RuntimeError("bench needs the Pulumi CLI: run `make tools`")
        self._variables = pulumi_environment(folder / "pulumi", tools=tools, venv_bin=checkout.VENV_BIN) | variables
        self._pulumi("stack", "init", "bench")

    def up_seconds(self) -> float:
        """How long an update takes."""
        began = time.monotonic()
        self._pulumi("up", "--yes", "--skip-preview", "--stack", "bench")
        return time.monotonic() - began

    def destroy(self) -> None:
        """Take everything back."""
        self._pulumi("destroy", "--yes", "--skip-preview", "--stack", "bench")
        shutil.rmtree(self._folder)

    def _pulumi(self, *arguments: str) -> None:
        program = shutil.which("pulumi", path=self._variables["PATH"])
        done = subprocess.run(
            [str(program), *arguments, "--non-interactive"],
            cwd=self._folder,
            env=self._variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"pulumi {arguments[0]}: {(done.stdout + done.stderr)[-2000:]}")


def pulumi_rows(folder: Path, count: int) -> Iterator[Row]:
    """Creating all of them, and an update that finds nothing to do."""
    home = folder / "pulumi-up"
    (home / "volumes").mkdir(parents=True)
    words = {"count": count, "volumes": str(home / "volumes"), "copies": str(home / "copies")}
    ours = Project(home / "ours", _OURS.format(**words), {"DPAC_CONFIG_DIR": str(folder / "config")})
    nothing = Project(home / "nothing", _NOTHING.format(**words), {"DPAC_CONFIG_DIR": os.devnull})
    try:
        for what in ("creating", "without a change"):
            mine, other = ours.up_seconds(), nothing.up_seconds()
            title = f"`pulumi up` of {count:,} groups, {what}"
            yield Row.against(title, mine, f"{count:,} no-op resources", other, "s", most=1.5)
    finally:
        ours.destroy()
        nothing.destroy()
        shutil.rmtree(home)
