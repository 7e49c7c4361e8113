"""Volumes: the order between journal and file, seeds beside writers, and what fails."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Conflict, Invalid
from dpac_engine.core.difference import RangeChange
from dpac_engine.core.extents import Piece
from dpac_engine.io import spool as spool_module
from dpac_engine.io.members.overlay import Overlay
from dpac_engine.io.members.tally import Tally
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.members.volume_rewind import rewind_volume
from dpac_engine.io.nbd.export import Change, ChangeKind, Stopped
from dpac_engine.io.spool import Identity, Spool, scan

DEVICE_BYTES = 2**20
DEADLINE_SECONDS = 20


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spool files of 256 KiB."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", 2**18)


class Bench:
    """A volume with its spool."""

    def __init__(self, root: Path) -> None:
        loop = asyncio.get_running_loop()
        (root / "disk").write_bytes(bytes(DEVICE_BYTES))
        self.path = root / "disk"
        self.executor = ThreadPoolExecutor(4)
        stamps = iter(range(1, 1 << 60))
        self.spool = Spool(
            root / "spool", Identity(1, 1, 1), 0, 0, loop.call_soon_threadsafe, lambda: next(stamps), lambda error: None
        )
        self.volume = Volume(self.path, 1, self.spool, loop, self.executor, 1 << 30)
        self.volume.resize(DEVICE_BYTES)

    def write(self, offset: int, data: bytes) -> None:
        """A client's write."""
        self.volume.submit([Change(ChangeKind.WRITE, offset, len(data), memoryview(data))])

    async def flush(self) -> OSError | None:
        """A client's FLUSH."""
        answer: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        self.volume.flush(answer.set_result)
        return await answer


def run(tmp_path: Path, story: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    """Run a story of one volume."""

    async def told() -> None:
        bench = Bench(tmp_path)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await story(bench)
        finally:
            bench.volume.close()
            bench.spool.stop()
            bench.executor.shutdown()

    asyncio.run(told())


def test_a_block_reaches_the_file_only_after_its_record_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the spool's sync hangs nothing is applied; once it has returned, it is."""
    gate, real = threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (gate.wait(DEADLINE_SECONDS), real(descriptor))[1])

    async def story(bench: Bench) -> None:
        bench.write(4096, b"x" * 4096)
        for _ in range(3):
            await bench.volume._apply_batch()
        assert not any(bench.path.read_bytes())
        gate.set()
        assert await bench.flush() is None
        await bench.volume._apply_batch()
        assert bench.path.read_bytes()[4096:8192] == b"x" * 4096

    run(tmp_path, story)
    gate.set()


def test_write_behind_brings_everything_to_the_file(tmp_path: Path) -> None:
    """Without being asked, once clients pause; the overlay is empty then."""

    async def story(bench: Bench) -> None:
        task = asyncio.create_task(bench.volume.write_behind())
        for at in range(64):
            bench.write(at * 4096, bytes([at + 1]) * 4096)
        bench.volume.hurry()
        while bench.volume.pending_bytes:  # noqa: ASYNC110 - the volume tells nobody
            await asyncio.sleep(0)
        assert bench.path.read_bytes()[: 64 * 4096] == b"".join(bytes([at + 1]) * 4096 for at in range(64))
        assert not bench.volume._overlay
        task.cancel()

    run(tmp_path, story)


def test_a_batch_under_way_outlives_who_waited_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping waits for it: no thread writes to a closed file, or over something newer."""
    gate, began, real = threading.Event(), threading.Event(), Volume._apply_blocking
    order: list[str] = []

    def slow(self: Volume, batch: Any) -> None:
        began.set()
        gate.wait(DEADLINE_SECONDS)
        real(self, batch)
        order.append("applied")

    monkeypatch.setattr(Volume, "_apply_blocking", slow)

    async def story(bench: Bench) -> None:
        bench.write(0, b"a" * 4096)
        await bench.flush()
        task = asyncio.create_task(bench.volume._apply_batch())
        await asyncio.to_thread(began.wait, DEADLINE_SECONDS)
        task.cancel()
        stopping = asyncio.create_task(bench.volume.stop())
        stopping.add_done_callback(lambda _: order.append("stopped"))
        await asyncio.sleep(0)
        gate.set()
        assert await stopping is not None
        assert order == ["applied", "stopped"]
        assert bench.path.read_bytes()[:4096] == b"a" * 4096

    run(tmp_path, story)


def test_a_seed_reads_exactly_the_state_before_its_lsn(tmp_path: Path, seed: int) -> None:
    """Beside clients that write all the time, every piece is what the records before its LSN made of the range."""
    chance = random.Random(seed)

    async def story(bench: Bench) -> None:
        history: list[tuple[int, int, bytes]] = []
        finished = asyncio.Event()

        async def clients() -> None:
            while not finished.is_set():
                offset = chance.randrange(DEVICE_BYTES // 512 - 32) * 512
                data = bytes([chance.randrange(256)]) * 512 * chance.randint(1, 32)
                lsn = bench.spool.head_lsn
                bench.write(offset, data)
                history.append((lsn, offset, data))
                if chance.random() < 0.1:
                    await bench.flush()
                    await bench.volume._apply_batch()
                await asyncio.sleep(0)

        task = asyncio.create_task(clients())
        for _ in range(60):
            offset = chance.randrange(DEVICE_BYTES // 512 - 256) * 512
            lsn, data = await bench.volume.read_for_seed(offset, 256 * 512)
            model = bytearray(DEVICE_BYTES)
            for at, start, written in history:
                if at < lsn:
                    model[start : start + len(written)] = written
            assert data == model[offset : offset + 256 * 512], f"seed {seed}"
        finished.set()
        await task

    run(tmp_path, story)


def test_a_broken_file_is_an_error_to_the_application_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the volume itself fails, clients see it, and what it lacks stays pending."""

    async def story(bench: Bench) -> None:
        bench.write(0, b"a" * 4096)
        await bench.flush()
        monkeypatch.setattr(Volume, "_apply_blocking", _broken)
        await bench.volume._apply_batch()
        with pytest.raises(OSError, match="gone"):
            bench.write(0, b"b" * 512)
        with pytest.raises(OSError, match="gone"):
            bench.volume.read_now(0, 512)
        assert await bench.flush() is not None
        assert bench.volume.low_lsn < bench.spool.head_lsn
        assert await bench.volume.stop() is None

    run(tmp_path, story)


