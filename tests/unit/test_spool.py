"""The spool: what is appended is found again, in order, after any end of the process; and nothing else is.

Fault model: the process may be killed at any moment (the page cache stays), the host may lose power (what `fdatasync` did
not confirm may be gone, in any order), the disk may be full or broken.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpac_api.errors import Corruption
from dpac_engine.core.records import Kind, stored_bytes
from dpac_engine.io import spare_files
from dpac_engine.io import spool as spool_module
from dpac_engine.io.spool import Entry, Identity, Spool, scan
from tests.spools import records_of

FILE_BYTES = 64 * 1024
TAG = 0x11223344
DEADLINE_SECONDS = 20


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 64 KiB, so that a test turns many of them."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", FILE_BYTES)


class Life:
    """One opening of the spool; callbacks run in the test's thread, when it says so."""

    def __init__(self, folder: Path, *, head: int = 0, released: int = 0, incarnation: int = 1) -> None:
        self.calls: list[Callable[[], None]] = []
        self.came = threading.Condition()
        self.failures: list[OSError] = []
        self.stamps = iter(range(10**6, 10**9))
        self.spool = Spool(
            folder,
            Identity(TAG, 1, incarnation),
            head,
            released,
            self._call,
            lambda: next(self.stamps),
            self.failures.append,
        )

    def _call(self, callback: Callable[[], None]) -> None:
        with self.came:
            self.calls.append(callback)
            self.came.notify()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run callbacks of the commit thread until `done`; fails after a deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not done():
            with self.came:
                assert self.came.wait_for(lambda: self.calls, max(0, deadline - time.monotonic())), "deadline passed"
                calls, self.calls = self.calls, []
            for callback in calls:
                callback()

    def durable(self, lsn: int | None = None) -> None:
        """Wait until everything before `lsn` (the head) is durable."""
        told: list[OSError | None] = []
        self.spool.when_durable(self.spool.head_lsn if lsn is None else lsn, told.append)
        self.run_until(lambda: bool(told))
        assert told == [None]


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Makes openings of one spool, and stops those still open at the end."""
    made: list[Life] = []

    def make(**kwargs: int) -> Life:
        made.append(Life(tmp_path, **kwargs))
        return made[-1]

    yield make
    for life in made:
        if life.spool._thread.is_alive():
            life.spool.stop()


def write(payload: bytes, *, flags: int = 0, offset: int = 0) -> Entry:
    """A write record."""
    return Entry(Kind.WRITE, flags, 7, offset, len(payload), payload)


def found(folder: Path, from_lsn: int = 0, incarnation: int = 0) -> list[tuple[int, bytes]]:
    """(LSN, payload) of what a scan finds."""
    return [(header.lsn, bytes(payload)) for header, payload in scan(folder, from_lsn, TAG, incarnation)]


def cut_power(folder: Path, survives: dict[str, bytes]) -> None:
    """The folder as a loss of power leaves it: the bytes that a fsync confirmed, or any others the test chooses."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in survives.items():
        (folder / name).write_bytes(data)


def test_what_is_appended_is_read_back_and_scanned(lives: Callable[..., Life], tmp_path: Path) -> None:
    """Records of many sizes, over many files, come back in order, from the open spool and from the closed one."""
    life, chance, expected = lives(), random.Random(1), []
    for _ in range(200):
        batch = [write(chance.randbytes(chance.choice([0, 1, 63, 64, 65, 4096, 9000]))) for _ in range(3)]
        for lsn, entry in zip(life.spool.append(batch), batch, strict=True):
            expected.append((lsn, entry.payload))
    assert life.spool.head_lsn > 5 * FILE_BYTES
    read = [(record.lsn, record.payload) for record in records_of(life.spool)]
    assert read == expected
    head = life.spool.head_lsn
    life.spool.stop()
    assert found(tmp_path) == expected
    again = lives(head=head, incarnation=2)
    assert [(record.lsn, record.payload) for record in records_of(again.spool)] == expected


def test_a_bounded_read_ends_with_a_whole_run(lives: Callable[..., Life]) -> None:
    """Once it has enough it stops at the next end of a run, be that in the next file; read on, nothing is missing."""
    life = lives()
    run = [Entry(Kind.WRITE, 1, 1, 0, 0, bytes([n]) * 9000) for n in range(20)] + [write(b"end of the run")]
    life.spool.append([write(b"before"), *run, write(b"after")])
    assert life.spool.head_lsn > 2 * FILE_BYTES
    first = list(life.spool.read(0, life.spool.head_lsn, 10_000))
    payloads = [bytes(payload) for batch in first for payload in batch.payloads]
    assert payloads == [b"before", *(entry.payload for entry in run)]
    rest = records_of(life.spool, first[-1].next_lsn)
    assert [record.payload for record in rest] == [b"after"]


