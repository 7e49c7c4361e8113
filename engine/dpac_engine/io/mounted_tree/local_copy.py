"""A checkpoint's directory on this host: its entries, and its chunks one after the other in a file, as hydration brought them.

What is entered in `copy.sqlite` is durable in `chunks`. The file `hydrated` says that nothing is missing any more.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from dpac_api.errors import Corruption, NotFound
from dpac_engine.io.files import make_folder, replace_file, write_all
from dpac_engine.io.mounted_tree.lower import StoredTree
from dpac_engine.io.mounted_volume import HYDRATED

_FILE = "copy.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (path BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunk (digest BLOB PRIMARY KEY, place INTEGER NOT NULL, length INTEGER NOT NULL) WITHOUT ROWID;
"""


def is_whole(folder: Path) -> bool:
    """Whether the copy in the folder holds everything: then the mount needs no target."""
    return (folder / HYDRATED).exists()


class LocalCopy:
    """A `StoredTree` once it is whole, and what is there of one until then; safe for threads."""

    def __init__(self, folder: Path) -> None:
        """The names of its files are durable once a `MountedTree` of the folder was made, which comes before anything is copied."""
        make_folder(folder)
        self.folder = folder
        self.whole = is_whole(folder)
        self._lock = threading.Lock()
        self._waiting: list[tuple[bytes, int, int]] = []
        try:
            self._database = sqlite3.connect(folder / _FILE, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            self._end = self._database.execute("SELECT coalesce(max(place + length), 0) FROM chunk").fetchone()[0]
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        self._chunks = os.open(folder / "chunks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _damaged(self, error: sqlite3.Error) -> Corruption:
        return Corruption(f"{self.folder / _FILE} cannot be read ({error}). Unmount, and mount the checkpoint again.")

    def _rows(self, query: str, *values: object) -> Sequence[tuple[bytes, int]]:
        try:
            with self._lock:
                return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    # ------------------------------------------------------------ reading

    def paths(self) -> list[bytes]:
        """See `StoredTree`."""
        return [row[0] for row in self._rows("SELECT path FROM entry ORDER BY path")]

    def read_entry(self, path: bytes) -> bytes:
        """See `StoredTree`."""
        rows = self._rows("SELECT value FROM entry WHERE path = ?", path)
        if not rows:
            raise NotFound(f"{self.folder} has no entry of {path!r}.")
        return rows[0][0]

    def read_chunk(self, digest: bytes) -> bytes:
        """See `StoredTree`."""
        chunk = self.chunk(digest)
        if chunk is None:
            raise Corruption(f"{self.folder} lacks the chunk {digest.hex()}. Unmount, and mount the checkpoint again.")
        return chunk

    def chunk(self, digest: bytes) -> bytes | None:
        """The chunk, if it is here already."""
        rows = self._rows("SELECT place, length FROM chunk WHERE digest = ?", digest)
        return os.pread(self._chunks, rows[0][1], int(rows[0][0])) if rows else None

    # ------------------------------------------------------------ writing: hydration alone

    def has_entries(self) -> bool:
        """Whether all entries are here: they come in one piece."""
        return bool(self._rows("SELECT path FROM entry LIMIT 1"))

    def held_chunks(self) -> dict[bytes, int]:
        """Chunks that are here, durably -> their length."""
        return dict(self._rows("SELECT digest, length FROM chunk"))

    def keep_entries(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Take every entry there is, all or none. Raises OSError."""
        self._transact("INSERT INTO entry VALUES (?, ?)", entries)

    def keep_chunk(self, digest: bytes, chunk: bytes) -> None:
        """Write a chunk; it counts once it is synced. Raises OSError."""
        write_all(self._chunks, [chunk], self._end)
        self._waiting.append((digest, self._end, len(chunk)))
        self._end += len(chunk)

    def sync(self) -> None:
        """Make what was kept durable, and enter it. Raises OSError."""
        os.fdatasync(self._chunks)
        self._transact("INSERT INTO chunk VALUES (?, ?, ?)", self._waiting)
        self._waiting.clear()

    def _transact(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with self._lock:
            try:
                self._database.execute("BEGIN")
                self._database.executemany(statement, rows)
                self._database.execute("COMMIT")
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise OSError(28 if "full" in str(error) else 5, f"{self.folder / _FILE}: {error}") from error
                raise

    def finish(self) -> None:
        """Nothing is missing: say so, durably. Raises OSError."""
        self.sync()
        replace_file(self.folder / HYDRATED, b"")
        self.whole = True

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._database.close()
            os.close(self._chunks)


class Behind:
    """A stored tree with the part of it that is on this host before it: what is here is not asked of the target."""

    def __init__(self, copy: LocalCopy, stored: StoredTree) -> None:
        self.copy, self.stored = copy, stored
        self.reads = 0
        """Chunks that were read at the target."""

    def paths(self) -> list[bytes]:
        """See `StoredTree`."""
        return self.stored.paths()

    def read_entry(self, path: bytes) -> bytes:
        """See `StoredTree`."""
        return self.stored.read_entry(path)

    def read_chunk(self, digest: bytes) -> bytes:
        """See `StoredTree`."""
        chunk = self.copy.chunk(digest)
        if chunk is None:
            self.reads += 1
            chunk = self.stored.read_chunk(digest)
        return chunk
