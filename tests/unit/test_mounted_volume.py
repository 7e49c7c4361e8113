"""A mounted checkpoint against a byte array: its overlay takes the writes, the image stays what it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dpac_api.errors import Corruption
from dpac_engine.core.extents import fold
from dpac_engine.io.mounted_volume import MountedVolume
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
