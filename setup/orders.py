"""Start and stop the quickstart's order application.

Its pid file is locked for as long as it runs: the application inherits the
locked file, so that a stale file, or a process id used again, misleads nobody.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

from setup.checkout import QUICKSTART, VENV_BIN, State
from setup.console import SetupError, say

_STOP_SECONDS = 10.0
_START_SECONDS = 15.0


def start(state: State) -> None:
    """Make the application run; nothing if it does."""
    state.orders.mkdir(parents=True, exist_ok=True)
    database = state.orders / "orders.db"
    with state.orders_pid.open("a+") as pid_file:
        if not _lock(pid_file.fileno()):
            return
        say(f"starting the order application on {database}")
        with state.orders_log.open("a") as log:
            process = subprocess.Popen(
                _command(database, state.acknowledged),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[pid_file.fileno()],
            )
        pid_file.truncate(0)
        pid_file.write(f"{process.pid}\n")
    _wait_for_first_order(process, state)


def _command(database: Path, acknowledged: Path) -> list[str]:
    program = [str(VENV_BIN / "python"), str(QUICKSTART / "orders.py"), "run"]
    return [*program, "--database", str(database), "--acknowledged", str(acknowledged)]


def stop(state: State) -> None:
    """Make the application stop after the order at hand; nothing if it does not run."""
    try:
        pid_file = state.orders_pid.open("r+")
    except FileNotFoundError:
        return
    with pid_file:
        if _lock(pid_file.fileno()):
            return
        say("stopping the order application")
        pid = int(pid_file.read())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while not _lock(pid_file.fileno()):
            if time.monotonic() > deadline:
                raise SetupError(f"The order application (process {pid}) does not stop; look at it, or kill it.")
            time.sleep(0.05)


def running(state: State) -> bool:
    """True if the application runs."""
    try:
        with state.orders_pid.open("r+") as pid_file:
            return not _lock(pid_file.fileno())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """True if nobody held the file; it is ours until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_first_order(process: subprocess.Popen[bytes], state: State) -> None:
    """An application that cannot work shall be seen here, not missed later."""
    size_before = _size(state.acknowledged)
    deadline = time.monotonic() + _START_SECONDS
    while _size(state.acknowledged) <= size_before:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SetupError(f"The order application takes no orders; see {state.orders_log}.")
        time.sleep(0.05)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
