"""Volumes: the write splitter between NBD clients and a raw file.

One path: a change goes to the journal first (`submit`), is visible to readers through the overlay at once, and reaches
the file only when its record is durable, in LSN order (`write_behind`). FLUSH answers when the journal is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import Protocol

from dpac_api.errors import Invalid
from dpac_engine.core.records import HEADER_BYTES, Header, Kind
from dpac_engine.io.files import write_all
from dpac_engine.io.holes import data_ranges, punch_hole
from dpac_engine.io.members.overlay import SECTOR_BYTES, Overlay
from dpac_engine.io.members.volume_file import Descriptor, Signature, open_locked, read_whole
from dpac_engine.io.members.write_behind import Pending, bring
from dpac_engine.io.nbd.export import Change, ChangeKind, Extent, Stopped, as_os_error
from dpac_engine.io.spool import Entry, Spool

RECORD_BYTES_MAX = 4 * 2**20
"""Larger writes become several records."""
BATCH_BYTES = 8 * 2**20
BATCH_RECORDS = 2048
IDLE_SECONDS = 0.2
POLL_SECONDS = 0.05
PENDING_RECORDS_MAX = 32_768
AGE_SECONDS_MAX = 2.0
SEED_TRIES = 3
RELIEF_SECONDS = 1.0
"""How often who waits for room looks whether the volume is still there."""

_WRITE = int(Kind.WRITE)  # a plain number: the enumeration's costs in every comparison
_new = tuple.__new__  # what a batch has many of is made without the call of a named tuple's class


class _Watch:
    """A range that a seed reads; `touched` once a change overlaps it."""

    def __init__(self, offset: int, end: int) -> None:
        self.offset, self.end, self.touched = offset, end, False


_CLOSED = -1


class Commits(Protocol):
    """What decides when a change may be acknowledged as durable."""

    @property
    def durable_acks(self) -> bool:
        """Every change is acknowledged only then."""

    def when_committed(self, lsn: int, done: Callable[[OSError | None], None]) -> None:
        """Call `done(None)` once everything before `lsn` may be, or with the error that broke the journal."""

    def when_released(self, done: Callable[[OSError | None], None]) -> None:
        """Call `done(None)` once what is not in the journal may be."""


class LocalCommits:
    """Durable means durable in the spool."""

    durable_acks = False

    def __init__(self, spool: Spool) -> None:
        self.when_committed = spool.when_durable

    def when_released(self, done: Callable[[OSError | None], None]) -> None:
        """See `Commits`."""
        done(None)


class Volume:
    """One volume member. All methods but `*_blocking` belong to the event loop. An `Export`."""

    read_only = False

    def __init__(
        self,
        path: Path,
        ordinal: int,
        spool: Spool,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        pending_max: int,
    ) -> None:
        self.path = path
        self.ordinal = ordinal
        self._spool = spool
        self._loop = loop
        self._executor = executor
        self._pending_max = pending_max
        self._record_bytes_max = min(RECORD_BYTES_MAX, spool.payload_bytes_max)
        self._overlay = Overlay()
        self._pending: deque[Pending] = deque()
        self._in_flight_lsn: int | None = None
        self._writing: Future[None] | None = None
        self._batch: asyncio.Task[None] | None = None
        self.pending_bytes = 0
        self.writes = 0
        """How often the file was written to."""
        self.synced_lsn = spool.head_lsn
        self.error: OSError | None = None
        self.bypass = False
        self.leaving: Callable[[], None] = lambda: None
        """Called before the file gets what is not durable in the journal, because the journal failed."""
        self.bypassing: Callable[[], None] = lambda: None
        """Called once the file has all that the journal held, before the first change that the journal will not have. Raises OSError
        if that cannot be put on record: then no such change may be made."""
        self.note: Callable[[Sequence[Change]], None] = lambda _: None
        """Called with every batch once it is journalled."""
        self.commits: Commits = LocalCommits(spool)
        self._stopped = False
        self.backpressure = self.held = False
        self._relief: list[Callable[[], None]] = []
        self._clients: list[Callable[[], None]] = []
        self._watches: list[_Watch] = []
        self._work = asyncio.Event()
        self._last_submit = 0.0
        self._urgent = False
        self._applying = asyncio.Lock()
        descriptor, self.created = open_locked(path)
        self._fd: int = Descriptor(descriptor)
        self.size_bytes = os.fstat(self._fd).st_size

    # ------------------------------------------------------------------ start and end

    def recover(self, header: Header) -> None:
        """Take back a record that may not be in the file yet (called in LSN order, before any client)."""
        if header.kind == Kind.RESIZE:
            self._set_size(header.length)
        elif header.kind in (Kind.WRITE, Kind.ZERO, Kind.TRIM):
            self.synced_lsn = min(self.synced_lsn, header.lsn)
            position = header.lsn + HEADER_BYTES
            self._enter([Pending(header.lsn, header.kind, header.offset, header.length, position, 0.0)])

    def signature(self) -> Signature:
        """Of the open file. Blocks."""
        return Signature.of(os.fstat(self._fd))

    @property
    def resting(self) -> bool:
        """Nothing is being written to the file."""
        return self._writing is None and self._in_flight_lsn is None

    def take(self, changes: Iterable[tuple[Header, memoryview]]) -> None:
        """Bring changes that an earlier attachment was not able to apply to the file, durably, in LSN order. Blocks; before
        any client. Raises OSError."""
        for header, payload in changes:
            if header.kind == Kind.RESIZE:
                self._set_size(header.length)
            elif header.kind == Kind.WRITE:
                write_all(self._fd, [payload], header.offset)
            elif header.kind in (Kind.ZERO, Kind.TRIM):
                punch_hole(self._fd, header.offset, min(header.length, self.size_bytes - header.offset))
        os.fdatasync(self._fd)

    def resize(self, size_bytes: int) -> int:
        """Record the device's size, grown if it is smaller; returns the LSN after the record. Never shrinks."""
        if size_bytes < self.size_bytes:
            raise Invalid(
                f"{self.path} has {self.size_bytes} bytes and would shrink to {size_bytes}: volumes only grow. "
                "Raise `size`, or leave it out."
            )
        if not self.bypass:
            self._spool.append([Entry(Kind.RESIZE, 0, self.ordinal, 0, size_bytes, b"")])
        self._set_size(size_bytes)
        return self._spool.head_lsn

    def grow(self, size_bytes: int) -> None:
        """`resize` under clients: a journal that fails is not their trouble. Raises the OSError of the file."""
        try:
            self.resize(size_bytes)
        except OSError:
            self.write_through_from_now()
            self._check()
            self.resize(size_bytes)

    def restore_size(self) -> None:
        """Give the file back what was cut off: the device has the size it told its clients, and zeroes there."""
        if self.signature().size_bytes < self.size_bytes:
            self._set_size(self.size_bytes)

    def _set_size(self, size_bytes: int) -> None:
        self.writes += 1
        if os.fstat(self._fd).st_size < size_bytes:
            os.ftruncate(self._fd, size_bytes)
        self.size_bytes = max(self.size_bytes, size_bytes)

    async def stop(self) -> Signature | None:
        """Drop clients, bring every change to the file, close it. The signature says how it was left."""
        self._stopped = True
        self.drop_clients()
        self._urgent = True
        async with self._applying:  # a batch may be under way whose waiter was cancelled
            pass
        while self._pending and self.error is None:
            if not await self._durable(self._spool.head_lsn):
                self.write_through_from_now()
                break
            await self._apply_batch()
        if self.error is None:
            await self._to_disk(os.fsync)  # the times too: they are part of the signature
        # Of the file that was written to, whatever lies at the path by now.
        signature = self.signature() if self.error is None else None
        self.close()
        return signature

    def close(self) -> None:
        """Let go of the file as it is."""
        self._fd = _CLOSED

    # ------------------------------------------------------------------ the export

    def submit(self, changes: Sequence[Change]) -> None:
        """See `Export.submit`."""
        self._check()
        if self._watches:
            self._note_touched(changes)
        if self.bypass:
            self._write_through(changes)
            return
        entries: list[Entry] = []
        ordinal = self.ordinal
        for kind, offset, length, data in changes:
            if data is None:
                entries.append(Entry(int(kind), 0, ordinal, offset, length, b""))
            elif length <= self._record_bytes_max:
                entries.append(_new(Entry, (_WRITE, 0, ordinal, offset, length, data)))
            else:
                for at in range(0, length, self._record_bytes_max):
                    part = data[at : at + self._record_bytes_max]
                    entries.append(Entry(_WRITE, 0, ordinal, offset + at, len(part), part))
        try:
            lsns = self._spool.append(entries)
        except OSError:
            # The journal's disk is full or broken: that is the group's trouble, not the application's.
            self.write_through_from_now()
            self._check()
            self._write_through(changes)
            return
        self.note(changes)
        now = self._last_submit = self._loop.time()
        self._enter(
            [
                _new(Pending, (lsn, kind, offset, length, lsn + HEADER_BYTES, now))
                for lsn, (kind, _, _, offset, length, _) in zip(lsns, entries, strict=True)
            ]
        )
        self._work.set()

    def _check(self) -> None:
        if self._stopped:
            raise Stopped()
        if self.error is not None:
            raise OSError(self.error.errno, str(self.error))

    def _enter(self, changes: Sequence[Pending]) -> None:
        overlay, size = self._overlay, 0
        for lsn, kind, offset, length, position, _ in changes:
            if kind == _WRITE:
                overlay.write(offset, length, position)
                size += length
            else:
                overlay.zero(offset, length, lsn)
        self.pending_bytes += size
        self._pending.extend(changes)

    def flush(self, done: Callable[[OSError | None], None]) -> None:
        """See `Export.flush`."""
        if self.error is not None or self._stopped:
            done(self.error or Stopped())
        elif self.bypass:
            future = self._loop.run_in_executor(self._executor, os.fdatasync, self._fd)
            future.add_done_callback(lambda outcome: self._synced(as_os_error(outcome.exception()), done))
        else:
            self.commits.when_committed(self._spool.head_lsn, lambda error: self._flushed(error, done))

    @property
    def durable_acks(self) -> bool:
        """See `Export.durable_acks`."""
        return self.commits.durable_acks

    def _synced(self, error: OSError | None, done: Callable[[OSError | None], None]) -> None:
        if error is not None:
            done(error)
        else:
            self.commits.when_released(done)

    def _flushed(self, error: OSError | None, done: Callable[[OSError | None], None]) -> None:
        if error is not None:
            # The journal failed under a waiting FLUSH: it is answered once the file has everything instead.
            self.write_through_from_now()
            self._synced(self.error, done)
            return
        done(self.error)

    def read_now(self, offset: int, length: int) -> bytes | memoryview | None:
        """See `Export.read_now`."""
        self._check()
        if self._overlay:
            if length == 4096 and not offset & 4095:
                position = self._overlay.block_position(offset >> 12)
                if position is not None and position > 0:
                    return bytes(self._spool.view(position, length))
            return None
        buffer = bytearray(length)
        try:
            read = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return buffer if read == length else None  # type: ignore[return-value]

    def read_blocking(self, offset: int, length: int) -> bytes:
        """See `Export.read_blocking`."""
        while True:
            try:
                data, oldest = self._compose(offset, length)
            except KeyError:
                continue  # a spool file went while we looked: its blocks are in the volume's file by now
            # Spool files are recycled only after `released_lsn` passed them: a copy made before that is good.
            if oldest >= self._spool.released_lsn:
                return data

    def _compose(self, offset: int, length: int) -> tuple[bytes, int]:
        parts: list[bytes | memoryview] = []
        oldest = 1 << 63
        run_start, run_end = offset, offset
        for part in self._overlay.slices(offset, length):
            if part.position == 0:
                run_end = part.offset + part.length
                continue
            if run_end > run_start:
                parts.append(read_whole(self._fd, run_start, run_end - run_start))
            run_start = run_end = part.offset + part.length
            if part.position < 0:
                parts.append(bytes(part.length))
            else:
                oldest = min(oldest, part.position)
                parts.append(bytes(self._spool.view(part.position, part.length)))
        if run_end > run_start:
            parts.append(read_whole(self._fd, run_start, run_end - run_start))
        return b"".join(parts), oldest

    def extents_blocking(self, offset: int, length: int) -> list[Extent]:
        """See `Export.extents_blocking`."""
        found: list[Extent] = []

        def add(count: int, empty: bool) -> None:
            if found and found[-1].hole == empty:
                found[-1] = Extent(found[-1].length + count, empty, empty)
            elif count:
                found.append(Extent(count, empty, empty))

        for part in self._overlay.slices(offset, length):
            if part.position:
                add(part.length, part.position < 0)
                continue
            at, end = part.offset, part.offset + part.length
            for begin, stop in data_ranges(self._fd, at, end):
                add(begin - at, True)
                add(stop - begin, False)
                at = stop
            add(end - at, True)
        return found

    @property
    def congested(self) -> bool:
        """See `Export.congested`."""
        return self.held or self._full

    @property
    def _full(self) -> bool:
        return self.backpressure or self.pending_bytes > self._pending_max

    def hold(self, held: bool) -> None:
        """Take no new changes for a moment: those taken before are in the journal, the next ones come behind what is put there."""
        self.held = held
        if self._full and self._relief:
            self._hurry_for_relief()
        self.relieve()

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """See `Export.when_relieved`."""
        self._relief.append(callback)
        if self._full:
            self._hurry_for_relief()

    def _hurry_for_relief(self) -> None:
        self._urgent = True
        self._work.set()

    def relieve(self) -> None:
        """Tell waiting clients if there is room again."""
        if not self.congested:
            waiting, self._relief = self._relief, []
            for callback in waiting:
                callback()

    async def has_room(self) -> None:
        """Returns once it is not `congested`. Raises OSError if it is detached or fails meanwhile."""
        while self.congested:
            self._check()
            relieved = asyncio.Event()
            self.when_relieved(relieved.set)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(relieved.wait(), RELIEF_SECONDS)

    @property
    def client_count(self) -> int:
        """How many clients have it open."""
        return len(self._clients)

    def drop_clients(self) -> None:
        """Close every client's connection."""
        for close in list(self._clients):
            close()

    def opened(self, close: Callable[[], None]) -> None:
        """See `Export.opened`."""
        self._clients.append(close)

    def closed(self, close: Callable[[], None]) -> None:
        """See `Export.closed`."""
        if close in self._clients:
            self._clients.remove(close)

    # ------------------------------------------------------------------ write-behind

    async def write_behind(self) -> None:
        """Bring durable changes to the file for ever: at once when there are many, else when the clients pause."""
        while True:
            if not self._pending or self.error is not None:
                self._urgent = False
                self._work.clear()
                await self._work.wait()
            if not self._pressing:
                await asyncio.sleep(POLL_SECONDS)
                continue
            if self._pending and not await self._durable(self._pending[0].lsn + 1):
                self._work.clear()
                await self._work.wait()
                continue
            await self._apply_batch()
            self.relieve()

    @property
    def _pressing(self) -> bool:
        # Many changes or old ones would make a restart long: it enters each of them in the overlay again.
        now = self._loop.time()
        return (
            self._urgent
            or self.pending_bytes > self._pending_max // 2
            or len(self._pending) > PENDING_RECORDS_MAX
            or now - self._last_submit > IDLE_SECONDS
            or (bool(self._pending) and now - self._pending[0].at > AGE_SECONDS_MAX)
        )

    def hurry(self) -> None:
        """Bring everything to the file without waiting for a pause: the spool needs its space."""
        self._urgent = True
        self._work.set()

    async def _durable(self, lsn: int) -> bool:
        """Waits until the journal before `lsn` is durable; False if it never will be."""
        outcome: asyncio.Future[bool] = self._loop.create_future()

        def settle(error: OSError | None) -> None:
            if not outcome.done():
                outcome.set_result(error is None)

        self._spool.when_durable(lsn, settle)
        return await outcome

    async def _apply_batch(self) -> None:
        # Who waits may be cancelled; the batch is not: its writes are under way in a thread.
        self._batch = self._loop.create_task(self._apply_alone())
        await asyncio.shield(self._batch)

    async def _apply_alone(self) -> None:
        async with self._applying:
            await self._apply_next()

    async def _apply_next(self) -> None:
        durable = self._spool.durable_lsn
        batch: list[Pending] = []
        size = 0
        pending = self._pending
        if pending and pending[0].lsn < durable:
            self._in_flight_lsn = pending[0].lsn
        while pending and size < BATCH_BYTES and len(batch) < BATCH_RECORDS and pending[0][0] < durable:
            change = pending.popleft()
            batch.append(change)
            if change[1] == _WRITE:
                size += change[3]
        if not batch:
            return
        try:
            self._writing = self._executor.submit(self._apply_blocking, batch)
            await asyncio.wrap_future(self._writing)
        except OSError as error:
            self._pending.extendleft(reversed(batch))
            self.error = error
            return
        finally:
            self._in_flight_lsn = self._writing = None
        if self.bypass:
            return
        applied_write = self._overlay.applied_write
        for lsn, kind, offset, length, position, _ in batch:
            if kind == _WRITE:
                applied_write(offset, length, position)
            else:
                self._overlay.applied_zero(offset, length, lsn)
        self.pending_bytes -= size

    def _apply_blocking(self, batch: Sequence[Pending]) -> None:
        self.writes += 1
        self._spool.note_durable()
        bring(self._fd, batch, self._spool.view, self.size_bytes)

    @property
    def low_lsn(self) -> int:
        """Every change before it is in the file's page cache."""
        if self._in_flight_lsn is not None:
            return self._in_flight_lsn
        return self._pending[0].lsn if self._pending else self._spool.head_lsn

    async def sync(self) -> None:
        """Make what is in the file durable: `synced_lsn` moves. What went past the journal too, so that little is left to
        `journalled_again`."""
        if self.bypass or self.low_lsn != self.synced_lsn:
            await self._to_disk(os.fdatasync)

    async def _to_disk(self, sync: Callable[[int], None]) -> None:
        low = self.low_lsn
        try:
            await self._loop.run_in_executor(self._executor, sync, self._fd)
        except OSError as error:
            self.error = error
            return
        self.synced_lsn = low

    # ------------------------------------------------------------------ when the journal fails

    def write_through_from_now(self) -> None:
        """The journal is broken: bring all it holds to the file, sync that, and go on without it.

        Blocks the loop; the application waits, and sees an error only if the file fails too.
        """
        if self.bypass or self.error is not None:
            return
        self.leaving()
        try:
            if self._writing is not None:
                wait([self._writing])
                self._writing.result()
            self._apply_blocking(list(self._pending))
            os.fdatasync(self._fd)
            self.bypassing()
        except OSError as error:
            self.error = error
            return
        self.bypass = True
        self._pending.clear()
        self.pending_bytes = 0
        self._overlay = Overlay()

    def journalled_again(self) -> None:
        """The journal works again: what is written from here on is in it. The size is told anew.

        What went past it is durable when this returns: no record will tell it, and every FLUSH and seed from here on means it too.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.error = error
            return
        self.bypass = False
        self.synced_lsn = self._spool.head_lsn
        self.resize(self.size_bytes)

    def _write_through(self, changes: Sequence[Change]) -> None:
        self.writes += 1
        try:
            for kind, offset, length, data in changes:
                if kind == ChangeKind.WRITE and data is not None:
                    write_all(self._fd, [data], offset)
                else:
                    punch_hole(self._fd, offset, length)
        except OSError as error:
            self.error = error
            raise

    # ------------------------------------------------------------------ seeds

    async def read_for_seed(self, offset: int, length: int) -> tuple[int, bytes]:
        """(LSN, the range's bytes as the records before that LSN left them).

        Reads beside the clients; if they write to the range meanwhile, again, at last with the loop held.
        """
        # By whole sectors: nothing smaller is kept apart while it is on its way to the file.
        begin = offset - offset % SECTOR_BYTES
        end = offset + length + -(offset + length) % SECTOR_BYTES
        lsn, data = await self._read_sectors(begin, min(end, self.size_bytes) - begin)
        return lsn, data[offset - begin : offset - begin + length]

    async def _read_sectors(self, offset: int, length: int) -> tuple[int, bytes]:
        for _ in range(SEED_TRIES):
            watch = _Watch(offset, offset + length)
            self._watches.append(watch)
            lsn = self._spool.head_lsn
            try:
                data = await self._loop.run_in_executor(self._executor, self.read_blocking, offset, length)
            finally:
                self._watches.remove(watch)
            if not watch.touched:
                return lsn, data
        return self._spool.head_lsn, self.read_blocking(offset, length)

    def _note_touched(self, changes: Sequence[Change]) -> None:
        for _, offset, length, _ in changes:
            for watch in self._watches:
                if offset < watch.end and offset + length > watch.offset:
                    watch.touched = True

    async def allocated(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length) of what is allocated in the range; what is left out reads as zeroes."""
        extents = await self._loop.run_in_executor(self._executor, self.extents_blocking, offset, length)
        found, at = [], offset
        for extent in extents:
            if not extent.hole:
                found.append((at, extent.length))
            at += extent.length
        return found