@pytest.mark.parametrize("at", [0, 12, 16, 56, 64, 163])
def test_a_flipped_bit_in_a_record_is_found_by_reading(lives: Callable[..., Life], tmp_path: Path, at: int) -> None:
    """Magic, size, place, checksum or payload: what is not what was appended is never handed out."""
    life = lives()
    life.spool.append([write(bytes([n]) * 100) for n in range(8)])
    with (tmp_path / f"{0:016x}.spool").open("r+b") as file:
        file.seek(3 * 192 + at)
        byte = file.read(1)[0]
        file.seek(3 * 192 + at)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(Corruption):
        list(life.spool.read(0, life.spool.head_lsn))


def test_a_record_that_no_file_can_hold_is_refused_and_the_journal_goes_on(
    lives: Callable[..., Life], tmp_path: Path
) -> None:
    """Nothing of what was to be appended with it counts; what comes next is read back."""
    life = lives()
    largest = life.spool.payload_bytes_max
    life.spool.append([Entry(Kind.WRITE, 0, 1, 0, largest, bytes(largest))])
    head = life.spool.head_lsn
    batch = [Entry(Kind.WRITE, 0, 1, 0, size, bytes(size)) for size in (512, FILE_BYTES)]
    with pytest.raises(ValueError, match="does not fit into a file of the spool"):
        life.spool.append(batch)
    assert life.spool.head_lsn == head
    assert not life.failures
    life.spool.append([Entry(Kind.WRITE, 0, 1, 4096, 512, b"n" * 512)])
    found = list(scan(life.spool.folder, 0, TAG, 0))
    assert [(header.offset, header.length) for header, _ in found if header.kind == Kind.WRITE] == [
        (0, largest),
        (4096, 512),
    ]


def test_a_record_that_ends_exactly_at_a_files_end_is_followed_by_one_in_the_next(
    lives: Callable[..., Life], tmp_path: Path
) -> None:
    """No pad is needed then, and the next append goes to the next file, in one batch or in two."""
    for split in (True, False):
        folder = tmp_path
        life = lives()
        full, after = [write(bytes([n]) * (4096 - 64)) for n in range(16)], [write(b"next file")]
        lsns = life.spool.append(full) + life.spool.append(after) if split else life.spool.append(full + after)
        assert lsns[-1] == FILE_BYTES
        life.durable()
        payloads = [entry.payload for entry in full + after]
        assert [record.payload for record in records_of(life.spool)] == payloads
        life.spool.stop()
        assert [payload for _, payload in found(folder)] == payloads
        cut_power(folder, {})


def test_an_exactly_full_spool_is_opened_again_at_the_next_file(lives: Callable[..., Life], tmp_path: Path) -> None:
    """A restart whose head is a file's end appends to the file after it."""
    life = lives()
    life.spool.append([write(bytes(FILE_BYTES - 64))])
    life.spool.stop()
    again = lives(head=FILE_BYTES, incarnation=2)
    again.spool.append([write(b"after")])
    again.spool.stop()
    assert [len(payload) for _, payload in found(tmp_path)] == [FILE_BYTES - 64, 5]


def test_a_pad_that_was_not_counted_never_makes_a_scan_leap(lives: Callable[..., Life], tmp_path: Path) -> None:
    """A restart at a pad writes over it; if power fails before that is durable, but after the next file was written, the
    old pad must not lead a scan past what was lost to what was written after it."""
    life = lives()
    life.spool.append([write(bytes(FILE_BYTES - 4096))])
    (head,) = life.spool.append([write(bytes(8192))])  # does not fit: a pad, then the next file
    life.spool.stop()
    pad_lsn = found(tmp_path)[0][0] + 64 + FILE_BYTES - 4096
    assert head == FILE_BYTES
    for path in tmp_path.glob("*1.spool"):
        path.write_bytes(bytes(FILE_BYTES))  # that record was never durable
    again = lives(head=pad_lsn, incarnation=2)
    on_disk = (tmp_path / f"{0:016x}.spool").read_bytes()
    again.spool.append([write(b"lost with the power"), write(bytes(8192))])
    again.spool.stop()
    (tmp_path / f"{0:016x}.spool").write_bytes(on_disk)
    assert [lsn for lsn, _ in found(tmp_path)] == [0]


