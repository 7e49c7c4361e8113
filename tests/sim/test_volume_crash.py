"""A volume under random work and random ends: nothing acknowledged is lost, nothing unjournalled is kept.

Fault model.
Killed process: every byte handed to the kernel stays; a batch on its way to the file may be there in part.
Lost power: of what no `fdatasync` confirmed, each 512-byte sector of each file is there or not, independently.
In both cases the spool and the file, as they are then, are all that the next life has.

After a kill the device must hold every acknowledged change. After a loss of power it must hold exactly the changes before
some LSN (the journal's end), and that LSN must not lie before the last answered FLUSH: a block that had reached the file before
its record was durable breaks this.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dpac_engine.core.records import Flags, Kind
from dpac_engine.io import spare_files
from dpac_engine.io import spool as spool_module
from dpac_engine.io.members import overlay as overlay_module
from dpac_engine.io.members import volume as volume_module
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.nbd.export import Change, ChangeKind
from dpac_engine.io.spool import Entry, Identity, Spool
from tests.spools import records_of

SECTOR = 512
DEVICE_BYTES = 192 * 1024
FILE_BYTES = 128 * 1024
ORDINAL = 3
TAG = 77
ROUNDS = int(os.environ.get("DPAC_SOAK_ROUNDS", "200"))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files, records and batches: every boundary is met often."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", FILE_BYTES)
    monkeypatch.setattr(volume_module, "RECORD_BYTES_MAX", 24 * 1024)
    monkeypatch.setattr(volume_module, "BATCH_BYTES", 32 * 1024)
    monkeypatch.setattr(volume_module, "BATCH_RECORDS", 5)
    monkeypatch.setattr(overlay_module, "ZERO_BLOCKS_MAX", 8)


class Disk:
    """What a loss of power would leave: contents as of the last confirmed sync, by inode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: dict[int, bytes] = {}
        self._allocate = spare_files.allocate
        monkeypatch.setattr(spare_files, "allocate", self._allocate_zeroes)
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)
        # What is durable is what this disk says; the machine's own need not be waited for.
        monkeypatch.setattr(os, "fsync", os.fstat)

    def _fdatasync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        content = os.pread(descriptor, status.st_size, 0)
        self.synced[status.st_ino] = content

    def _allocate_zeroes(self, path: Path, size_bytes: int, written_bytes: int) -> None:
        self._allocate(path, size_bytes, written_bytes)
        self.synced[path.stat().st_ino] = path.read_bytes()

    def after_power_loss(self, path: Path, chance: random.Random) -> bytes:
        """The file's bytes then."""
        now = path.read_bytes()
        kept = bytearray(self.synced.get(path.stat().st_ino, b"").ljust(len(now), b"\0")[: len(now)])
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for at in range(0, len(now), SECTOR):
            if now[at : at + SECTOR] != kept[at : at + SECTOR] and chance.random() < share:
                kept[at : at + SECTOR] = now[at : at + SECTOR]
        return bytes(kept)


class Applied(NamedTuple):
    """A change that was acknowledged."""

    lsn: int
    offset: int
    data: bytes


