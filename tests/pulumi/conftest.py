"""Real backends, and shops: a stack each, with data and a place for copies of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dpac_api.client import Client
from dpac_api.contexts import read_contexts
from dpac_api.errors import NotFound, Unrecoverable
from dpac_api.resolve import Endpoint, resolve
from setup.checkout import VENV_BIN
from tests.stack import Stack

START_SECONDS_MAX = 60


@dataclass
class Backend:
    """A site served by real processes."""

    folder: Path
    environ: dict[str, str]
    endpoint: Endpoint

    @property
    def variables(self) -> dict[str, str]:
        """How a program finds it: by the context file that `dpac serve --detach` wrote."""
        return {"DPAC_CONFIG_DIR": self.environ["DPAC_CONFIG_DIR"]}

    def client(self) -> Client:
        """REST of this site."""
        return Client(self.endpoint)

    def dpac(self, *arguments: str, stdin: str | None = None) -> str:
        """What the real CLI prints."""
        done = subprocess.run(
            [VENV_BIN / "dpac", *arguments], env=self.environ, input=stdin, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"dpac {' '.join(arguments)} exits {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout


def _serve(folder: Path) -> Iterator[Backend]:
    environ = {**os.environ, "DPAC_CONFIG_DIR": str(folder / "config")}
    backend = Backend(folder, environ, Endpoint("http://unknown", "not served yet"))
    backend.dpac("serve", "--detach", "--data", str(folder / "site"), "--listen", "127.0.0.1:0", "--workers", "1")
    backend.endpoint = resolve(environ=environ)
    assert read_contexts(environ).current is not None
    try:
        yield backend
    finally:
        backend.dpac("stop", "--data", str(folder / "site"))


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The site of this module's shops."""
    yield from _serve(tmp_path_factory.mktemp("site"))


@pytest.fixture
def another_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A site that knows nothing."""
    yield from _serve(tmp_path_factory.mktemp("other"))


class Shop:
    """A group with an order database and a disk, its copies, and the stack that declares them."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str], backend: Backend) -> None:
        self.name = name
        self.folder = folder
        self.backend = backend
        self.data = folder / "data"
        (self.data / "orders").mkdir(parents=True)
        (self.data / "orders" / "first.txt").write_text("an order\n")
        self.stack = Stack(folder / "program", {**environment, **backend.variables}, project=name)

    def program(self, *more: str, **changes: str) -> None:
        """Write the program: the group with some of its arguments changed, and further lines."""
        arguments = {
            "members": self.members(),
            "replication": self.legs(),
            "journal": 'dpac.Journal(history="24h", size_max="2GiB")',
            **changes,
        }
        said = ",\n    ".join(f"{name}={value}" for name, value in arguments.items())
        self.stack.write(
            f'copies = dpac.FilesystemTarget("{self.name}-copies", path="{self.folder}/copies")\n'
            f'group = dpac.ProtectionGroup("{self.name}",\n    {said})\n' + "\n".join(more)
        )

    def members(self, *more: str) -> str:
        """The members, and more."""
        both = (
            f'"orders": dpac.Directory("{self.data}/orders")',
            f'"disk": dpac.Volume("{self.data}/disk.raw", size="16MiB")',
        )
        return "{" + ", ".join((*both, *more)) + "}"

    def legs(self, *more: str, daily: int = 30) -> str:
        """The legs, and more."""
        leg = f'"copies": dpac.Async(to=copies, rpo="15s", retention=dpac.Retention(daily={daily}))'
        return "{" + ", ".join((leg, *more)) + "}"

    def group(self, **options: Any) -> Any:
        """The group as the site has it."""
        with self.backend.client() as client:
            return client.group(self.name, **options)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS_MAX) -> None:
        """Return once something is so; fail after a deadline."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.05)

    def until_protected(self) -> None:
        """The group is protected, as its newest declaration says."""

        def protected() -> bool:
            with self.backend.client() as client:
                status = client.group_status(self.name)
                return status.protected and status.observed_generation >= client.group(self.name).generation

        self.until(protected, f"{self.name} is protected")

    def marked(self, tag: str) -> str | None:
        """The checkpoint with a tag that some target holds."""
        with self.backend.client() as client:
            try:
                return client.checkpoint(self.name, f"tag:{tag}").id
            except (NotFound, Unrecoverable):
                return None

    def checkpoint_times(self) -> list[datetime]:
        """When the newest checkpoints that targets hold were taken."""
        with self.backend.client() as client:
            return [held.time for held in client.checkpoints(self.name, limit=200).items]

    def apply_by_cli(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the group's spec with `dpac group apply`, as a person would."""
        shown = json.loads(self.backend.dpac("group", "show", self.name, "--json"))
        change(shown["spec"])
        self.backend.dpac("group", "apply", "-f", "-", stdin=json.dumps({"name": self.name, "spec": shown["spec"]}))


@pytest.fixture
def shop(tmp_path: Path, pulumi_env: dict[str, str], backend: Backend, request: pytest.FixtureRequest) -> Shop:
    """A shop of the test's own, nothing of it declared yet."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    name = f"{words[:20].strip('-')}-{hashlib.sha256(words.encode()).hexdigest()[:4]}"
    return Shop(tmp_path, name, pulumi_env, backend)