def test_files_are_recycled_and_their_old_records_never_read(lives: Callable[..., Life], tmp_path: Path) -> None:
    """Released files come back under new names; the folder does not grow; a scan ends at the head."""
    life, chance = lives(), random.Random(2)
    for _ in range(300):
        life.spool.append([write(chance.randbytes(4000))])
        if chance.random() < 0.1:
            life.durable()
            life.spool.release(life.spool.head_lsn)
    assert len(list(tmp_path.iterdir())) <= 5
    life.durable()
    head, from_lsn = life.spool.head_lsn, life.spool.head_lsn - life.spool.head_lsn % FILE_BYTES
    life.spool.stop()
    scanned = list(scan(tmp_path, from_lsn, TAG, 0))
    assert scanned[-1][0].next_lsn == head


def test_nothing_that_is_not_durable_is_recycled(lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch) -> None:
    """A release past the durable LSN keeps the files that a crash would still need."""
    life = lives()
    gate = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: gate.wait(DEADLINE_SECONDS))
    for _ in range(40):
        life.spool.append([write(bytes(4000))])
    life.spool.release(life.spool.head_lsn)
    assert life.spool.stored_bytes >= 2 * FILE_BYTES
    assert bytes(life.spool.view(64, 4000)) == bytes(4000)
    gate.set()


def test_a_torn_record_ends_the_stream(lives: Callable[..., Life], tmp_path: Path) -> None:
    """Any single flipped byte of a record hides it and all after it, and nothing before it."""
    life = lives()
    lsns = life.spool.append([write(bytes([n]) * 100) for n in range(5)])
    life.spool.stop()
    (path,) = tmp_path.glob("*.spool")
    whole = path.read_bytes()
    for at in range(lsns[2], lsns[2] + 164):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        assert [lsn for lsn, _ in found(tmp_path)] == lsns[:2], f"byte {at - lsns[2]} of the record"


def test_stale_records_behind_a_torn_one_are_not_read_again(lives: Callable[..., Life], tmp_path: Path) -> None:
    """After a power cut tore a record, the intact ones behind it stay void once it is overwritten by a new life."""
    life = lives()
    lsns = life.spool.append([write(bytes([n]) * 64) for n in range(4)])
    life.spool.stop()
    (path,) = tmp_path.glob("*.spool")
    torn = bytearray(path.read_bytes())
    torn[lsns[1] + 70] ^= 1
    path.write_bytes(torn)
    assert [lsn for lsn, _ in found(tmp_path)] == lsns[:1]
    again = lives(head=lsns[1], incarnation=2)
    again.spool.append([write(b"new".ljust(64, b"!"))])
    assert again.spool.head_lsn == lsns[2], "the stale records begin exactly at the new head"
    again.spool.stop()
    assert [payload[:3] for _, payload in found(tmp_path)] == [bytes(3), b"new"]


def test_stale_records_at_the_scans_very_beginning_are_not_read(lives: Callable[..., Life], tmp_path: Path) -> None:
    """A scan that begins at the head has no record before it to compare with: the caller's incarnation bounds it."""
    life = lives()
    lsns = life.spool.append([write(bytes([n]) * 64) for n in range(4)])
    life.spool.stop()
    again = lives(head=lsns[1], incarnation=2)
    again.spool.append([write(b"new".ljust(64, b"!"))])
    again.spool.stop()
    assert found(tmp_path, lsns[2], incarnation=2) == []
    assert len(found(tmp_path, lsns[2], incarnation=1)) == 2


