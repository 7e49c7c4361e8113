"""Clients that ride through a backend that is killed: they wait, connect again, and never see an error."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.tools import require_tool

RIDE_SECONDS_MAX = 60
CHUNK_BYTES = 4096


class Rider:
    """`with Rider(...) as rider:` runs a client again and again; each run must succeed, whatever is killed meanwhile."""

    def __init__(self, name: str, run: Callable[[int], list[str]]) -> None:
        self.name = name
        self._command = run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ride, name=name, daemon=True)
        self.runs: list[tuple[float, float]] = []
        """When each run began and ended, by time.monotonic."""
        self.failures: list[str] = []

    def __enter__(self) -> Rider:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ride(self) -> None:
        while not self._stop.is_set() and not self.failures:
            command = self._command(len(self.runs) + 1)
            began = time.monotonic()
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=3 * RIDE_SECONDS_MAX, check=False
                )
            except subprocess.TimeoutExpired as error:
                self.failures.append(f"{self.name}: {error}")
                return
            self.runs.append((began, time.monotonic()))
            if done.returncode or "failed" in done.stdout:
                self.failures.append(f"{self.name} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")

    def rode_through(self, moments: list[float]) -> int:
        """At how many of these moments a run was under way that succeeded afterwards."""
        return sum(any(began < moment < ended for began, ended in self.runs) for moment in moments)


def qemu_rider(uri: str, size_bytes: int) -> Rider:
    """qemu's block layer with `reconnect-delay`: writes a volume chunk by chunk and verifies it by its pattern."""
    parts = urlsplit(uri)
    options = (
        f"driver=nbd,server.type=unix,server.path={parse_qs(parts.query)['socket'][0]},"
        f"export={unquote(parts.path.lstrip('/'))},reconnect-delay={RIDE_SECONDS_MAX},open-timeout={RIDE_SECONDS_MAX}"
    )
    tool = require_tool("qemu-io")

    def command(run: int) -> list[str]:
        value, words = run % 255 + 1, []
        for offset in range(0, size_bytes, CHUNK_BYTES):
            words += ["-c", f"write -q -P {value} {offset} {CHUNK_BYTES}", "-c", "sleep 2"]
        return [tool, "--image-opts", *words, "-c", "flush", "-c", f"read -q -P {value} 0 {size_bytes}", options]

    return Rider("qemu-io", command)


def nbdkit_rider(uri: str, size_bytes: int, folder: Path, seed: int) -> Rider:
    """nbdkit's nbd plugin under the retry filter: nbdcopy copies an image in through it, out again, and compares."""
    tools = [require_tool("nbdkit"), require_tool("nbdcopy"), require_tool("cmp")]
    folder.mkdir()
    image, back = folder / "image.raw", folder / "back.raw"

    def command(run: int) -> list[str]:
        image.write_bytes(random.Random(seed + run).randbytes(size_bytes))
        there_and_back = f'nbdcopy --flush {image} "$uri" && nbdcopy "$uri" {back} && cmp {image} {back}'
        return [
            tools[0],
            "--unix=-",
            "--filter=rate",
            "--filter=retry",
            "nbd",
            f"uri={uri}",
            f"retry={RIDE_SECONDS_MAX}",
            f"retries={RIDE_SECONDS_MAX}",
            "retry-delay=1",
            "retry-exponential=no",
            "rate=16M",  # bits a second: slow enough that a kill hits it
            "--run",
            there_and_back,
        ]

    return Rider("nbdkit", command)
