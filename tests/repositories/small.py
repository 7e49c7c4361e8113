"""A small but complete repository: a volume and a directory, seeded, logged, merged; every kind of object and segment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from dpac_api.errors import DpacError
from dpac_api.models import AsyncLegSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control.compaction import Compaction
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody
from dpac_engine.core.damage import Verification
from dpac_engine.core.entries import Entry, EntryType, decode_entry, digest_of, encode_entry
from dpac_engine.core.manifest import MemberState, RepositoryState, SegmentRef
from dpac_engine.core.records import Flags, Keyspace, Kind
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.io.escrow import PrivateKey
from dpac_engine.io.keys import Keyring
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter, SpecObject
from dpac_engine.io.stores.memory import MemoryStore
from dpac_engine.io.verification import Verifier

GROUP, SHARD = "11" * 16, "22" * 16
DISK, ORDERS = 1, 2
SIZE_BYTES = 3 * 65536
HOUR_NS = 3600 * 10**9
Content = tuple[bytes, dict[bytes, bytes]]
"""The disk's bytes, and the directory's files."""


class Clock:
    """A clock that the repository sets."""

    now = 480_000 * HOUR_NS

    def now_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


class SmallRepository:
    """Its store, its keys, and what each checkpoint holds. `steps` of log come after the seed."""

    def __init__(self, folder: Path, seed: int = 0, size_bytes: int = SIZE_BYTES) -> None:
        self.size_bytes = size_bytes
        (folder / "keys").mkdir(parents=True)
        (folder / "keys" / "kek").write_bytes(bytes(range(32)))
        self.keyring = Keyring(folder / "keys")
        self.random = random.Random(seed)
        self.store, self.clock = MemoryStore(), Clock()
        self.key_id = self.keyring.create()
        self.writer = RepositoryWriter(
            self.store, GROUP, self.key_id, self.keyring.wrapped(self.key_id), self.keyring.data_key, self.clock
        )
        self.writer.open()
        self.content: dict[str, Content] = {}
        self.lsn, self.sequence = 64, 0
        self.device, self.files = bytearray(self.size_bytes), dict[bytes, bytes]()
        escrow_keys = [PrivateKey.generate().public for _ in range(2)]
        self.writer.put_escrow(escrow_keys)
        self.writer.put_spec(1, SpecObject("shop", "5" * 32, 1, {"members": {}, "encryption": {"escrow": escrow_keys}}))

    # -------------------------------------------------------------- writing

    def commit(self, add: Sequence[SegmentRef], drop: Sequence[str] = ()) -> RepositoryState:
        """See `shipper.Commit`."""
        members = {
            DISK: MemberState("aa" * 16, "volume", "disk", ready=[(64, None)], founding=True),
            ORDERS: MemberState("bb" * 16, "directory", "orders", ready=[(64, None)], founding=True),
        }
        return self.writer.commit(
            epoch=1,
            epochs=[(1, 0)],
            cursor={SHARD: self.lsn},
            members=members,
            membership_version=1,
            spec=1,
            log_from=0,
            add=add,
            drop=drop,
        )

    def seed(self) -> None:
        """The state before the log, as fill rows."""
        rows = SegmentWriter()
        first = self.random.randbytes(self.size_bytes // 2)
        rows.add(Kind.RESET, Flags.SEED, DISK, 64, 1, 0, 0, b"")
        rows.add(Kind.RESIZE, Flags.SEED, DISK, 64, 1, 0, self.size_bytes, b"")
        rows.add(Kind.FILL, Flags.SEED, DISK, 64, 1, 0, len(first), first)
        self.device[: len(first)] = first
        rows.add(Kind.RESET, Flags.SEED, ORDERS, 64, 1, 0, 0, b"")
        self._put_file(rows, b"notes.txt", self.random.randbytes(300), Flags.SEED)
        self._put_file(rows, b"old.txt", self.random.randbytes(200), Flags.SEED)
        self.commit([self._store(rows, [], SegmentKind.FILL, 64, 65)])

    def write(self) -> None:
        """A log segment of two checkpoints, with a few changes before each of them."""
        self._log([lambda rows: [self._change(rows) for _ in range(self.random.randint(1, 2))]] * 2)

    def overwrite(self) -> None:
        """A log segment that writes the whole disk and every file anew, and a checkpoint after that."""
        self._log([self._overwrite])

    def _overwrite(self, rows: SegmentWriter) -> None:
        self.device[:] = self.random.randbytes(self.size_bytes)
        self._add(rows, Kind.WRITE, 0, self.size_bytes, bytes(self.device))
        for path in self.files:
            self._put_file(rows, path, self.random.randbytes(100))

    def _log(self, changes: Sequence[Callable[[SegmentWriter], object]]) -> None:
        begin, rows, taken = self.lsn, SegmentWriter(), []
        for change in changes:
            self.clock.now += HOUR_NS
            change(rows)
            self.sequence += 1
            body = MarkBody(self.sequence, 1, {"1": CutBody("exact"), "2": CutBody("exact")})
            mark = Mark(1, self.lsn, self.clock.now, body)
            rows.add(Kind.MARK, 0, 0, mark.lsn, mark.stamp_ns, 0, 0, body.encode())
            self.content[mark.id] = bytes(self.device), dict(self.files)
            taken.append(mark)
            self.lsn += 64
        self.commit([self._store(rows, taken, SegmentKind.LOG, begin, self.lsn)])

    def merge(self) -> None:
        """Merge what there is but for the newest segment, keeping a few checkpoints."""
        leg = AsyncLegSpec(target="t", retention=RetentionSpec(hourly=2))
        journal = JournalSpec(history=Duration.parse("1h"))
        compaction = Compaction(journal, leg)
        while compaction.step(self.writer, self.commit, self.clock.now):
            pass
        kept = {mark.id for mark in self.reader().marks()}
        self.content = {name: content for name, content in self.content.items() if name in kept}

    def _change(self, rows: SegmentWriter) -> None:
        what = self.random.choice(("write", "write", "zero", "put", "put", "delete"))
        if what == "put" or (what == "delete" and not self.files):
            name = self.random.choice((b"notes.txt", b"etc/a.conf", b"etc/b.conf"))
            self._put_file(rows, name, self.random.randbytes(self.random.randint(1, 900)))
        elif what == "delete":
            self._delete_file(rows, self.random.choice(sorted(self.files)))
        else:
            length = self.random.randint(1, 4000)
            offset = self.random.randrange(self.size_bytes - length)
            data = self.random.randbytes(length) if what == "write" else bytes(length)
            kind, payload = (Kind.WRITE, data) if what == "write" else (Kind.ZERO, b"")
            self._add(rows, kind, offset, length, payload)
            self.device[offset : offset + length] = data

    def _add(self, rows: SegmentWriter, kind: Kind, offset: int, length: int, payload: bytes) -> None:
        rows.add(kind, 0, DISK, self.lsn, self.clock.now, offset, length, payload)
        self.lsn += 64

    def _put_file(self, rows: SegmentWriter, path: bytes, content: bytes, flags: int = 0) -> None:
        entry = Entry(EntryType.FILE, 0o644, 0, 0, self.clock.now, size=len(content), chunks=digest_of(content))
        for key, value in (
            ((Keyspace.CHUNK, digest_of(content)), content),
            ((Keyspace.ENTRY, path), encode_entry(entry).value),
        ):
            rows.add(Kind.PUT, flags, ORDERS, self.lsn, self.clock.now, 0, 0, value, key)
            self.lsn += 0 if flags else 64
        self.files[path] = content

    def _delete_file(self, rows: SegmentWriter, path: bytes) -> None:
        rows.add(Kind.DELETE, 0, ORDERS, self.lsn, self.clock.now, 0, 0, b"", (Keyspace.ENTRY, path))
        self.lsn += 64
        del self.files[path]

    def _store(
        self, rows: SegmentWriter, marks: Sequence[Mark], kind: SegmentKind, lsn_from: int, lsn_to: int
    ) -> SegmentRef:
        return self.writer.put_segment(
            rows,
            marks,
            kind=kind,
            shard_uid=SHARD,
            epoch=1,
            lsn_from=lsn_from,
            lsn_to=lsn_to,
            stamps=(self.clock.now, self.clock.now),
            membership_version=1,
            compression_level=1,
        )

    # -------------------------------------------------------------- reading

    def reader(self) -> RepositoryReader:
        """Somebody else's look at it."""
        reader = RepositoryReader(self.store, GROUP, self.keyring.data_key)
        reader.refresh()
        return reader

    def verify(self, manifest_before: int = 0) -> Verification:
        """A verification of what lies there now."""
        fresh = RepositoryReader(self.store, GROUP, self.keyring.data_key)
        return Verifier(fresh, self.keyring.check_stored, lambda done, total: None).run(manifest_before)

    def read_all(self) -> dict[str, Content | DpacError]:
        """Checkpoint -> all it holds, or the error that reading it raises."""
        return {name: self._read(name) for name in self.content}

    def _read(self, checkpoint: str) -> Content | DpacError:
        try:
            reader = self.reader()
            image = reader.image(reader.resolve(checkpoint))
            tree = image.tree(ORDERS)
            files = {
                path: b"".join(tree.read_chunk(digest) for digest in decode_entry(value, tree.read_chunk).digests)
                for path, value in tree.entries()
            }
            return image.volume(DISK).read(0, self.size_bytes), files
        except DpacError as error:
            return error


def small_repository(folder: Path, seed: int = 0, size_bytes: int = SIZE_BYTES) -> SmallRepository:
    """Seeded, logged, merged and logged again: base, fill, log, orphans, an older declaration."""
    made = SmallRepository(folder, seed, size_bytes)
    made.seed()
    for _ in range(3):
        made.write()
    made.merge()
    for _ in range(2):
        made.write()
    made.writer.put_spec(0, SpecObject("shop", "5" * 32, 0, {}))
    return made