class Rig:
    """One device over many lives. `history` holds what was acknowledged and is still in the journal's range."""

    def __init__(self, root: Path, disk: Disk, chance: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self.root, self.disk, self.chance, self.loop = root, disk, chance, loop
        self.executor = ThreadPoolExecutor(3)
        self.life = 0
        self.model = bytearray(DEVICE_BYTES)
        self.base = bytes(DEVICE_BYTES)
        self.history: list[Applied] = []
        self.flushed_lsn = 0
        self.scan_lsn = self.scan_incarnation = self.incarnation = 0
        self.stamps = itertools.count(1)
        self.folder = root / "life-0"
        self.folder.mkdir()
        (self.folder / "disk").write_bytes(bytes(DEVICE_BYTES))
        self.open()

    def open(self) -> None:
        """Begin a life from what lies in the folder, as a group does."""
        found = list(spool_module.scan(self.folder / "spool", self.scan_lsn, TAG, self.scan_incarnation))
        while found and found[-1][0].flags & Flags.RUN_CONTINUES:
            found.pop()
        self.opened_lsn = found[-1][0].next_lsn if found else self.scan_lsn
        self.incarnation += 1
        self.spool = Spool(
            self.folder / "spool",
            Identity(TAG, 1, self.incarnation),
            self.opened_lsn,
            self.scan_lsn,
            self.loop.call_soon_threadsafe,
            lambda: next(self.stamps),
            lambda error: None,
        )
        self.volume = Volume(self.folder / "disk", ORDINAL, self.spool, self.loop, self.executor, 1 << 30)
        for header, _ in found:
            self.volume.recover(header)
        self.recovered_lsn = self.spool.head_lsn
        self.volume.resize(DEVICE_BYTES)
        self.settled_lsn = 0

    def submit(self) -> None:
        """A batch of random changes, and sometimes a mark."""
        changes = []
        for _ in range(self.chance.randint(1, 6)):
            kind = self.chance.choice([ChangeKind.WRITE] * 4 + [ChangeKind.ZERO, ChangeKind.TRIM])
            sectors = self.chance.choice([1, 3, 8, 8, 8, 24, 100, 300])
            offset = self.chance.randrange(DEVICE_BYTES // SECTOR) * SECTOR
            if sectors == 8:
                offset &= ~4095
            length = min(sectors * SECTOR, DEVICE_BYTES - offset)
            data = bytes([self.chance.randrange(1, 256)]) * length if kind == ChangeKind.WRITE else None
            changes.append(Change(kind, offset, length, None if data is None else memoryview(data)))
        self.send(changes)
        if self.chance.random() < 0.3:
            self.spool.append([Entry(Kind.MARK, 0, 0, 0, 0, b"{}")])

    def send(self, changes: list[Change]) -> None:
        """A batch, acknowledged when this returns."""
        lsns_from = self.spool.head_lsn
        self.volume.submit(changes)
        records = [
            record for record in records_of(self.spool, lsns_from) if record.kind in (Kind.WRITE, Kind.ZERO, Kind.TRIM)
        ]
        position = 0
        for change in changes:
            data = bytes(change.length) if change.data is None else bytes(change.data)
            self.model[change.offset : change.offset + change.length] = data
            done = 0
            while done < change.length:
                record = records[position]
                self.history.append(Applied(record.lsn, record.offset, data[done : done + record.length]))
                done, position = done + record.length, position + 1

    def flush(self) -> None:
        """Ask for durability; the answer comes later."""
        lsn, life = self.spool.head_lsn, self.life

        def answered(error: OSError | None) -> None:
            assert error is None
            if life != self.life:
                return  # the asker died before
            self.flushed_lsn = max(self.flushed_lsn, lsn)

        self.volume.flush(answered)

    async def durable(self) -> None:
        """Wait until all is durable."""
        done = self.loop.create_future()
        self.volume.flush(lambda error: done.set_result(error))
        lsn = self.spool.head_lsn
        assert await done is None
        self.flushed_lsn = max(self.flushed_lsn, lsn)

    def check_reads(self) -> None:
        """Random ranges read as the newest acknowledged bytes."""
        for _ in range(3):
            sectors = self.chance.choice([1, 8, 8, 64])
            offset = self.chance.randrange(DEVICE_BYTES // SECTOR - sectors + 1) * SECTOR
            offset = offset & ~4095 if sectors == 8 else offset
            expected = bytes(self.model[offset : offset + sectors * SECTOR])
            now = self.volume.read_now(offset, sectors * SECTOR)
            assert now is None or bytes(now) == expected
            assert self.volume.read_blocking(offset, sectors * SECTOR) == expected

    async def remember(self) -> None:
        """Sync the file and note, durably, how far it is; recycle the spool."""
        await self.volume.sync()
        self.scan_lsn = max(self.scan_lsn, min(self.spool.durable_lsn, self.volume.synced_lsn))
        if self.scan_lsn >= self.opened_lsn:
            self.scan_incarnation = self.incarnation
        keep = [change for change in self.history if change.lsn >= self.scan_lsn]
        base = bytearray(self.base)
        for change in self.history[: len(self.history) - len(keep)]:
            base[change.offset : change.offset + len(change.data)] = change.data
        self.base, self.history = bytes(base), keep
        self.spool.release(self.scan_lsn)

    def prefix(self, lsn: int) -> bytes:
        """The device as the acknowledged changes before `lsn` made it."""
        device = bytearray(self.base)
        for change in self.history:
            if change.lsn < lsn:
                device[change.offset : change.offset + len(change.data)] = change.data
        return bytes(device)

    def crash(self, *, power: bool) -> None:
        """End this life, and begin the next with what is left of its files."""
        self.life += 1
        folder = self.root / f"life-{self.life}"
        (folder / "spool").mkdir(parents=True)
        for path in [self.folder / "disk", *(self.folder / "spool").iterdir()]:
            copy = folder / path.relative_to(self.folder)
            if power:
                copy.write_bytes(self.disk.after_power_loss(path, self.chance))
            else:
                shutil.copyfile(path, copy)
            self.disk.synced[copy.stat().st_ino] = copy.read_bytes()
        self.end()
        self.folder = folder
        self.open()
        if power:
            assert self.recovered_lsn >= self.flushed_lsn, "a flushed record is gone"
            self.history = [change for change in self.history if change.lsn < self.recovered_lsn]
            self.model = bytearray(self.prefix(self.recovered_lsn))
        same = self.volume.read_blocking(0, DEVICE_BYTES) == bytes(self.model)
        assert same, "the device is not what the journal tells"

    def end(self) -> None:
        """Let go of this life's threads and files."""
        self.executor.shutdown(wait=True)
        self.executor = ThreadPoolExecutor(3)
        self.spool.stop()
        self.volume.close()
        shutil.rmtree(self.folder)


async def campaign(root: Path, disk: Disk, seed: int, steps: int) -> None:
    """Random work with random ends."""
    chance = random.Random(seed)
    rig = Rig(root, disk, chance, asyncio.get_running_loop())
    applying: set[asyncio.Task[None]] = set()
    for _ in range(steps):
        step = chance.choices(
            [
                "submit",
                "flush",
                "durable",
                "read",
                "apply",
                "apply all",
                "apply aside",
                "remember",
                "kill",
                "power",
                "yield",
            ],
            [28, 6, 4, 10, 8, 12, 10, 6, 2, 4, 8],
        )[0]
        if step == "submit":
            rig.submit()
        elif step == "flush":
            rig.flush()
        elif step == "durable":
            await rig.durable()
        elif step == "read":
            rig.check_reads()
        elif step == "apply":
            await rig.volume._apply_batch()
        elif step == "apply all":
            for _ in range(len(rig.volume._pending)):
                await rig.volume._apply_batch()
        elif step == "apply aside":
            task = asyncio.create_task(rig.volume._apply_batch())
            applying.add(task)
            task.add_done_callback(applying.discard)
            await asyncio.sleep(0)
        elif step == "remember":
            await rig.remember()
        elif step in ("kill", "power"):
            rig.crash(power=step == "power")
            await asyncio.gather(*applying, return_exceptions=True)
        else:
            await asyncio.sleep(0)
        assert rig.volume.error is None
    rig.crash(power=False)
    await asyncio.gather(*applying, return_exceptions=True)
    rig.end()
    rig.executor.shutdown()


def _campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int) -> None:
    try:
        with monkeypatch.context() as patches:
            asyncio.run(campaign(tmp_path, Disk(patches), seed, steps))
    except Exception as error:
        raise AssertionError(f"DPAC_TEST_SEED={seed}: {error!r}") from error


def test_no_acknowledged_change_is_lost_and_no_unjournalled_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Random changes, flushes, reads, batches, kills and losses of power against a byte array."""
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        _campaign(folder, monkeypatch, seed + number, 220)


@pytest.mark.soak
def test_no_acknowledged_change_is_lost_in_a_long_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The same, DPAC_SOAK_ROUNDS times."""
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        _campaign(folder, monkeypatch, seed + number, 400)
        shutil.rmtree(folder)


class Impatient:
    """A spool that says everything is durable to whoever does not wait for it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    durable_lsn = 1 << 62

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)


def make_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes that write behind before their records are durable."""
    make = volume_module.Volume.__init__

    def impatient(self: Volume, path: Path, ordinal: int, spool: Spool, *rest: Any) -> None:
        make(self, path, ordinal, Impatient(spool), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(volume_module.Volume, "__init__", impatient)


def test_the_campaign_notices_a_block_that_reaches_the_file_before_its_record_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a write-behind that does not look at the durable LSN the campaign fails: it can see that law broken."""
    make_impatient(monkeypatch)
    seen = []
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            _campaign(folder, monkeypatch, number, 220)
        except AssertionError as error:
            seen.append(str(error))
    assert any("not what the journal tells" in error for error in seen), seen
