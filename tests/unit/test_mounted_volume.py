"""A mounted checkpoint against a byte array: its overlay takes the writes, the image stays what it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dpac_api.errors import Corruption
from dpac_engine.core.extents import fold
from dpac_engine.io import hydration as hydration_module
from dpac_engine.io.hydration import Hydration
from dpac_engine.io.mounted_volume import MountedVolume, Zeroes, hydrated_size
from dpac_engine.io.nbd.export import Change, ChangeKind

SECTOR = 512
DEVICE_BYTES = 40 * 4096 + 3 * SECTOR


class StoredImage:
    """An image of known bytes; `damaged` makes reading fail."""

    def __init__(self, content: bytes) -> None:
        self.content, self.size_bytes, self.damaged = content, len(content), False
        begin, end = np.array([8192]), np.array([len(content) - 4096])
        self.map = fold(begin, end, np.array([0]), np.array([0]), len(content))

    def read(self, offset: int, length: int) -> bytes:
        if self.damaged:
            raise Corruption("Block 0 fails its authentication.")
        return self.content[offset : offset + length]


def content() -> bytes:
    """Zeroes at both ends, as the image's map says, and other bytes between."""
    middle = random.Random(1).randbytes(DEVICE_BYTES - 8192 - 4096)
    return bytes(8192) + middle + bytes(4096)


def mounted(tmp_path: Path, story: Callable[[MountedVolume, StoredImage], None]) -> None:
    """Tell a story of a mounted volume."""

    async def told() -> None:
        image = StoredImage(content())
        with ThreadPoolExecutor(1) as executor:
            volume = MountedVolume(image, tmp_path, asyncio.get_running_loop(), executor)  # type: ignore[arg-type]
            try:
                story(volume, image)
            finally:
                volume.close()

    asyncio.run(told())