@pytest.mark.parametrize("last", ["pad", "run"])
def test_what_lay_at_the_head_without_counting_never_comes_back(
    lives: Callable[..., Life], tmp_path: Path, last: str
) -> None:
    """A pad, or a run cut short, that a loss of power brings back does not lead past lost records to newer ones."""
    life = lives()
    if last == "pad":
        (_, lsn) = life.spool.append([write(bytes(FILE_BYTES - 1024)), write(bytes(4096))])
        head = FILE_BYTES - 1024 + 64
    else:
        (head, lsn) = life.spool.append([write(bytes(FILE_BYTES - 64 - 64), flags=1), write(bytes(64))])
    assert lsn == FILE_BYTES
    life.spool.stop()
    (tmp_path / f"{1:016x}.spool").unlink()
    again = lives(head=head, incarnation=2)
    as_synced = (tmp_path / f"{0:016x}.spool").read_bytes()
    again.spool.append([write(b"lost"), write(bytes(2048)), write(bytes(FILE_BYTES - 4096)), write(b"newer")])
    again.spool.stop()
    (tmp_path / f"{0:016x}.spool").write_bytes(as_synced)
    assert all(lsn < head for lsn, _ in found(tmp_path))


def test_another_shards_records_are_not_read(lives: Callable[..., Life], tmp_path: Path) -> None:
    """A scan for another shard finds nothing."""
    life = lives()
    life.spool.append([write(b"mine")])
    life.spool.stop()
    assert list(scan(tmp_path, 0, TAG + 1, 0)) == []


def test_waiters_are_told_in_order_of_their_lsn_and_only_when_durable(
    lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told before an fdatasync that began after the record was written has returned."""
    life, told = lives(), []
    gate, real = threading.Semaphore(0), os.fdatasync
    synced: list[int] = []

    def gated(fd: int) -> None:
        head = life.spool.head_lsn
        assert gate.acquire(timeout=DEADLINE_SECONDS)
        real(fd)
        synced.append(head)

    monkeypatch.setattr(os, "fdatasync", gated)
    for number in range(6):
        life.spool.append([write(b"x" * 100)])
        lsn = life.spool.head_lsn

        def done(error: OSError | None, number: int = number, lsn: int = lsn) -> None:
            assert error is None
            assert max(synced) >= lsn, "told before it was durable"
            told.append(number)

        life.spool.when_durable(lsn, done)
        assert told == []
    gate.release(10)
    life.run_until(lambda: len(told) == 6)
    assert told == [0, 1, 2, 3, 4, 5]
    gate.release(100)


def test_one_sync_serves_all_who_wait(lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred waiters that came while a sync was under way are served by the next one (group commit)."""
    life, told, syncs = lives(), [], []
    gate, real = threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (gate.wait(DEADLINE_SECONDS), syncs.append(fd), real(fd)))
    for _ in range(100):
        life.spool.append([write(b"x")])
        life.spool.when_durable(life.spool.head_lsn, told.append)
    gate.set()
    life.run_until(lambda: len(told) == 100)
    assert len(syncs) <= 2


