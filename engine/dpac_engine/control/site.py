"""A site's data folder: who the site is, where what lies, and the locks that keep two backends apart.

Standard library only: the supervisor starts with it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dpac_api.errors import Conflict, Corruption, DpacError, Invalid, NotFound, Temporary, Unsupported
from dpac_engine.control.sockets import unix_path_fits
from dpac_engine.io.files import make_folder, replace_file

LAYOUT_VERSION = 1
FOLDERS = ("keys", "keys/data", "tokens", "groups", "mounts", "log")
_LONGEST_SOCKET = "worker-999.rpc"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OURS = {"site.json", "site.json.partial", "lock", "supervisor.lock", "run", *FOLDERS}
"""What a site whose making was interrupted may hold."""


@dataclass(frozen=True)
class Site:
    """A site on this host, as `site.json` describes it."""

    site_uid: str
    name: str
    data: Path
    run: Path
    """Where its sockets and pids are: `DATA/run`, or a shorter folder where that path is too long for a socket."""
    layout: int = LAYOUT_VERSION

    # ------------------------------------------------------------ where what lies

    @property
    def catalogue_file(self) -> Path:
        """The SQLite catalogue."""
        return self.data / "catalogue.sqlite"

    @property
    def keys(self) -> Path:
        """The folder of `io.keys`."""
        return self.data / "keys"

    @property
    def admin_token_file(self) -> Path:
        """The token of this host's own CLI and of `make up`."""
        return self.data / "tokens" / "admin"

    @property
    def mounts(self) -> Path:
        """One folder a mounted checkpoint."""
        return self.data / "mounts"

    @property
    def log(self) -> Path:
        """The log files."""
        return self.data / "log"

    @property
    def endpoint_file(self) -> Path:
        """Where REST and the exports listen."""
        return self.run / "endpoint.json"

    @property
    def supervisor_file(self) -> Path:
        """What the supervisor's children do."""
        return self.run / "supervisor.json"

    @property
    def groups(self) -> Path:
        """One folder a group, by its uid."""
        return self.data / "groups"

    def group(self, group_uid: str) -> Path:
        """What a group has on this host."""
        return self.data / "groups" / group_uid

    def nbd_socket(self, worker: int) -> Path:
        """Where a worker's exports listen."""
        return self.run / f"nbd-{worker}.sock"

    def nbd_uri(self, worker: int, export: str) -> str:
        """Where clients on this host find an export."""
        return f"nbd+unix:///{quote(export)}?socket={quote(str(self.nbd_socket(worker)))}"

    def rpc_socket(self, worker: int) -> Path:
        """Where a worker listens to control."""
        return self.run / f"worker-{worker}.rpc"

    # ------------------------------------------------------------ making and reading

    @classmethod
    def read(cls, data: Path) -> Site:
        """The site in a data folder. NotFound if there is none, Corruption if it is damaged, Unsupported if it is newer."""
        path = data / "site.json"
        try:
            fields = json.loads(path.read_bytes())
            layout = int(fields["layout"])
            if layout > LAYOUT_VERSION:
                raise Unsupported(
                    f"{data} was written by a newer dpac (layout {layout}; this one knows {LAYOUT_VERSION}). "
                    "Use that version or a newer one."
                )
            return cls(str(fields["site_uid"]), str(fields["name"]), data, Path(fields["run"]), layout)
        except FileNotFoundError:
            raise NotFound(f"There is no dpac site in {data}. `dpac serve --data {data}` makes one.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Corruption(f"{path} is damaged. Put it back from a copy: it says who this site is.") from error
        except OSError as error:
            raise Invalid(f"{path} cannot be read ({error.strerror}). Run as the user that owns the site.") from error

    @classmethod
    def open(cls, data: Path, *, name: str = "local", run: Path | None = None) -> Site:
        """The site in a data folder, made if there is none; the caller holds its locks.

        `name` counts when the site is made. `run` moves its sockets. Raises Invalid for a folder that holds other
        things, Corruption if a site has lost its `site.json` or a key, Unsupported if it is newer.
        """
        try:
            known = cls.read(data)
        except NotFound:
            known = None
        try:
            site = known or cls._new(data, name, run)
            for folder in FOLDERS:
                make_folder(data / folder)
            site = site._with_run(run)
            site._make_secrets(new=known is None)
            if known is None:
                # Before site.json, whose sync makes its name durable too: from there on a site without it has lost it.
                site.catalogue_file.touch(0o600)
            if site != known:
                site._write()
        except OSError as error:
            raise Invalid(
                f"The data folder {data} cannot be used: {error.strerror} ({error.filename}). Correct its permissions."
            ) from error
        return site

    @classmethod
    def _new(cls, data: Path, name: str, run: Path | None) -> Site:
        if not _NAME.fullmatch(name):
            raise Invalid(f"{name!r} is not a site's name: up to 63 lower-case letters, digits and dashes.")
        others = sorted(entry.name for entry in data.iterdir() if entry.name not in _OURS)
        if others == ["catalogue.sqlite"] and not (data / "catalogue.sqlite").stat().st_size:
            others = []  # made, and never used: the making of the site was interrupted
        if "catalogue.sqlite" in others:
            raise Corruption(f"{data} has lost its site.json. Put it back from a copy: it says who this site is.")
        if others:
            raise Invalid(f"{data} holds other things ({others[0]}). Choose an empty or a new folder for --data.")
        return cls(os.urandom(16).hex(), name, data, run or data / "run")

    def _with_run(self, wanted: Path | None) -> Site:
        """This site with a run folder that exists, is private and short enough for sockets."""
        run = wanted or self.run
        if wanted is None and not unix_path_fits(run / _LONGEST_SOCKET):
            run = _short_run_folder(self.site_uid)
        if not unix_path_fits(run / _LONGEST_SOCKET):
            raise Invalid(f"The run folder {run} is too long a path for unix sockets. Choose a shorter --run-dir.")
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(run)
        return Site(self.site_uid, self.name, self.data, run, self.layout)

    def _make_secrets(self, *, new: bool) -> None:
        for key in ("kek", "signing"):
            path = self.keys / key
            if path.exists():
                continue
            if not new:
                raise Corruption(f"{path} is missing. Put it back from a copy; no other key opens what it closed.")
            replace_file(path, os.urandom(32))
        if not self.admin_token_file.exists():
            secret = base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
            replace_file(self.admin_token_file, f"dpac_admin_{secret}\n".encode())

    def _write(self) -> None:
        fields: dict[str, Any] = {
            "layout": self.layout,
            "site_uid": self.site_uid,
            "name": self.name,
            "run": str(self.run),
        }
        replace_file(self.data / "site.json", (json.dumps(fields, indent=1) + "\n").encode())


def _short_run_folder(site_uid: str) -> Path:
    """Where sockets go when the data folder's path is too long: the same place at every start."""
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()]
    folders = [Path(base) / f"dpac-{site_uid[:16]}" for base in bases if base and Path(base).is_dir()]
    return next((folder for folder in folders if unix_path_fits(folder / _LONGEST_SOCKET)), folders[-1])


