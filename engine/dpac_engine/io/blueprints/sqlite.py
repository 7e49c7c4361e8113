"""The `sqlite` blueprint: databases are copied by SQLite's own backup interface.

A database is known by its header, not its name. How it is read depends on who may be using it:

* WAL mode, no `-wal` file: nobody has it open, it is an ordinary file. It is copied as one.
* `-wal` or `-journal` left behind without its `-shm`: an application that died, or one in exclusive mode. Opening
  it in place would change the application's files, so database and log are copied, both unchanged meanwhile, and
  recovered in the scratch folder.
* The same where SQLite cannot open it in place: beyond its 512 bytes of path, or an index this user may not write.
* Else the backup interface reads it through a read-only connection, in one step. In WAL mode that holds a read mark
  and blocks nobody; in rollback mode it waits for a moment between two transactions, a bounded time.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import quote_from_bytes

from dpac_engine.io.blueprints.blueprint import Copied, NotCovered, Unsettled

MAGIC = b"SQLite format 3\x00"
_SUFFIXES = (b"-wal", b"-shm", b"-journal")
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_UNREADABLE_CODES = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_NO_DATABASE_CODES = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_FORMAT_VERSION_AT = 18
_WAL_FORMAT = 2


class _Files(NamedTuple):
    """What changes when the database does: (inode, size, mtime) of database, WAL and rollback journal.

    Not ctime: SQLite, run by root, sets a log's owner again each time it opens one.
    """

    database: tuple[int, ...]
    wal: tuple[int, ...] | None
    journal: tuple[int, ...] | None
    shm: bool


class _NotInPlace(Exception):
    """SQLite cannot open it where it lies: a path beyond 512 bytes, or an index this user may not write."""


class SqliteBlueprint:
    """Copies and checks SQLite databases. `busy_seconds_max` bounds the wait for a database that is being written."""

    name = "sqlite"

    def __init__(self, busy_seconds_max: float = 5.0) -> None:
        self.busy_seconds_max = busy_seconds_max

    def recognises(self, head: bytes) -> bool:
        """A database starts with `SQLite format 3`."""
        return head.startswith(MAGIC)

    def companions(self, name: bytes) -> tuple[bytes, ...]:
        """The write-ahead log, its index, and the rollback journal."""
        return tuple(name + suffix for suffix in _SUFFIXES)

    def logs(self, name: bytes) -> tuple[bytes, ...]:
        """The write-ahead log and the rollback journal; the log's index is mapped memory and says nothing."""
        return (name + b"-wal", name + b"-journal")

    def companion_of(self, name: bytes) -> bytes | None:
        """`orders.db` for `orders.db-wal`."""
        for suffix in _SUFFIXES:
            if name.endswith(suffix) and len(name) > len(suffix):
                return name[: -len(suffix)]
        return None

    def copy(self, source: bytes, scratch: Path) -> Copied:
        """A copy at one committed state; see the module for the three ways."""
        scratch.unlink(missing_ok=True)
        before = _files(source)
        with open(source, "rb") as database:
            wal_mode = database.read(20)[_FORMAT_VERSION_AT:] == bytes([_WAL_FORMAT] * 2)
        log = before.wal if wal_mode else before.journal
        logs = () if log is None else (b"-wal",) if wal_mode else (b"-journal",)
        if wal_mode and log is None:
            _copy_settled(source, scratch, before, ())
        elif log is not None and log[1] > 0 and not before.shm and _left_behind(source, wal_mode):
            _copy_settled(source, scratch, before, logs)
            _recover(scratch)
        else:
            try:
                self._back_up(source, scratch)
            except _NotInPlace:
                _copy_settled(source, scratch, before, logs)
                _recover(scratch)
        stamps = (files[2] for files in (before.database, before.wal) if files is not None)
        return Copied(scratch, max(stamps))

    def check(self, root: Path) -> dict[str, str]:
        """`PRAGMA integrity_check` of every database below `root`."""
        found: dict[str, str] = {}
        for path in _databases(os.fsencode(root)):
            name = os.path.relpath(path, os.fsencode(root)).decode(errors="backslashreplace")
            found[name] = _integrity(path)
        return found

    def _back_up(self, source: bytes, scratch: Path) -> None:
        deadline = time.monotonic() + self.busy_seconds_max

        def give_up(_status: int, _remaining: int, _total: int) -> None:
            if time.monotonic() > deadline:
                raise Unsettled(f"SQLite kept answering busy for {self.busy_seconds_max:g} s")

        try:
            with closing(_connect(source, "ro", self.busy_seconds_max)) as live, closing(_scratch(scratch)) as copy:
                # One step: the copy is of one moment, and no writer can make it start again.
                live.backup(copy, pages=-1, progress=give_up, sleep=0.02)
        except sqlite3.Error as error:
            _raise_for(error)