def test_a_failed_sync_is_told_once_to_every_waiter_and_never_tried_again(
    lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO reaches each waiter once and the group once; later waiters are told at once; fdatasync runs no second time."""
    life, told, calls = lives(), [], []
    gate = threading.Event()

    def broken(fd: int) -> None:
        gate.wait(DEADLINE_SECONDS)
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    for number in range(5):
        life.spool.append([write(b"x")])
        life.spool.when_durable(life.spool.head_lsn, lambda error, number=number: told.append((number, error.errno)))
    gate.set()
    life.run_until(lambda: len(told) == 5)
    assert sorted(told) == [(number, errno.EIO) for number in range(5)]
    assert [error.errno for error in life.failures] == [errno.EIO]
    with pytest.raises(OSError, match="Input/output error"):
        life.spool.append([write(b"x")])
    life.spool.when_durable(life.spool.head_lsn, lambda error: told.append((9, error.errno)))
    assert told[-1] == (9, errno.EIO)
    assert len(calls) == 1
    assert life.spool.durable_lsn == 0


def test_a_full_disk_leaves_the_head_where_it_was(
    lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that needs a file which cannot be allocated fails whole; none of it is found by a scan."""
    life = lives()
    (first,) = life.spool.append([write(b"before" * 1000)])
    head = life.spool.head_lsn
    monkeypatch.setattr(spare_files, "reserve", _no_space)
    with pytest.raises(OSError, match="No space"):
        life.spool.append([write(bytes([n]) * 10_000) for n in range(20)])
    assert life.spool.head_lsn == head
    assert [lsn for lsn, _ in found(tmp_path)] == [first]
    life.run_until(lambda: bool(life.failures))
    assert life.failures[0].errno == errno.ENOSPC
    assert bytes(life.spool.view(first + 64, 6)) == b"before"


def test_a_file_that_is_needed_now_costs_little_and_is_written_ahead_only_later(
    lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All groups of a worker wait while it is made: it has its size, takes a small part of it, and keeps what is appended."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", 8 * 2**20)
    life = lives()
    (path,) = tmp_path.glob("*.spool")
    assert path.stat().st_size == 8 * 2**20
    assert path.stat().st_blocks * 512 <= spool_module.AT_ONCE_BYTES + 65536
    data = [bytes([n]) * 2**20 for n in range(1, 6)]
    life.spool.append([write(part) for part in data])
    life.durable()
    assert [payload for _, payload in found(tmp_path)] == data
    deadline, pause = time.monotonic() + 60, threading.Event()
    while not len(life.spool._spares):
        assert time.monotonic() < deadline, "half of the file is used, and there is no spare"
        pause.wait(0.01)
    (spare,) = tmp_path.glob("*.spare")
    assert spare.stat().st_blocks * 512 >= 8 * 2**20


def _no_space(path: Path, size_bytes: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_reading_goes_on_beside_appending_and_releasing(lives: Callable[..., Life], seed: int) -> None:
    """A reader in a thread sees every record of its range whole while others are appended and older ones released."""
    life, chance = lives(), random.Random(seed)
    bounds, problems = [0], []
    finished = threading.Event()

    def follow() -> None:
        at, number = 0, 0
        try:
            while at < bounds[-1] or not finished.is_set():
                limit = bounds[-1]
                for record in records_of(life.spool, at, limit):
                    assert record.payload == bytes([record.offset % 251]) * len(record.payload)
                    assert record.offset == number
                    number += 1
                at = limit
                released[0] = at
        except Exception as error:
            problems.append(error)

    released = [0]
    reader = threading.Thread(target=follow)
    reader.start()
    for number in range(3000):
        life.spool.append([write(bytes([number % 251]) * chance.randrange(2000), offset=number)])
        bounds.append(life.spool.head_lsn)
        if number % 50 == 0:
            life.durable()
            life.spool.release(released[0])
    finished.set()
    reader.join(DEADLINE_SECONDS)
    assert not reader.is_alive()
    assert problems == [], f"seed {seed}"


def test_a_view_stays_right_until_its_bytes_are_released(lives: Callable[..., Life]) -> None:
    """A view taken early shows its record's bytes however many files are turned and recycled behind it."""
    life = lives()
    life.spool.append([write(bytes(60_000))])
    (lsn,) = life.spool.append([write(b"kept" * 1000)])
    view = life.spool.view(lsn + 64, 4000)
    for _ in range(200):
        life.spool.append([write(b"x" * 3000)])
        life.durable()
        life.spool.release(lsn)
    assert bytes(view) == b"kept" * 1000
    assert life.spool.released_lsn == lsn


def test_the_new_name_of_a_recycled_file_is_durable_before_its_records_are(
    lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a turn the folder is synced before anybody is told that records of the new file are durable."""
    life, events = lives(), []
    real_replace, real_sync = os.replace, spool_module.sync_folder
    monkeypatch.setattr(os, "replace", lambda a, b: (real_replace(a, b), events.append("named")))
    monkeypatch.setattr(spool_module, "sync_folder", lambda path: (real_sync(path), events.append("synced")))
    for _ in range(5):
        life.spool.append([write(bytes(60_000))])
        life.durable()
        life.spool.release(life.spool.head_lsn)
    life.spool.append([write(bytes(60_000))])
    life.spool.when_durable(life.spool.head_lsn, lambda error: events.append("told"))
    life.run_until(lambda: events[-1] == "told")
    last_named = len(events) - 1 - events[::-1].index("named")
    assert "synced" in events[last_named:]


def test_files_that_a_crash_left_unallocated_do_not_hinder_the_start(
    lives: Callable[..., Life], tmp_path: Path
) -> None:
    """A spool file or a spare that was being made is made whole or let go."""
    (tmp_path / f"{0:016x}.spool").touch()
    (tmp_path / "cut-short.spare").write_bytes(b"short")
    life = lives()
    for _ in range(3):
        life.spool.append([write(bytes(60_000))])
    life.durable()
    assert len(found(tmp_path)) == 3
    assert not (tmp_path / "cut-short.spare").exists()


def test_a_record_takes_whole_multiples_of_64_bytes() -> None:
    """What is stored is header and payload, rounded up."""
    assert [stored_bytes(n) for n in (0, 1, 64, 65)] == [64, 128, 128, 192]
