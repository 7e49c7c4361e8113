"""The spool: the tail of a shard, in preallocated files that are recycled (docs/journal-format.md).

What is durable when: `append` returns once the records lie in the page cache, which outlives this process but not the
host; `durable_lsn` says how far `fdatasync` has come; `when_durable` calls back once it has passed an LSN.

`append` and every callback belong to one event loop's thread; a commit thread runs `fdatasync`, so that the loop never
waits for a disk.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dpac_api.errors import Corruption
from dpac_engine.core import records
from dpac_engine.core.records import ALIGNMENT_BYTES, HEADER_BYTES, Flags, Header, Kind, Records
from dpac_engine.io import spare_files
from dpac_engine.io.durable_note import DurableNote
from dpac_engine.io.files import make_folder, sync_folder, write_all
from dpac_engine.io.spare_files import KEPT, SpareFiles

FILE_BYTES = 32 * 2**20
AT_ONCE_BYTES = 2**20
"""Of a group's first file: the rest of it takes room as it is written. So a thousand new groups take a gibibyte, not 32."""
SYNC_BYTES = 2**20
"""Where syncs come more often than each so many bytes, the next file is written whole before it is used."""
_PADDING = bytes(ALIGNMENT_BYTES)

Call = Callable[[Callable[[], None]], object]
"""Runs a callable on the event loop's thread (`loop.call_soon_threadsafe`)."""


class Entry(NamedTuple):
    """A record to append; fields as in docs/journal-format.md."""

    kind: int
    flags: int
    member: int
    offset: int
    length: int
    payload: bytes | memoryview


class Identity(NamedTuple):
    """Whose records these are."""

    shard_tag: int
    epoch: int
    incarnation: int