def _broken(self: Volume, batch: object) -> None:
    raise OSError(errno.EIO, "the disk is gone")


def test_a_stopped_volume_takes_nothing_any_more(tmp_path: Path) -> None:
    """A client that is still there is told that the export is detached, and nothing of it is journalled."""

    async def story(bench: Bench) -> None:
        await bench.volume.stop()
        head = bench.spool.head_lsn
        with pytest.raises(Stopped):
            bench.write(0, bytes(512))
        assert isinstance(await bench.flush(), Stopped)
        assert bench.spool.head_lsn == head

    run(tmp_path, story)


def test_a_volume_in_use_is_refused_and_shrinking_too(tmp_path: Path) -> None:
    """Two processes never have one file; sizes only grow."""

    async def story(bench: Bench) -> None:
        with pytest.raises(Conflict, match="in use"):
            Volume(bench.path, 2, bench.spool, asyncio.get_running_loop(), bench.executor, 1)
        with pytest.raises(Invalid, match="only grow"):
            bench.volume.resize(512)
        bench.volume.resize(2 * DEVICE_BYTES)
        assert bench.volume.read_blocking(2 * DEVICE_BYTES - 512, 512) == bytes(512)

    run(tmp_path, story)


def test_a_recovered_change_is_not_taken_for_a_synced_one(tmp_path: Path) -> None:
    """Until it was applied and synced again, the spool from its record on is needed."""

    async def story(bench: Bench) -> None:
        bench.write(0, b"a" * 4096)
        await bench.flush()
        records = list(scan(bench.spool._folder, 0, 1, 1))
        bench.volume.close()
        bench.volume = Volume(bench.path, 1, bench.spool, asyncio.get_running_loop(), bench.executor, 1 << 30)
        for header, _ in records:
            bench.volume.recover(header)
        assert bench.volume.synced_lsn == records[-1][0].lsn
        await bench.volume._apply_batch()
        await bench.volume.sync()
        assert bench.volume.synced_lsn == bench.spool.head_lsn

    run(tmp_path, story)


def test_a_whole_blocks_write_that_was_overwritten_in_part_leaves_the_overlay() -> None:
    """Applied, the sectors that still named it are the file's again."""
    overlay = Overlay()
    overlay.write(4096, 4096, 64)
    overlay.write(4096 + 512, 512, 8192)
    overlay.applied_write(4096, 4096, 64)
    assert [part.position for part in overlay.slices(4096, 4096)] == [0, 8192, 0, 0, 0, 0, 0, 0]


def test_a_reader_never_sees_a_block_with_neither_its_entry_nor_the_zeroes_over_it() -> None:
    """While a large range is zeroed, each look at a block finds the write before it or the zeroes."""
    overlay, seen = Overlay(), []

    class Watched(dict[int, Any]):
        def __delitem__(self, block: int) -> None:
            super().__delitem__(block)
            seen.append(overlay.block_position(block))

        def pop(self, block: int, *default: Any) -> Any:
            found = super().pop(block, *default)
            seen.append(overlay.block_position(block))
            return found

    overlay._blocks = Watched()
    for block in range(3):
        overlay.write(block * 4096, 4096, 64 + block * 4096)
    overlay.zero(0, 4096 * 5000, 99_968)
    assert seen
    assert set(seen) == {-99_968}


# ------------------------------------------------------------------ going back in place


