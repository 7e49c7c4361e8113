"""Bitmap tracking and delta resync: a target that was away for long gets what changed, all of it, and little else."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from dpac_api.models import DataState
from dpac_api.quantities import Size
from dpac_engine.control import group as group_module
from dpac_engine.control import marking
from dpac_engine.control import seeding as seeding_module
from dpac_engine.control.group import Group
from dpac_engine.core.bitmap import GRANULARITY_BYTES_MIN, DirtyBitmap
from dpac_engine.core.segment import SegmentKind, decode_segment_header
from tests.unit.test_group import Site, _fast, condition_types, protected, run, shipped, until, volume_of, write

__all__ = ["_fast"]  # its fixture: seconds become hundredths
DISK_BYTES = 16 * 2**20
MIB = 2**20


class Disk:
    """What an application wrote, and a group whose spool is soon full."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.chance, self.content = site, random.Random(seed), bytearray(DISK_BYTES)
        self.marks: dict[str, bytes] = {}

    async def start(self) -> Group:
        """The group, at work."""
        spec: dict[str, Any] = {"members": {"disk": {"kind": "volume", "path": str(self.site.disk), "size": "16MiB"}}}
        group = self.site.group(spool_max=Size("8MiB"), spec=spec)
        await group.start()
        return group

    async def write(self, group: Group, offset: int, data: bytes) -> None:
        """A write that waits while clients are held back."""
        await until(lambda: not volume_of(group).congested)
        write(group, offset, data)
        self.content[offset : offset + len(data)] = data
        volume_of(group).flush(lambda error: None)
        await asyncio.sleep(0.001)

    async def fill(self, group: Group) -> None:
        """Every byte of it, incompressible, at the target."""
        for offset in range(0, DISK_BYTES, 256 * 1024):
            await self.write(group, offset, self.chance.randbytes(256 * 1024))
        async with asyncio.timeout(120):
            while not any(mark.body.tags for mark in self.site.reader().marks()):
                # The leg may have fallen out already, with what was marked then.
                await protected(group)
                await shipped(group, tag="full")
        leg = group.legs["copies"]
        await until(lambda: group.status().protected and group.spool.head_lsn - leg.memory.cursor < MIB)

    async def fall_out(self, group: Group, places: list[int]) -> None:
        """The target goes, and the places are written again and again until the spool cannot wait for it."""
        self.site.targets["copies"].away = True
        while not group.legs["copies"].memory.lost:
            for place in places:
                await self.write(group, place, self.chance.randbytes(32 * 1024))
        await until(lambda: group.spool.released_lsn > group.legs["copies"].memory.cursor)

    def fill_bytes(self, since: set[str]) -> int:
        """Stored bytes of seed segments that came since."""
        store = self.site.targets["copies"].objects
        return sum(
            len(data)
            for key, data in store.items()
            if key.startswith("s/") and key not in since and decode_segment_header(data).kind == SegmentKind.FILL
        )

    async def settle(self, group: Group) -> None:
        """The target holds exactly what was written."""
        self.site.targets["copies"].away = False
        await protected(group)
        await shipped(group, tag="settled")
        # Not compared in the assertion: pytest would look for minutes for what differs.
        same = self.site.disk_at(at="tag:settled") == bytes(self.content)
        assert same, "the target lacks something"


