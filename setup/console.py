"""What set-up tells the person in front of it, and how it runs commands."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_TERMINAL_TICK_SECONDS = 0.5
_LOG_TICK_SECONDS = 15.0
_TAIL_LINES = 30


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def say(message: str) -> None:
    """One line of progress."""
    print(f"dpac: {message}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    interactive: bool = False,
) -> None:
    """Run a command whose own output the person shall see; an interactive one draws as on a terminal if there is one."""
    stdin = None if interactive else subprocess.DEVNULL
    result = subprocess.run([str(part) for part in command], env=env, cwd=cwd, check=False, stdin=stdin)
    if result.returncode != 0:
        raise SetupError(f"`{_shown(command)}` ended with status {result.returncode}; its output is above.")


def capture(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a command prints; SetupError carries the end of what it said if it fails."""
    result = subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise SetupError(f"`{_shown(command)}` ended with status {result.returncode}:\n{_tail(result.stderr)}")
    return result.stdout


def run_counting(title: str, unit: str, command: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> None:
    """Run a long command that prints one line per unit of work; show how many so far instead of the lines."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    with process, _Counter(title, unit) as counter:
        for line in process.stdout:
            lines.append(line)
            counter.add()
        if process.wait() != 0:
            raise SetupError(f"{title} failed with status {process.returncode}:\n{_tail(''.join(lines))}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs of set-up; the kernel lets go if this process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is at work in {folder}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Counter:
    """A line that is rewritten on a terminal, and repeated now and then elsewhere, also while nothing is counted."""

    def __init__(self, title: str, unit: str) -> None:
        self._title = title
        self._unit = unit
        self._count = 0
        self._started = time.monotonic()
        self._finished = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        say(f"{self._title} ...")
        self._ticker.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._finished.set()
        self._ticker.join()
        if failure is None:
            say(f"{self._title}: done in {self._elapsed():.0f} s")

    def add(self) -> None:
        """One more unit is done."""
        self._count += 1

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _tick(self) -> None:
        terminal = sys.stderr.isatty()
        while not self._finished.wait(_TERMINAL_TICK_SECONDS if terminal else _LOG_TICK_SECONDS):
            text = f"{self._title}: {self._count} {self._unit}, {self._elapsed():.0f} s"
            if terminal:
                print(f"\r\033[Kdpac: {text}", end="", file=sys.stderr, flush=True)
            else:
                say(text)
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(str(part) for part in command)


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-_TAIL_LINES:])
