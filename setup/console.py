"""What set-up tells the person in front of it, and how it runs commands."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_QUIET_LINE_SECONDS = 15.0
_TAIL_LINES = 30


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def say(message: str) -> None:
    """One line of progress."""
    print(f"dpac: {message}", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run a command whose own output the person shall see."""
    result = subprocess.run([str(part) for part in command], env=env, cwd=cwd, check=False, stdin=subprocess.DEVNULL)
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
    with process, _counter(title, unit) as show:
        for line in process.stdout:
            lines.append(line)
            show(len(lines))
    if process.returncode != 0:
        raise SetupError(f"{title} failed with status {process.returncode}:\n{_tail(''.join(lines))}")


class _Counter:
    """A line that is rewritten on a terminal, and repeated now and then elsewhere."""

    def __init__(self, title: str, unit: str) -> None:
        self._title = title
        self._unit = unit
        self._started = time.monotonic()
        self._shown_at = self._started

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        due = 0.2 if sys.stderr.isatty() else _QUIET_LINE_SECONDS
        if now - self._shown_at < due:
            return
        self._shown_at = now
        text = f"{self._title}: {count} {self._unit}, {now - self._started:.0f} s"
        if sys.stderr.isatty():
            print(f"\rdpac: {text} ", end="", file=sys.stderr, flush=True)
        else:
            say(text)

    def finish(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        say(f"{self._title}: done in {time.monotonic() - self._started:.0f} s")


@contextmanager
def _counter(title: str, unit: str) -> Iterator[_Counter]:
    counter = _Counter(title, unit)
    say(f"{title} ...")
    yield counter
    counter.finish()


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(str(part) for part in command)


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-_TAIL_LINES:])
