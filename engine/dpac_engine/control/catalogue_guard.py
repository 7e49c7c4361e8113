"""Control's hold on the catalogue: opened only if it is whole, and let go of when the file is another one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import select

from dpac_api.errors import Conflict, DpacError, Temporary
from dpac_engine.control.catalogue import Catalogue, damaged
from dpac_engine.control.catalogue_schema import GroupRow

LOOK_SECONDS = 1.0
"""How often it is looked whether the file is still the same one."""
LOCK_SECONDS_MAX = 10.0
UNKNOWN_NAMED_MAX = 5


class CatalogueGuard:
    """Opens a site's catalogue for one process, and tells when that process must open it again."""

    def __init__(self, file: Path, groups: Path) -> None:
        """`groups`: the folder of the assignments, which the catalogue must know."""
        self._file = file
        self._groups = groups
        self._catalogue: Catalogue | None = None
        self._lock = -1
        self._seen: tuple[int, ...] | None = None

    def open(self) -> Catalogue:
        """The catalogue, held against a rebuild. Corruption if it is missing, damaged or not this site's newest one;
        other errors as of `Catalogue.open`."""
        self._seen = _identity(self._file, whole=True)
        self._lock = _lock(self._file, fcntl.LOCK_SH, LOCK_SECONDS_MAX)
        try:
            self._catalogue = open_whole(self._file, self._groups)
        except BaseException:
            os.close(self._lock)
            raise
        self._seen = _identity(self._file, whole=False)
        return self._catalogue

    async def outdated(self) -> None:
        """Returns once the process must be started again: the catalogue was replaced or proved to be damaged, or one that
        could not be used has changed."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            catalogue = self._catalogue
            if _identity(self._file, whole=catalogue is None) != self._seen or (catalogue and catalogue.damaged):
                return


@contextmanager
def exclusively(file: Path) -> Iterator[None]:
    """Nobody else has the catalogue open meanwhile. Conflict if somebody has."""
    try:
        descriptor = _lock(file, fcntl.LOCK_EX, 0)
    except Temporary:
        raise Conflict(
            f"The backend uses the catalogue {file} right now. Stop it first (`dpac stop --data {file.parent}`)."
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def open_whole(file: Path, groups: Path) -> Catalogue:
    """The catalogue, if it is all there. Corruption if not; other errors as of `Catalogue.open`."""
    if not file.exists():
        raise damaged(file, "it is missing")
    catalogue = Catalogue.open(file)
    try:
        served = dict(_served(groups))
        with catalogue.read() as session:
            unknown = sorted(served[uid] for uid in served.keys() - set(session.scalars(select(GroupRow.uid))))
        if unknown:
            more = " and others" if len(unknown) > UNKNOWN_NAMED_MAX else ""
            named = ", ".join(unknown[:UNKNOWN_NAMED_MAX]) + more
            raise damaged(file, f"it is empty or an old copy: it does not know what is protected here ({named})")
    except DpacError:
        catalogue.close()
        raise
    return catalogue


def _served(groups: Path) -> Iterator[tuple[str, str]]:
    """(uid, name) of every group that a worker was told to serve."""
    for path in groups.glob("*/assignment.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # one that is damaged is its worker's to tell
            told = json.loads(path.read_bytes())
            if told["state"] == "active":
                yield str(told["group_uid"]), str(told["name"])


def _lock(file: Path, how: int, seconds_max: float) -> int:
    """A descriptor that holds the lock beside the catalogue. Temporary if another process holds it for longer."""
    descriptor = os.open(file.with_name("catalogue.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise Temporary(f"The catalogue {file} is being rebuilt. Try again in a moment.") from None
            time.sleep(0.05)
        else:
            return descriptor


def _identity(file: Path, *, whole: bool) -> tuple[int, ...]:
    """Which file it is; `whole`: and what is in it."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, *((found.st_size, found.st_mtime_ns) if whole else ()))
