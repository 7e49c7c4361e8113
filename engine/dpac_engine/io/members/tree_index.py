"""The index: what the journal holds of a directory member, in memory, and in SQLite for the next start.

Memory leads. The database is written only once the journal is durable up to the LSN that is written with it, so it
never claims more than the journal has; what the journal has beyond it is replayed.

About 900 bytes of memory a small file, 150 a further chunk.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from dpac_api.errors import Corruption, Temporary, Unsupported
from dpac_engine.core.entries import LIST_MAGIC, Entry, chunk_lists, decode_entry, encode_entry
from dpac_engine.core.records import KeyChange, Keyspace
from dpac_engine.io.files import make_folder

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS row (path BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orphan (digest BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """A captured path."""

    signature: tuple[int, ...] | None
    """As of when it was read (`scan.Signature`); None: read it again at the next chance."""
    entry: Entry
    covered: bool
    """Copied by the blueprint."""
    captured_ns: int
    """When it was read: the start of that capture, nanoseconds since 1970."""


class Root(NamedTuple):
    """Which folder was captured."""

    device: int
    inode: int
    mounted: bool
    """A file system was mounted right there."""


class Plan(NamedTuple):
    """A capture's last run, and what it makes of the index."""

    changes: list[KeyChange]
    rows: dict[bytes, Row | None]
    references: Counter[bytes]
    freed: set[bytes]


_encode_row = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(Row).decode