def test_reads_are_the_newest_bytes(tmp_path: Path, seed: int) -> None:
    """Random writes, zeroes and trims of any sectors, then the same again after the worker's restart."""
    chance, model = random.Random(seed), bytearray(content())

    def story(volume: MountedVolume, image: StoredImage) -> None:
        for _ in range(60):
            kind = chance.choice([ChangeKind.WRITE, ChangeKind.WRITE, ChangeKind.ZERO, ChangeKind.TRIM])
            at = chance.randrange(DEVICE_BYTES // SECTOR)
            count = min(chance.choice([1, 3, 8, 30, 300]), DEVICE_BYTES // SECTOR - at)
            data = chance.randbytes(count * SECTOR) if kind == ChangeKind.WRITE else None
            volume.submit([Change(kind, at * SECTOR, count * SECTOR, None if data is None else memoryview(data))])
            model[at * SECTOR : (at + count) * SECTOR] = data or bytes(count * SECTOR)
            at = chance.randrange(DEVICE_BYTES // SECTOR)
            count = min(chance.choice([1, 8, 40]), DEVICE_BYTES // SECTOR - at)
            expected = bytes(model[at * SECTOR : (at + count) * SECTOR])
            assert volume.read_blocking(at * SECTOR, count * SECTOR) == expected, f"seed {seed}"
            assert volume.read_now(at * SECTOR, count * SECTOR) in (None, expected), f"seed {seed}"
        assert image.content == content()

    for _ in range(3):
        mounted(tmp_path, story)


def test_holes_read_as_zeroes_and_nothing_else_is_called_one(tmp_path: Path, seed: int) -> None:
    """Whatever block status calls a hole reads as zeroes; the answer covers the range."""
    chance = random.Random(seed)

    def story(volume: MountedVolume, image: StoredImage) -> None:
        for _ in range(30):
            at = chance.randrange(DEVICE_BYTES // SECTOR - 8)
            volume.submit([Change(ChangeKind.WRITE, at * SECTOR, 8 * SECTOR, memoryview(b"w" * 8 * SECTOR))])
            at, offset = chance.randrange(DEVICE_BYTES // SECTOR) * SECTOR, 0
            extents = volume.extents_blocking(at, DEVICE_BYTES - at)
            for extent in extents:
                if extent.hole:
                    assert not any(volume.read_blocking(at + offset, extent.length)), f"seed {seed}"
                offset += extent.length
            assert offset == DEVICE_BYTES - at, f"seed {seed}"

    mounted(tmp_path, story)


def test_a_trim_of_the_whole_device_takes_no_memory_and_no_disk(tmp_path: Path) -> None:
    """A discard of four gigabytes, as mkfs sends it, is a hole in the overlay."""

    async def story() -> None:
        image = StoredImage(bytes(16384))
        image.size_bytes = 4 * 2**30
        with ThreadPoolExecutor(1) as executor:
            volume = MountedVolume(image, tmp_path, asyncio.get_running_loop(), executor)  # type: ignore[arg-type]
            volume.submit([Change(ChangeKind.TRIM, 4096, 4 * 2**30 - 8192, None)])
            assert volume.read_now(2**30, 4096) == bytes(4096)
            assert volume.read_now(0, 4096) is None
            assert (tmp_path / "data").stat().st_blocks * 512 < 2**20
            volume.close()

    asyncio.run(story())


def test_damaged_stored_bytes_are_an_io_error_never_data(tmp_path: Path) -> None:
    """A read, and a write that needs the rest of a block, fail; a whole block is still taken."""

    def story(volume: MountedVolume, image: StoredImage) -> None:
        image.damaged = True
        with pytest.raises(OSError, match="cannot be read"):
            volume.read_blocking(8192, 512)
        with pytest.raises(OSError, match="cannot be read"):
            volume.submit([Change(ChangeKind.WRITE, 8192, 512, memoryview(bytes(512)))])
        volume.submit([Change(ChangeKind.WRITE, 8192, 4096, memoryview(b"n" * 4096))])
        assert volume.read_blocking(8192, 4096) == b"n" * 4096

    mounted(tmp_path, story)


# ------------------------------------------------------------------ after a power cut


def test_what_was_not_synced_is_the_image_again_after_a_power_cut(tmp_path: Path) -> None:
    """Blocks in the overlay whose data may be gone are read from the checkpoint, those synced before are kept."""

    async def story() -> None:
        with ThreadPoolExecutor(1) as executor:
            open_volume = lambda boot: MountedVolume(  # noqa: E731
                StoredImage(content()), tmp_path, asyncio.get_running_loop(), executor, boot
            )
            volume = open_volume("first")
            volume.submit([Change(ChangeKind.WRITE, 8192, 4096, memoryview(b"s" * 4096))])
            volume.sync()
            volume.submit([Change(ChangeKind.WRITE, 16384, 4096, memoryview(b"u" * 4096))])
            volume.close()
            volume = open_volume("first")  # the process died, not the host
            assert volume.read_blocking(16384, 4096) == b"u" * 4096
            volume.close()
            with (tmp_path / "data").open("r+b") as data:
                data.seek(16384)
                data.write(bytes(4096))  # its bit had reached the disk, its data had not
            volume = open_volume("second")
            assert volume.read_blocking(8192, 4096) == b"s" * 4096
            assert volume.read_blocking(16384, 4096) == content()[16384:20480]
            volume.close()

    asyncio.run(story())


# ------------------------------------------------------------------ hydration


async def stuck(hydration: Hydration) -> None:
    """Wait until it tells a problem."""
    while not hydration.problem:  # noqa: ASYNC110 - told by no event
        await asyncio.sleep(0.001)


def hydrating(
    tmp_path: Path,
    story: Callable[[MountedVolume, StoredImage, Hydration, asyncio.Task[None]], Awaitable[None]],
) -> None:
    """Tell a story of a volume that is being copied."""

    async def told() -> None:
        image = StoredImage(content())
        with ThreadPoolExecutor(1) as executor:
            volume = MountedVolume(image, tmp_path, asyncio.get_running_loop(), executor)
            hydration = Hydration("mnt-1/disk", volume, asyncio.Lock())
            task = asyncio.create_task(hydration.run())
            try:
                async with asyncio.timeout(20):
                    await story(volume, image, hydration, task)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                volume.close()

    asyncio.run(told())


def test_a_hydrated_volume_needs_its_image_no_more_not_even_to_be_opened_again(tmp_path: Path) -> None:
    """What clients wrote stays, the rest is the checkpoint's, and the target may be gone for good."""

    async def story(volume: MountedVolume, image: StoredImage, hydration: Hydration, task: asyncio.Task[None]) -> None:
        expected = bytearray(content())
        expected[12288:16384] = b"w" * 4096
        volume.submit([Change(ChangeKind.WRITE, 12288, 4096, memoryview(b"w" * 4096))])
        await task
        assert hydration.fraction == 1.0
        image.damaged = True
        assert volume.read_blocking(0, DEVICE_BYTES) == expected
        assert hydrated_size(tmp_path) == DEVICE_BYTES

    hydrating(tmp_path, story)

    async def again() -> None:
        size_bytes = hydrated_size(tmp_path)
        assert size_bytes is not None
        with ThreadPoolExecutor(1) as executor:
            volume = MountedVolume(Zeroes(size_bytes), tmp_path, asyncio.get_running_loop(), executor, "another boot")
            assert volume.read_blocking(8192, 4096) == content()[8192:12288]
            assert volume.read_blocking(12288, 4096) in (b"w" * 4096, content()[12288:16384])
            volume.close()

    asyncio.run(again())


def test_a_write_between_the_reading_and_the_taking_of_a_piece_wins(tmp_path: Path) -> None:
    """The image's bytes never cover a client's, however the two interleave."""

    def story(volume: MountedVolume, image: StoredImage) -> None:
        piece = volume.read_image(8192, 16384)
        volume.submit([Change(ChangeKind.WRITE, 12288, 512, memoryview(b"c" * 512))])
        volume.submit([Change(ChangeKind.TRIM, 16384, 4096, None)])
        volume.adopt(8192, piece)
        image.damaged = True
        expected = bytearray(content())
        expected[12288:12800] = b"c" * 512
        expected[16384:20480] = bytes(4096)
        assert volume.read_blocking(8192, 16384) == expected[8192:24576]

    mounted(tmp_path, story)


def test_hydration_tells_why_it_stands_still_and_goes_on_once_the_target_is_back(tmp_path: Path) -> None:
    """A target that is away is an I/O error for clients and a problem of the mount, until it returns."""

    async def story(volume: MountedVolume, image: StoredImage, hydration: Hydration, task: asyncio.Task[None]) -> None:
        image.damaged = True  # before the task has had its first turn
        await stuck(hydration)
        assert "cannot be read" in hydration.problem
        assert hydration.fraction < 1.0
        with pytest.raises(OSError, match="cannot be read"):
            volume.read_blocking(8192, 512)
        image.damaged = False
        await task
        assert (hydration.problem, hydration.fraction) == ("", 1.0)

    hydrating(tmp_path, story)


def test_hydration_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool may lie on the same disk: it is never filled by a convenience."""
    monkeypatch.setattr(hydration_module, "FREE_FRACTION", 2.0)

    async def story(volume: MountedVolume, image: StoredImage, hydration: Hydration, task: asyncio.Task[None]) -> None:
        await stuck(hydration)
        assert "disk free" in hydration.problem
        assert volume.read_now(8192, 4096) is None, "it was copied all the same"

    hydrating(tmp_path, story)