class SpoolFile:
    """One spool file, mapped for reading."""

    def __init__(self, path: Path, index: int) -> None:
        self.index = index
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self.fd, FILE_BYTES, prot=mmap.PROT_READ)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Use it no more."""
        # Views handed out may still be in use: the map goes with the last of them.
        os.close(self.fd)


class Spool:
    """One shard's tail. LSNs are positions in the shard's stream."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        head_lsn: int,
        released_lsn: int,
        call: Call,
        stamp: Callable[[], int],
        failed: Callable[[OSError], None],
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._call = call
        self._stamp = stamp
        self._failed = failed
        self.turned: Callable[[], None] = lambda: None
        """Called by `append` when it began a file."""
        self.head_lsn = head_lsn
        self.durable_lsn = head_lsn
        self.released_lsn = released_lsn
        self._files: dict[int, SpoolFile] = {}
        self._waiters: list[tuple[int, int, Callable[[OSError | None], None]]] = []
        self._ticket = itertools.count()
        self._wanted_lsn = head_lsn
        self._wake = threading.Condition()
        self._stopping = False
        self._error: OSError | None = None
        self._renamed = False
        self._syncs = 0
        self._note = DurableNote(folder)
        make_folder(folder)
        for path in folder.glob("*.spool"):
            index = int(path.stem, 16)
            if is_whole(path) and (index * FILE_BYTES < head_lsn or index == head_lsn // FILE_BYTES):
                self._files[index] = SpoolFile(path, index)
        self._spares = SpareFiles(folder, FILE_BYTES)
        # What a scan did not count but a later one would (a pad, a run cut short) must be gone for good before anything is
        # written over it: else a loss of power could bring it back, and the scan would leap over what was written.
        self._void_head()
        self._sync_all()
        self.note_durable()  # now, so that its place is there when the disk is full
        self._open(head_lsn // FILE_BYTES, AT_ONCE_BYTES)
        self._thread = threading.Thread(target=self._commit, name=f"commit-{folder.parent.name[:8]}", daemon=True)
        self._thread.start()

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._folder

    @property
    def identity(self) -> Identity:
        """Whose records it appends."""
        return self._identity

    # ------------------------------------------------------------------ append

    @property
    def payload_bytes_max(self) -> int:
        """What a record may carry: it lies in one file, whole, with room for whole blocks."""
        return (FILE_BYTES - HEADER_BYTES) & -4096

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Append records in order; returns the LSN of each. They are in the page cache when this returns.

        Raises the OSError of a disk that is full or broken; then none of them counts, and the journal has failed. ValueError if one of
        them is larger than a file; then none of them counts either, and the journal goes on.
        """
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror)
        try:
            lsns, head_lsn = self._append(entries)
        except OSError as error:
            self._void_head()
            self._call(partial(self._settle, 0, error))
            raise
        turned = head_lsn // FILE_BYTES > self.head_lsn // FILE_BYTES
        self.head_lsn = head_lsn
        if turned:
            self.turned()
        return lsns

    def _append(self, entries: Sequence[Entry]) -> tuple[list[int], int]:
        # The head moves only once all of it is written: the commit thread and readers trust what lies before it.
        lsns: list[int] = []
        iov: list[bytes | memoryview] = []
        lsn = start = self.head_lsn
        shard_tag, epoch, incarnation = self._identity
        stamp = self._stamp()
        room_end = (lsn // FILE_BYTES + 1) * FILE_BYTES
        for kind, flags, member, offset, length, payload in entries:
            stored = (HEADER_BYTES + len(payload) + 63) & -64
            if lsn + stored > room_end:
                if stored > FILE_BYTES:
                    self._void_head()
                    raise ValueError(
                        f"A record of {stored} bytes does not fit into a file of the spool ({FILE_BYTES} bytes)."
                    )
                self._write(iov, start)
                self._pad(lsn, room_end, stamp)
                start = lsn = room_end
                iov = []
                room_end += FILE_BYTES
            iov.append(
                records.encode_header(
                    kind, flags, incarnation, member, lsn, offset, length, stamp, shard_tag, epoch, payload
                )
            )
            if len(payload):
                iov.append(payload)
                padding = -len(payload) & 63
                if padding:
                    iov.append(_PADDING[:padding])
            lsns.append(lsn)
            lsn += stored
        self._write(iov, start)
        if (
            not self._spares and lsn % FILE_BYTES > FILE_BYTES // 2
        ):  # ahead of need: the loop never waits for a new file
            self._spares.make_ahead(written=self._syncs * SYNC_BYTES > lsn % FILE_BYTES)
        return lsns, lsn

    def _write(self, iov: list[bytes | memoryview], lsn: int) -> None:
        if not iov:
            return
        write_all(self._open(lsn // FILE_BYTES).fd, iov, lsn % FILE_BYTES)

    def _pad(self, lsn: int, room_end: int, stamp: int) -> None:
        """Fill the file's end with a pad record, if there is room left in it."""
        if lsn < room_end:
            shard_tag, epoch, incarnation = self._identity
            pad = records.encode_header(
                Kind.PAD, 0, incarnation, 0, lsn, 0, room_end - lsn, stamp, shard_tag, epoch, b""
            )
            self._write([pad], lsn)

    def _void_head(self) -> None:
        # What lies at the head without counting (a pad, a run cut short, a failed append) must never be read again: were it
        # to come back by a loss of power, it would lead a scan past lost records to newer ones.
        file = self._files.get(self.head_lsn // FILE_BYTES)
        if file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(file.fd, bytes(HEADER_BYTES), self.head_lsn % FILE_BYTES)

    def _open(self, index: int, written_bytes: int = 0) -> SpoolFile:
        if index not in self._files:
            path = self._folder / f"{index:016x}.spool"
            self._spares.take(path, written_bytes)
            self._renamed, self._syncs = True, 0
            self._files[index] = SpoolFile(path, index)
        return self._files[index]

    # ------------------------------------------------------------------ durability

    def when_durable(self, lsn: int, done: Callable[[OSError | None], None]) -> None:
        """Call `done(None)` on the loop once every record before `lsn` is durable, or with the error that prevents it."""
        if self._error is not None or lsn <= self.durable_lsn:
            done(self._error)
            return
        heapq.heappush(self._waiters, (lsn, next(self._ticket), done))
        with self._wake:
            self._wanted_lsn = max(self._wanted_lsn, lsn)
            self._wake.notify()

    def note_durable(self) -> None:
        """To be called before what is durable goes where it outlives the spool: if its end is damaged, the next life can tell. Blocks."""
        self._note.leave(self.durable_lsn)

    def _commit(self) -> None:
        durable = self.durable_lsn
        while True:
            with self._wake:
                while self._wanted_lsn <= durable and not self._stopping:
                    self._wake.wait()
                if self._stopping and self._wanted_lsn <= durable:
                    return
            head = self.head_lsn
            try:
                if self._renamed:  # set before the head moved into the new file
                    self._renamed = False
                    sync_folder(self._folder)
                for index in range(durable // FILE_BYTES, (head - 1) // FILE_BYTES + 1):
                    os.fdatasync(self._files[index].fd)
            except OSError as error:
                # fsync is never tried again: the kernel may have dropped what it could not write.
                self._call(partial(self._settle, 0, error))
                return
            durable = head
            self._syncs += 1
            self._call(partial(self._settle, head, None))

    def _settle(self, durable: int, error: OSError | None) -> None:
        if error is not None:
            first, self._error = self._error is None, self._error or error
            waiting, self._waiters = self._waiters, []
            for _, _, done in waiting:
                done(error)
            if first:
                self._failed(error)
            return
        self.durable_lsn = max(self.durable_lsn, durable)
        while self._waiters and self._waiters[0][0] <= self.durable_lsn:
            heapq.heappop(self._waiters)[2](None)

    def _sync_all(self) -> None:
        # What an earlier life left in the page cache counts as durable only now: records, and the names of files.
        for file in self._files.values():
            os.fdatasync(file.fd)
        sync_folder(self._folder)

    # ------------------------------------------------------------------ reading

    def view(self, lsn: int, length: int) -> memoryview:
        """`length` bytes of the stream at `lsn`; they must not be released yet nor span files."""
        at = lsn % FILE_BYTES
        return self._files[lsn // FILE_BYTES].view[at : at + length]

    def read(self, from_lsn: int, to_lsn: int, bytes_max: int = 1 << 62) -> Iterator[Records]:
        """Records of `[from_lsn, to_lsn)`, checked, in order, padding left out, in batches that do not span files.

        Ends early, at the end of a run, once the payloads hold `bytes_max`. KeyError where it was released already.
        """
        at, room, divisible = from_lsn, bytes_max, True
        while at < to_lsn and (room > 0 or not divisible):
            index = at // FILE_BYTES
            batch = records.decode_records(self._files[index].view, index * FILE_BYTES, at, to_lsn, room)
            at = batch.next_lsn
            if len(batch.headers):
                room -= int(batch.headers["payload_bytes"].sum())
                divisible = not batch.headers["flags"][-1] & Flags.RUN_CONTINUES
                yield batch

    # ------------------------------------------------------------------ space

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files in use."""
        return len(self._files) * FILE_BYTES

    def release(self, lsn: int) -> None:
        """Everything before `lsn` is needed no more: whole files of it are recycled."""
        self.released_lsn = max(self.released_lsn, lsn)
        free = min(self.released_lsn, self.durable_lsn)
        released = [index for index in sorted(self._files) if (index + 1) * FILE_BYTES <= free]
        for index in released:
            file = self._files.pop(index)
            file.close()
            # As many as one call frees are used until the next: a busy group allocates nothing.
            self._spares.give_back(file.path, max(KEPT, len(released)))
        if not released:
            self._spares.trim()

    def begin_anew(self, identity: Identity, head_lsn: int) -> None:
        """After a failure: drop every file and go on in fresh ones from `head_lsn`, the begin of a file. Blocks.

        Nothing else uses the spool meanwhile. Raises the OSError of a disk that still does not take files; then it
        has failed as before, and can be tried again.
        """
        self._end_threads()
        for index in list(self._files):
            file = self._files.pop(index)
            file.close()
            file.path.unlink(missing_ok=True)
        self._spares.clear()
        first = self._folder / f"{head_lsn // FILE_BYTES:016x}.spool"
        spare = self._folder / f"new-{head_lsn:016x}.spare"
        try:
            for path in (first, spare):  # two: where the next one does not fit, it would fail again soon
                spare_files.allocate(path, FILE_BYTES, FILE_BYTES)
        except OSError:
            first.unlink(missing_ok=True)
            spare.unlink(missing_ok=True)
            raise
        self._spares = SpareFiles(self._folder, FILE_BYTES)
        self._renamed = True  # the names of both are new: the first commit syncs them
        self._identity = identity
        self.head_lsn = self.durable_lsn = self.released_lsn = self._wanted_lsn = head_lsn
        self._files[head_lsn // FILE_BYTES] = SpoolFile(first, head_lsn // FILE_BYTES)
        self._error, self._stopping = None, False
        self._thread = threading.Thread(target=self._commit, name=self._thread.name, daemon=True)
        self._thread.start()

    def _end_threads(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._spares.join()

    def stop(self) -> None:
        """Make what was appended durable and end the commit thread."""
        with self._wake:
            self._wanted_lsn = max(self._wanted_lsn, self.head_lsn)
        self._end_threads()
        self.durable_lsn = self.head_lsn if self._error is None else self.durable_lsn
        for file in self._files.values():
            file.close()


def is_whole(path: Path) -> bool:
    """It has its size: a crash may have left a file that was just being made."""
    return spare_files.is_whole(path, FILE_BYTES)


def scan(folder: Path, from_lsn: int, shard_tag: int, incarnation: int) -> Iterator[tuple[Header, memoryview]]:
    """The records that lie in a closed spool from `from_lsn` to the end of the stream, padding left out.

    The end is the first record that is none, another's, damaged, or of an earlier incarnation than the one before it;
    for the first record that is `incarnation`, the earliest that may lie at `from_lsn`. The caller takes the last record's `next_lsn` as the head.
    """
    lsn = from_lsn
    file: SpoolFile | None = None
    while True:
        index = lsn // FILE_BYTES
        if file is None or file.index != index:
            if file is not None:
                file.close()
            path = folder / f"{index:016x}.spool"
            if not path.exists() or not is_whole(path):
                return
            file = SpoolFile(path, index)
        header = records.decode_header(file.view, lsn % FILE_BYTES)
        if header is None or header.lsn != lsn or header.shard_tag != shard_tag or header.incarnation < incarnation:
            break
        try:
            payload = records.payload_of(file.view, lsn % FILE_BYTES, header)
        except Corruption:
            break
        incarnation = header.incarnation
        if header.kind == Kind.PAD:
            lsn += header.length
            continue
        yield header, payload
        lsn = header.next_lsn
    file.close()