class Then:
    """An image of a few runs (as `core.image.VolumeImage`)."""

    def __init__(self, content: dict[int, bytes], size_bytes: int) -> None:
        self.content, self.size_bytes, self.map = content, size_bytes, self

    def lookup(self, offset: int, length: int) -> list[Piece]:
        return [
            Piece(at, len(data), 0, 0)
            for at, data in self.content.items()
            if at < offset + length and at + len(data) > offset
        ]

    def read(self, offset: int, length: int) -> bytes:
        whole = bytearray(DEVICE_BYTES)
        for at, data in self.content.items():
            whole[at : at + len(data)] = data
        return bytes(whole[offset : offset + length])


def test_a_volume_goes_back_by_writing_what_differs_and_no_more(tmp_path: Path) -> None:
    """Through the journal; zeroes as holes; what is the same, or outside of what may differ, is left alone."""

    async def story(bench: Bench) -> None:
        bench.write(0, b"a" * 8192)
        bench.write(65536, b"b" * 8192)
        bench.write(131072, b"kept" * 1024)
        then = Then({0: b"a" * 4096 + b"c" * 4096}, 100_352)
        before = bench.spool.head_lsn
        tally = Tally()
        await rewind_volume(bench.volume, then, [RangeChange(0, 16384), RangeChange(65536, 65536)], tally)  # type: ignore[arg-type]
        assert (tally.bytes_written, tally.bytes_zeroed) == (4096, 8192)
        assert (tally.done_bytes, tally.total_bytes) == (81920, 81920)
        records = [header for header, _ in scan(tmp_path / "spool", before, 1, 0)]
        assert [(header.offset, header.length) for header in records] == [(4096, 4096), (65536, 8192)]
        now = bench.volume.read_blocking(0, DEVICE_BYTES)
        assert now[:8192] == b"a" * 4096 + b"c" * 4096
        assert not any(now[8192:131072])
        assert now[131072:135168] == b"kept" * 1024

    run(tmp_path, story)


def test_going_back_waits_for_room_and_ends_with_its_volume(tmp_path: Path) -> None:
    """Like any client it is held back while the journal is full; a volume that is detached meanwhile is no reason to hang."""

    async def story(bench: Bench) -> None:
        bench.volume.backpressure = True
        then, tally = Then({0: b"x" * 4096}, DEVICE_BYTES), Tally()
        going = asyncio.create_task(rewind_volume(bench.volume, then, [RangeChange(0, 4096)], tally))  # type: ignore[arg-type]
        while not bench.volume._relief:  # noqa: ASYNC110 - the volume tells nobody
            await asyncio.sleep(0)
        assert tally.bytes_written == 0
        await bench.volume.stop()
        with pytest.raises(Stopped):
            await going

    run(tmp_path, story)


def test_going_back_needs_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fill holes is counted before the first write; what lies there already needs none."""
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([512, 512, 9, 8, 8, *real(path)[5:]]))

    async def story(bench: Bench) -> None:
        bench.volume.submit([Change(ChangeKind.TRIM, 65536, 65536, None)])
        head_lsn = bench.spool.head_lsn
        then = Then({65536: b"x" * 65536}, DEVICE_BYTES)
        with pytest.raises(Invalid, match="Nothing was changed"):
            await rewind_volume(bench.volume, then, [RangeChange(65536, 65536)], Tally())  # type: ignore[arg-type]
        assert bench.spool.head_lsn == head_lsn
        over = Then({0: b"x" * 65536}, DEVICE_BYTES)
        await rewind_volume(bench.volume, over, [RangeChange(0, 65536)], Tally())  # type: ignore[arg-type]

    run(tmp_path, story)


def test_a_write_larger_than_a_file_of_the_spool_is_cut_into_records_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the overlay at once, and in the file afterwards."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", 64 * 1024)
    data = random.Random(7).randbytes(300 * 1024)

    async def story(bench: Bench) -> None:
        bench.write(0, data)
        assert bench.volume.read_blocking(0, len(data)) == data
        assert await bench.flush() is None
        await bench.volume.stop()
        assert bench.path.read_bytes()[: len(data)] == data

    run(tmp_path, story)


def test_a_seed_reads_any_range_as_the_records_left_it(tmp_path: Path, seed: int) -> None:
    """Sectors are what is kept apart on the way to the file: a range within one is cut out of it."""
    chance = random.Random(seed)

    async def story(bench: Bench) -> None:
        content = bytearray(DEVICE_BYTES)
        for _ in range(50):
            at = chance.randrange(DEVICE_BYTES // 512 - 8) * 512
            data = chance.randbytes(chance.randrange(1, 8) * 512)
            bench.write(at, data)
            content[at : at + len(data)] = data
        for _ in range(200):
            offset = chance.randrange(DEVICE_BYTES - 1)
            length = chance.randrange(1, min(3000, DEVICE_BYTES - offset) + 1)
            lsn, found = await bench.volume.read_for_seed(offset, length)
            assert found == content[offset : offset + length], (offset, length)
            assert lsn == bench.spool.head_lsn

    run(tmp_path, story)
