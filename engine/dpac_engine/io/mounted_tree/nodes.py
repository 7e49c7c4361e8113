"""What was changed of a mounted tree's names and attributes: in memory, and in SQLite for the next start.

A change is in the page cache when it is committed, so that it outlives the process; `sync` makes it outlive the host. Files
and folders that were not changed are not here.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dpac_api.errors import Corruption
from dpac_engine.core.entries import EntryType

_FILE = "changes.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS name (folder INTEGER, name BLOB, number INTEGER NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
"""
NOTHING = 0
"""The number of a name that the checkpoint has and that was removed since."""


class Node(msgspec.Struct, weakref=True):
    """A file, folder or other thing in a mounted tree."""

    number: int
    type: EntryType
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    """Of a file whose content was changed that of its `data` counts."""
    ctime_ns: int
    links: int
    target: bytes = b""
    device: tuple[int, int] | None = None
    xattrs: dict[bytes, bytes] = {}
    source: bytes | None = None
    """Where the checkpoint has it; None if it came later."""
    source_bytes: int = 0
    """Size of the checkpoint's file."""
    lower_bytes: int = 0
    """As much of that as was not cut off."""
    changed: bool = False
    """Its content was changed and lies in the overlay."""


Name = tuple[int, bytes, int | None]
"""(number of the folder, name, number of what it names; NOTHING, or None: as the checkpoint has it)."""


class NodeStore:
    """The changes of one mount; safe for threads."""

    def __init__(self, folder: Path) -> None:
        """`folder` is there. The names of the files are durable once `MountedTree` has made what it has beside them."""
        self._path = folder / _FILE
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            # A commit is durable once its log is synced, which `sync` does; the database is never ahead of the log.
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            bodies = self._database.execute("SELECT body FROM node").fetchall()
            self.nodes = {
                node.number: node for (body,) in bodies for node in (msgspec.msgpack.decode(body, type=Node),)
            }
            self.names: dict[int, dict[bytes, int]] = {}
            for parent, name, number in self._database.execute("SELECT folder, name, number FROM name"):
                self.names.setdefault(parent, {})[name] = number
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise Corruption(
                f"{self._path} cannot be read ({error}). Unmount, and mount the checkpoint again."
            ) from error
        self._log = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def commit(self, nodes: Iterable[Node], gone: Iterable[int] = (), names: Iterable[Name] = ()) -> None:
        """Take changes, all or none. Raises OSError if they cannot be written."""
        with self._lock:
            try:
                self._database.execute("BEGIN")
                self._write(nodes, gone, names)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise OSError(28 if "full" in str(error) else 5, f"{self._path}: {error}") from error

    def _write(self, nodes: Iterable[Node], gone: Iterable[int], names: Iterable[Name]) -> None:
        for node in nodes:
            body = msgspec.msgpack.encode(node)
            self._database.execute("REPLACE INTO node VALUES (?, ?)", (node.number, body))
        for number in gone:
            self._database.execute("DELETE FROM node WHERE number = ?", (number,))
        for folder, name, named in names:
            if named is None:
                self._database.execute("DELETE FROM name WHERE folder = ? AND name = ?", (folder, name))
            else:
                self._database.execute("REPLACE INTO name VALUES (?, ?, ?)", (folder, name, named))

    def sync(self) -> None:
        """Make what was committed durable. Raises OSError."""
        os.fdatasync(self._log)

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._database.close()
            os.close(self._log)
