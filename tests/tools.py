"""Programs that tests drive: a missing one is a named skip on a laptop and a failure with CI=true."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from setup import checkout, go_tools, pulumi_tools
from setup.packages import DEBIAN_PACKAGE, program
from setup.pulumi_environment import pulumi_environment as _environment


def must_have_everything() -> bool:
    """True where every tool must be there (CI=true), so that no test is skipped unseen."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def lacking(what: str, remedy: str) -> NoReturn:
    """Skip this test on a laptop, fail it with CI=true, naming what it lacks and how to get it."""
    message = f"needs {what}: {remedy}"
    if must_have_everything():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def require_tool(name: str) -> str:
    """The path of a program, for example `require_tool("qemu-io")`."""
    found = program(name)
    if found is None:
        package = DEBIAN_PACKAGE.get(name)
        lacking(name, f"apt-get install {package}" if package else f"put {name} on PATH")
    return found


def require_go_tool(name: str) -> str:
    """The path of a program that set-up builds, for example `require_go_tool("versitygw")`."""
    found = go_tools.find(name)
    if found is None:
        lacking(name, f"run `setup/python -m setup.go_tools {name}`")
    return str(found)


def require_pulumi() -> Path:
    """The folder of the Pulumi CLI and its Python language host."""
    found = pulumi_tools.find()
    if found is None:
        lacking("the Pulumi CLI with its Python language host", "run `make tools`")
    return found


def require_root() -> None:
    """For tests that mount, or make loop devices."""
    if os.geteuid() != 0:
        # Nobody is root on a well-kept laptop or on every CI host, so this is a skip everywhere.
        pytest.skip("needs root")


def pulumi_environment(folder: Path) -> dict[str, str]:
    """Variables to run Pulumi with everything it keeps under `folder`: home, stacks, passphrase.

    `pulumi` itself is on the PATH in it: `subprocess.run([shutil.which("pulumi", path=env["PATH"]), ...], env=env)`,
    or `LocalWorkspaceOptions(env_vars=env)` for the Automation API.
    """
    return _environment(folder, tools=require_pulumi(), venv_bin=checkout.VENV_BIN)