def _require_private(run: Path) -> None:
    """Invalid unless the folder is ours: somebody else may have made it first in a shared place."""
    found = os.lstat(run)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Invalid(
            f"The run folder {run} is not a folder that only this user can write to. Correct it, or choose another --run-dir."
        )


# ---------------------------------------------------------------- locks


class SiteLocks:
    """The right to serve a site.

    `supervisor.lock` is held by the supervisor alone: who holds it runs the site. `lock` is held by the supervisor and
    all its children: it is free only when the last process that may write here is gone, even after a kill -9.
    """

    def __init__(self, supervisor_fd: int, tree_fd: int) -> None:
        self._supervisor_fd = supervisor_fd
        self.tree_fd = tree_fd
        """For the children to inherit."""

    @classmethod
    def take(cls, data: Path, wait_seconds: float = 10.0) -> SiteLocks:
        """Lock the data folder, which is made if it is missing.

        Waits for the children of a supervisor that was killed. Conflict if the site runs, Temporary if its old
        children do not end, Invalid if the folder cannot be used.
        """
        try:
            make_folder(data)
            supervisor_fd = _open_lock(data / "supervisor.lock")
            tree_fd = _open_lock(data / "lock")
        except OSError as error:
            raise Invalid(
                f"The data folder {data} cannot be used ({error.strerror}). Choose another --data."
            ) from error
        try:
            # Whoever looks whether the site runs holds this lock for a moment.
            if not _lock_within(supervisor_fd, 0.25):
                raise Conflict(f"A backend (pid {supervisor_pid(data)}) serves {data} already. `dpac stop` ends it.")
            if not _lock_within(tree_fd, wait_seconds):
                raise Temporary(
                    f"Processes of a backend that ended still hold {data / 'lock'}. `fuser {data / 'lock'}` names them; "
                    "a disk that does not answer may keep them from ending."
                )
            os.ftruncate(supervisor_fd, 0)
            os.pwrite(supervisor_fd, f"{os.getpid()}\n".encode(), 0)
        except DpacError:
            os.close(supervisor_fd)
            os.close(tree_fd)
            raise
        return cls(supervisor_fd, tree_fd)

    def release(self) -> None:
        """Give it up; the children must be gone."""
        os.ftruncate(self._supervisor_fd, 0)
        os.close(self.tree_fd)
        os.close(self._supervisor_fd)


def supervisor_pid(data: Path) -> int | None:
    """The pid of the supervisor that serves a data folder now; None if none does."""
    try:
        descriptor = os.open(data / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Invalid(f"{data} cannot be read ({error.strerror}). Run as the user that owns the site.") from error
    try:
        if _try_lock(descriptor):
            return None
        return int(os.pread(descriptor, 20, 0) or b"0") or None
    except ValueError:
        return None
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_within(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
