"""A backend of its own for a benchmark: `dpac serve` on a temporary folder, and a client of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dpac_api.client import Client
from dpac_api.models import Owner
from dpac_api.resolve import resolve

T = TypeVar("T")
OWNER = Owner(project="bench", stack="bench")
DPAC = Path(sys.executable).with_name("dpac")


@contextmanager
def backend(folder: Path) -> Iterator[Client]:
    """A running site in `folder`; stopped at the end."""
    environment = {**os.environ, "DPAC_CONFIG_DIR": str(folder / "config")}
    data = folder / "site"
    subprocess.run([DPAC, "serve", "--detach", "--data", data], check=True, env=environment, stdout=subprocess.DEVNULL)
    try:
        with Client(resolve(environ={"DPAC_CONFIG_DIR": str(folder / "config")})) as client:
            yield client
    finally:
        subprocess.run([DPAC, "stop", "--data", data], check=True, env=environment, stdout=subprocess.DEVNULL)


def wait_for(what: str, probe: Callable[[], T | None], seconds: float = 300.0, poll_seconds: float = 0.2) -> T:
    """The first answer of `probe` that is not None or False."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = probe()
        if answer:
            return answer
        time.sleep(poll_seconds)
    raise TimeoutError(f"{what}: not within {seconds} s")