def _connect(path: bytes, mode: str, timeout_seconds: float) -> sqlite3.Connection:
    uri = f"file:{quote_from_bytes(path)}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout_seconds, isolation_level=None)


def _scratch(path: Path) -> sqlite3.Connection:
    """The copy's side: a scratch file needs neither a journal nor a sync."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _raise_for(error: sqlite3.Error) -> NoReturn:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY_CODES:
        raise Unsettled(f"SQLite: {error}") from error
    if code in _UNREADABLE_CODES:
        raise _NotInPlace from error
    if code in _NO_DATABASE_CODES:
        raise NotCovered(f"SQLite cannot read it ({error})") from error
    # Of the scratch folder's disk, for example: nothing that makes the database a plain file.
    raise OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, f"SQLite: {error}") from error


def _stamp(path: bytes) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _files(source: bytes) -> _Files:
    database = _stamp(source)
    if database is None:
        raise FileNotFoundError(source)
    return _Files(
        database, _stamp(source + b"-wal"), _stamp(source + b"-journal"), _stamp(source + b"-shm") is not None
    )


def _left_behind(source: bytes, wal_mode: bool) -> bool:
    """Whether no application is at work on the log: a rollback journal is hot only if nobody holds a lock."""
    if wal_mode:
        return True
    try:
        with closing(_connect(source, "ro", 0)) as live:
            live.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        # A read-only connection may not roll a hot journal back and says so.
        return error.sqlite_errorcode & 0xFF in _UNREADABLE_CODES
    except sqlite3.DatabaseError:
        return False
    return False


def _copy_settled(source: bytes, scratch: Path, before: _Files, logs: tuple[bytes, ...]) -> None:
    """Copy database and logs while none of them changes; Unsettled if one did."""
    target = os.fsencode(scratch)
    for suffix in _SUFFIXES:
        if os.path.lexists(target + suffix):
            os.unlink(target + suffix)
    for suffix in (b"", *logs):
        shutil.copyfile(source + suffix, target + suffix)
    if _files(source) != before:
        raise Unsettled("the database changed while it was copied")


def _recover(scratch: Path) -> None:
    """Fold the log that was copied along into the copy."""
    try:
        with closing(sqlite3.connect(scratch, isolation_level=None)) as copy:
            copy.execute("SELECT count(*) FROM sqlite_master").fetchone()
            copy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        try:
            _raise_for(error)
        except _NotInPlace:
            raise NotCovered(f"SQLite cannot open a copy of it ({error})") from error


def _databases(root: bytes) -> Iterator[bytes]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    if file.read(len(MAGIC)) == MAGIC:
                        yield path


def _integrity(path: bytes) -> str:
    try:
        # Read-write, so that a log beside a plainly captured database is recovered as an application would.
        with closing(_connect(path, "rw", 5.0)) as database:
            rows = [str(row[0]) for row in database.execute("PRAGMA integrity_check(20)")]
    except sqlite3.Error as error:
        return f"cannot be opened: {error}"
    return "; ".join(rows)