def test_after_a_long_absence_only_what_changed_is_sent(tmp_path: Path, seed: int) -> None:
    """At most a tenth more than the dirty blocks; states and conditions tell; the checkpoint from before is still whole."""

    async def story(site: Site) -> None:
        disk = Disk(site, seed)
        group = await disk.start()
        await disk.fill(group)
        before, known = bytes(disk.content), set(site.targets["copies"].objects)
        places = [disk.chance.randrange(DISK_BYTES // 65536) * 65536 for _ in range(10)]
        await disk.fall_out(group, places)
        await until(lambda: group.status().legs["copies"].data_state == DataState.BITMAP_TRACKING)
        assert "BitmapTracking" in condition_types(group)
        seen = set()
        site.targets["copies"].away = False
        async with asyncio.timeout(120):
            healthy = (DataState.CONTINUOUS, DataState.BACKLOG)
            while (state := group.legs["copies"].data_state) not in healthy or not group.status().protected:
                seen.add(state)
                await asyncio.sleep(0)
        assert DataState.DELTA_RESYNC in seen
        assert DataState.FULL_RESYNC not in seen
        await disk.settle(group)
        dirty = len(set(places)) * GRANULARITY_BYTES_MIN
        assert 0 < disk.fill_bytes(known) <= 1.1 * dirty
        assert site.disk_at(at="tag:full") == before
        assert not (site.folder / "dirty" / "copies").exists()
        assert condition_types(group).isdisjoint({"BitmapTracking", "DeltaResync", "FullResync"})

    run(tmp_path, story)


def test_bitmaps_outlive_a_kill(tmp_path: Path, seed: int) -> None:
    """What changed before it, whose records are recycled, and after it, is sent: still only what changed."""

    async def story(site: Site) -> None:
        disk = Disk(site, seed)
        group = await disk.start()
        await disk.fill(group)
        known = set(site.targets["copies"].objects)
        await disk.fall_out(group, [0, 5 * MIB])
        for number in range(300):
            await disk.write(group, 7 * MIB + number % 2 * 65536, disk.chance.randbytes(32 * 1024))
        await disk.write(group, 9 * MIB, b"last" * 128)
        await site.kill(group)
        group = await disk.start()
        await disk.write(group, 11 * MIB, b"then" * 128)
        await disk.settle(group)
        assert 0 < disk.fill_bytes(known) <= 1.1 * 6 * GRANULARITY_BYTES_MIN

    run(tmp_path, story)


@pytest.mark.parametrize("near", [True, False], ids=["content", "hashes"])
def test_a_damaged_bitmap_is_not_believed(
    tmp_path: Path, seed: int, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole volume is compared with the target's bytes, or with hashes of them: nothing is missing after."""
    often_seconds = marking.MARK_SECONDS

    async def story(site: Site) -> None:
        # A hash that covers a mark tells nothing of the volume, and a slow host puts many between these few writes.
        monkeypatch.setattr(marking, "MARK_SECONDS", 3600.0)
        disk = Disk(site, seed)
        group = await disk.start()
        await disk.fill(group)
        known = set(site.targets["copies"].objects)
        await disk.fall_out(group, [0])
        await site.kill(group)
        (bitmap,) = (site.folder / "dirty" / "copies").glob("*.bitmap")
        damaged = bytearray(bitmap.read_bytes())
        damaged[-12] ^= 1
        bitmap.write_bytes(damaged)
        monkeypatch.setattr(marking, "MARK_SECONDS", often_seconds)
        group = await disk.start()
        group.legs["copies"].near = near
        await disk.settle(group)
        # By hashes a unit of 64 KiB that shares its log with a mark counts as different: how many do is up to how busy the machine was.
        assert 0 < disk.fill_bytes(known) < (MIB if near else DISK_BYTES // 2)

    run(tmp_path, story)


async def _turbulence(site: Site, seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """A target that comes and goes, in the middle of resyncs too, and kills; returns how often the leg was lost."""
    monkeypatch.setattr(seeding_module, "PIECE_BYTES", 128 * 1024)  # many steps, so that much can come between
    monkeypatch.setattr(seeding_module, "READ_BYTES", 64 * 1024)
    disk, chance, lost = Disk(site, seed), random.Random(seed), 0
    group = await disk.start()
    await disk.fill(group)
    for _ in range(6):
        places = [chance.randrange(DISK_BYTES // 65536) * 65536 for _ in range(chance.randrange(1, 60))]
        await disk.fall_out(group, places)
        lost += 1
        if chance.random() < 0.5:
            await site.kill(group)
            group = await disk.start()
        site.targets["copies"].away = False
        for _ in range(chance.randrange(40)):
            offset, sectors = chance.randrange(DISK_BYTES // 512 - 16) * 512, chance.randrange(1, 17)
            await disk.write(group, offset, chance.randbytes(sectors * 512))
        if chance.random() < 0.3:
            await site.kill(group)
            group = await disk.start()
    await disk.settle(group)
    reader = site.reader()
    listed = [mark.lsn for mark in reader.marks()]
    assert listed == sorted(listed, reverse=True)
    await site.kill(group)
    return lost


def test_a_target_that_comes_and_goes_misses_nothing(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost in the middle of a resync, killed in it, lost again: in the end it holds every byte."""

    async def story(site: Site) -> None:
        assert await _turbulence(site, seed, monkeypatch) == 6

    run(tmp_path, story)


def test_so_it_does_without_bitmaps(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared again and again while it changes, with blocks that come back to what they were."""

    async def no_bitmap(*_: Any) -> bool:
        return False

    write_any = Disk.write

    async def write_few_values(self: Disk, group: Group, offset: int, data: bytes) -> None:
        await write_any(self, group, offset, bytes([data[0] % 3]) * len(data))

    monkeypatch.setattr(group_module.Tracking, "begin", no_bitmap)
    monkeypatch.setattr(Disk, "write", write_few_values)

    async def story(site: Site) -> None:
        assert await _turbulence(site, seed, monkeypatch) == 6

    run(tmp_path, story)


@pytest.mark.parametrize("mutation", ["cleared too early", "not stored before the spool goes"])
def test_the_turbulence_finds_bits_that_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    """With a rule of the bitmaps taken out, some seed ends with a target that lacks something."""
    if mutation == "cleared too early":
        begin = group_module.Tracking.begin

        async def forgetful(self: Any, leg: str, *rest: Any) -> bool:
            self._bitmaps.pop(leg, None)
            return await begin(self, leg, *rest)

        monkeypatch.setattr(group_module.Tracking, "begin", forgetful)
    else:
        monkeypatch.setattr(group_module.Tracking, "_store", lambda self, bitmaps: _store_empty(self, bitmaps))
    missed = 0
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()

        async def story(site: Site, number: int = number) -> None:
            await _turbulence(site, number, monkeypatch)

        try:
            run(folder, story)
        except AssertionError:
            missed += 1
            break
    assert missed


def _store_empty(tracking: Any, bitmaps: Any) -> None:
    for (leg, ordinal), bitmap in bitmaps.items():
        path = tracking._path(leg, ordinal)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(DirtyBitmap(bitmap.size_bytes).encode())