class TreeIndex:
    """Rows and chunk references of one member. Changed by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._dirty: set[bytes] = set()
        self._cleared = False
        self._lists: dict[bytes, bytes] = {}
        self.rows: dict[bytes, Row] = {}
        self.references: dict[bytes, int] = {}
        """Chunks that entries list -> how often."""
        self.orphans: set[bytes] = set()
        """Chunks the journal holds that no entry lists: put ahead, or left by a capture that failed."""
        self.names: dict[tuple[int, int], set[bytes]] = {}
        """Shared inode -> its names."""
        self.size_bytes = 0
        self.root: Root | None = None
        self.scanned_ns: int | None = None
        """Start of the newest complete capture."""
        self.applied_lsn = 0
        """What the database reflects."""
        self.journal_lsn = 0
        """The end of the newest run that was put or replayed: what memory reflects, once that run is applied."""

    def __contains__(self, digest: object) -> bool:
        """Whether the chunk need not be put."""
        return digest in self.references or digest in self.orphans

    # ---------------------------------------------------------------- changes

    def plan(self, rows: Mapping[bytes, Row | None]) -> Plan:
        """The changes that bring the journal's entries to `rows`; every chunk they list must be in it by then.

        Puts come before deletes, so that a reader who stops anywhere has every chunk that an entry lists.
        """
        puts: list[KeyChange] = []
        deletes: list[KeyChange] = []
        references: Counter[bytes] = Counter()
        lists: dict[bytes, bytes] = {}
        effective = {path: row for path, row in rows.items() if row is not None or path in self.rows}
        for path, row in sorted(effective.items()):
            before = self.rows.get(path)
            if before is not None and row is not None and before.entry == row.entry:
                continue
            if before is not None:
                references.subtract(_listed(before.entry))
            if row is None:
                deletes.append(KeyChange(Keyspace.ENTRY, path, None))
            else:
                encoded = encode_entry(row.entry)
                references.update(row.entry.digests)
                references.update(digest for digest, _ in encoded.lists)
                lists.update((digest, part) for digest, part in encoded.lists if digest not in self)
                puts.append(KeyChange(Keyspace.ENTRY, path, encoded.value))
        freed = {digest for digest, count in references.items() if self.references.get(digest, 0) + count == 0}
        freed |= {digest for digest in self.orphans if not references[digest]}
        changes = [KeyChange(Keyspace.CHUNK, digest, part) for digest, part in lists.items()]
        changes += puts + deletes + [KeyChange(Keyspace.CHUNK, digest, None) for digest in sorted(freed)]
        return Plan(changes, effective, references, freed)

    def chunks_put(self, digests: Iterator[bytes] | list[bytes]) -> None:
        """The journal holds these chunks now."""
        for digest in digests:
            if digest not in self.references:
                self.orphans.add(digest)

    def apply(self, plan: Plan) -> None:
        """The journal holds the plan's changes now."""
        self.chunks_put([change.key for change in plan.changes if change.keyspace == Keyspace.CHUNK and change.value])
        for path, row in plan.rows.items():
            self._set(path, row)
        for digest, count in plan.references.items():
            self._refer(digest, count)
        for digest in plan.freed:
            self.orphans.discard(digest)

    def replay(self, lsn: int, change: KeyChange) -> None:
        """Take a change that the journal has and the database has not, of a run that ends at `lsn`; in order."""
        self.journal_lsn = lsn
        if change.keyspace == Keyspace.CHUNK:
            self._replay_chunk(change)
            return
        before = self.rows.get(change.key)
        if before is not None:
            for digest, part in chunk_lists(before.entry):
                self._lists[digest] = part
            self._count(before.entry, -1)
        if change.value is None:
            self._set(change.key, None)
            return
        entry = decode_entry(change.value, self._list_part)
        self._count(entry, 1)
        # The signature is not in the journal: the next scan reads the file and finds the content known.
        self._set(change.key, Row(None, entry, False, entry.as_of or 0))

    def replayed(self) -> None:
        """The last change was replayed."""
        self._lists.clear()

    def clear(self) -> None:
        """Forget everything: the journal holds nothing of the member."""
        self.rows.clear()
        self.references.clear()
        self.orphans.clear()
        self.names.clear()
        self._dirty.clear()
        self._cleared = True
        self.size_bytes = 0
        self.root = None
        self.scanned_ns = None

    def _set(self, path: bytes, row: Row | None) -> None:
        before = self.rows.pop(path, None) if row is None else self.rows.get(path)
        if before is not None:
            self.size_bytes -= before.entry.size
            if before.entry.inode is not None:
                names = self.names.get(before.entry.inode, set())
                names.discard(path)
                if not names:
                    self.names.pop(before.entry.inode, None)
        if row is not None:
            self.rows[path] = row
            self.size_bytes += row.entry.size
            if row.entry.inode is not None:
                self.names.setdefault(row.entry.inode, set()).add(path)
        self._dirty.add(path)

    def _count(self, entry: Entry, by: int) -> None:
        for digest in _listed(entry):
            self._refer(digest, by)

    def _refer(self, digest: bytes, by: int) -> None:
        count = self.references.get(digest, 0) + by
        if count > 0:
            self.references[digest] = count
            self.orphans.discard(digest)
        else:
            self.references.pop(digest, None)
            self.orphans.add(digest)

    def _replay_chunk(self, change: KeyChange) -> None:
        if change.value is None:
            self.orphans.discard(change.key)
            return
        self.chunks_put([change.key])
        if bytes(change.value[: len(LIST_MAGIC)]) == LIST_MAGIC:
            self._lists[change.key] = bytes(change.value)

    def _list_part(self, digest: bytes) -> bytes:
        """A chunk of a chunk list met during replay: replayed itself, or still that of a captured file."""
        if digest not in self._lists:
            for row in self.rows.values():
                self._lists.update(chunk_lists(row.entry))
        try:
            return self._lists[digest]
        except KeyError:
            raise Corruption(
                f"The index {self._path} lacks a chunk list that the journal refers to. "
                "Resync the member: its index is rebuilt from its files."
            ) from None

    # ---------------------------------------------------------------- database

    def open(self) -> None:
        """Read the database, or create it. Corruption or Unsupported where it cannot be used."""
        make_folder(self._path.parent)
        try:
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            # The journal drops what the index claims to have: the claim must survive a power cut.
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            self._load(self._database)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise Corruption(
                f"The index {self._path} cannot be read ({error}). "
                "Move it away and resync the member: the index is rebuilt from the files."
            ) from error

    def _load(self, database: sqlite3.Connection) -> None:
        meta = dict(database.execute("SELECT key, value FROM meta"))
        if meta.setdefault("version", _VERSION) != _VERSION:
            raise Unsupported(f"The index {self._path} has version {meta['version']}, this build reads {_VERSION}.")
        self.applied_lsn = self.journal_lsn = meta.get("applied_lsn", 0)
        self.scanned_ns = meta.get("scanned_ns")
        root = meta.get("root")
        self.root = msgspec.msgpack.decode(root, type=Root) if root is not None else None
        for path, body in database.execute("SELECT path, body FROM row"):
            row = _decode_row(body)
            self._set(path, row)
            self._count(row.entry, 1)
        for (digest,) in database.execute("SELECT digest FROM orphan"):
            self.orphans.add(digest)
        self._dirty.clear()

    def commit(self, lsn: int) -> None:
        """Write what changed, with the LSN (durable in the journal) that it reflects.

        Temporary if it cannot be written: it stays as it was, and the next commit writes this one's changes too.
        """
        database = self._database
        assert database is not None, "open() comes first"
        try:
            database.execute("BEGIN IMMEDIATE")
            self._write(database, lsn)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise Temporary(
                f"The index {self._path} cannot be written ({error}). Make room on the disk it lies on, or see that it works; what was "
                "captured is in the journal, and it is tried again by itself."
            ) from error
        finally:
            if database.in_transaction:  # a commit that failed may have rolled it back itself
                database.execute("ROLLBACK")
        self._dirty.clear()
        self._cleared = False
        self.applied_lsn = lsn
        self.journal_lsn = max(self.journal_lsn, lsn)

    def _write(self, database: sqlite3.Connection, lsn: int) -> None:
        gone = [(path,) for path in self._dirty if path not in self.rows]
        rows = ((path, _encode_row(self.rows[path])) for path in self._dirty if path in self.rows)
        if self._cleared:
            database.execute("DELETE FROM row")
        database.executemany("DELETE FROM row WHERE path = ?", gone)
        database.executemany("REPLACE INTO row VALUES (?, ?)", rows)
        database.execute("DELETE FROM orphan")
        database.executemany("INSERT INTO orphan VALUES (?)", ((digest,) for digest in self.orphans))
        root = msgspec.msgpack.encode(self.root) if self.root is not None else None
        meta = {"version": _VERSION, "applied_lsn": lsn, "scanned_ns": self.scanned_ns, "root": root}
        database.executemany("REPLACE INTO meta VALUES (?, ?)", meta.items())

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()
            self._database = None


def _listed(entry: Entry) -> list[bytes]:
    """Every chunk an entry keeps alive, as often as it lists it."""
    return entry.digests + [digest for digest, _ in chunk_lists(entry)]
