"""One PostgreSQL server: its data in one folder, its WAL in another, and a socket that only its own user may use."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

DATABASE = "bank"
STOP_SECONDS_MAX = 30
_DEBIAN_PROGRAMS = "/usr/lib/postgresql"
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES_MAX = 107
_BARE = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
_SETTINGS = {"listen_addresses": "", "shared_buffers": "16MB", "max_wal_size": "16MB", "min_wal_size": "8MB"}
"""Small, so that data pages and checkpoints of PostgreSQL's own are written all the time, as they are at a busy server. What
makes a commit durable (fsync, synchronous_commit, full_page_writes) is left as it comes: on."""


class ServerError(Exception):
    """PostgreSQL did not do what was asked; the message has what it said."""


class Server:
    """A server on folders that exist already; `user` is whom it runs as, for PostgreSQL refuses root."""

    def __init__(self, data: Path, wal: Path, run: Path, user: str) -> None:
        self.socket_folder = run
        self.log = run / "server.log"
        self._data = data.resolve() / "cluster"  # as the kernel names it
        self._wal = wal / "wal"
        self._user = _account(user)

    # ------------------------------------------------------------------ life

    def create(self) -> bool:
        """Make the cluster, unless it is there; its WAL goes to the other folder. True if it made one."""
        if (self._data / "PG_VERSION").exists():
            return False
        for folder in (self._data, self._wal):
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        self._run(
            "initdb",
            "--auth=peer",
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C",
            "--wal-segsize=4",
            f"--username={self._user.pw_name}",
            f"--pgdata={self._data}",
            f"--waldir={self._wal}",
        )
        return True

    def take_over_copy(self) -> None:
        """Cut what a copy shares with the server it is a copy of: `pg_wal` leads to that one's WAL, and its lock names that one's process."""
        link = self._data / "pg_wal"
        link.unlink()
        link.symlink_to(self._wal)
        self._remove_stale_locks()
        self.log.unlink(missing_ok=True)

    def start(self) -> None:
        """Start, unless it runs, and return when it has recovered and takes connections."""
        if self.running:
            return
        self._remove_stale_locks()
        self._make_socket_folder()
        settings = {**_SETTINGS, "unix_socket_directories": str(self.socket_folder)}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._run("pg_ctl", "start", "--wait", f"--pgdata={self._data}", f"--log={self.log}", f"--options={options}")

    def log_lines(self, *words: str) -> list[str]:
        """The lines of the server's log that have one of these words."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [line for line in lines if any(word in line for word in words)]

    def stop(self) -> None:
        """Stop, in good order if that is possible, and return when it has ended."""
        process = self._process()
        if process is None:
            return
        try:
            ended = os.pidfd_open(process)
        except ProcessLookupError:
            return
        try:
            # Not by pg_ctl, which looks into the data folder: the disk below it may be gone. Without its disk a server may not
            # end in good order, ever.
            for order in (signal.SIGINT, signal.SIGQUIT):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(ended, order)
                if select.select([ended], [], [], STOP_SECONDS_MAX)[0]:
                    return
            raise ServerError(f"The server (process {process}) does not end; {self.log} says why.")
        finally:
            os.close(ended)

    @property
    def running(self) -> bool:
        """Whether a server serves this cluster."""
        return self._process() is not None

    def _process(self) -> int | None:
        """The server's process by the lock of its socket, which lies on no protected disk; None if that process is not the cluster's.

        One that has ended, but that nobody has waited for yet, works in no folder.
        """
        try:
            process = int(self._socket_lock.read_text().split()[0])
            return process if os.readlink(f"/proc/{process}/cwd") == str(self._data) else None
        except (OSError, ValueError, IndexError):
            return None

    @property
    def _socket_lock(self) -> Path:
        return self.socket_folder / f"{_SOCKET}.lock"

    def _remove_stale_locks(self) -> None:
        """What a server that has ended left: its number may be another process's by now, and PostgreSQL would not start."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self._socket_lock.unlink(missing_ok=True)

    def _make_socket_folder(self) -> None:
        length = len(os.fsencode(self.socket_folder / _SOCKET))
        if length > _SOCKET_PATH_BYTES_MAX:
            raise ServerError(f"{self.socket_folder} is too long a path for a socket; choose a shorter folder.")
        self.socket_folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(self.socket_folder, self._user.pw_uid, self._user.pw_gid)

    # ------------------------------------------------------------------ clients

    def sql(self, statement: str, database: str = DATABASE) -> str:
        """What a statement returns, a row a line; ServerError if it fails."""
        return self._run(*self.client("psql", *_BARE, "--command", statement, f"--dbname={database}"))

    def amcheck(self) -> None:
        """Read every table and index, and hold them against each other; ServerError says what does not match."""
        self._run(*self.client("pg_amcheck", "--install-missing", "--heapallindexed", f"--database={DATABASE}"))

    def client(self, name: str, *arguments: str) -> list[str]:
        """The command line of one of PostgreSQL's client programs, to be run `as_user`."""
        return [name, f"--host={self.socket_folder}", f"--username={self._user.pw_name}", *arguments]

    def reader_of_statements(self) -> list[str]:
        """The command line of a client that reads statements from its standard input, and prints rows and nothing else."""
        name, *arguments = self.client("psql", *_BARE, f"--dbname={DATABASE}")
        return [program(name), *arguments]

    def as_user(self) -> dict[str, Any]:
        """Arguments of `subprocess` that run something as the server's user."""
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": [], "cwd": "/"}

    def _run(self, name: str, *arguments: str) -> str:
        # Into a file, not a pipe: a server that pg_ctl starts would hold the pipe open.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [program(name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=False,
                **self.as_user(),
            )
            said.seek(0)
            text = said.read().strip()
        if done.returncode != 0:
            raise ServerError(f"{name} ended with {done.returncode}: {text}")
        return text


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs; Debian keeps most of them off the PATH."""
    installed = sorted(Path(_DEBIAN_PROGRAMS).glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    if installed:
        return str(installed[-1])
    found = shutil.which(name)
    if found is None:
        raise ServerError(f"{name} is not there; install PostgreSQL (Debian: apt-get install postgresql).")
    return found


def _account(user: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise ServerError(
            f"There is no user {user!r} to run PostgreSQL as; name another, or: useradd --system {user}"
        ) from error
    if account.pw_uid == 0:
        raise ServerError("PostgreSQL refuses to run as root; name another user.")
    return account
