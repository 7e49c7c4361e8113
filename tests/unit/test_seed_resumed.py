"""A volume's seed goes on where it was, whatever cut it short, while an application writes to the very ranges it reads."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from dpac_engine.control import seeding as seeding_module
from dpac_engine.control.group import Group
from dpac_engine.control.seeding import PIECES_UNDER_WAY
from dpac_engine.core.segment import SegmentKind, decode_segment_header
from tests.unit.test_group import Site, Target, _fast, protected, run, shipped, until, write

__all__ = ["_fast"]
SIZE = 4 * 2**20  # as `Site` declares its volume
PIECE_BYTES, READ_BYTES = 2**18, 2**16
CUT_AFTER_PIECES = 5


class Cut(Target):
    """Counts what seeds bring; the piece after `CUT_AFTER_PIECES` finds it away, once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[int] = []
        self.was_cut = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, key: str, data: bytes | memoryview) -> None:
        is_seed = key.startswith("s/") and decode_segment_header(bytes(data[:256])).kind is SegmentKind.FILL
        if is_seed and len(self.pieces) == CUT_AFTER_PIECES and not self.was_cut.is_set():
            self.away = True
            self._loop.call_soon_threadsafe(self.was_cut.set)
        super().put(key, data)
        if is_seed:
            self.pieces.append(len(data))


async def writing(group: Group, model: bytearray, chance: random.Random, finished: asyncio.Event) -> None:
    """An application that never rests; it is told of nothing."""
    while not finished.is_set():
        offset = chance.randrange(SIZE // 512 - 16) * 512
        data = chance.randbytes(512 * chance.randint(1, 16))
        write(group, offset, data)
        model[offset : offset + len(data)] = data
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("cause", ["the target was lost", "the worker was killed"])
def test_a_seed_goes_on_where_it_was_under_writes(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """Only pieces that were under way are sent again, and the first checkpoint has every write before it."""
    monkeypatch.setattr(seeding_module, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(seeding_module, "READ_BYTES", READ_BYTES)
    chance = random.Random(seed)

    async def story(site: Site) -> None:
        model = bytearray(chance.randbytes(SIZE))
        site.disk.write_bytes(model)
        target = site.targets["copies"] = Cut()
        group = site.group()
        await group.start()
        finished = asyncio.Event()
        application = asyncio.create_task(writing(group, model, chance, finished))
        async with asyncio.timeout(120):
            await target.was_cut.wait()
        if cause == "the worker was killed":
            finished.set()
            await application
            await site.kill(group)
            target.away = False
            group = site.group()
            await group.start()
            finished = asyncio.Event()
            application = asyncio.create_task(writing(group, model, chance, finished))
        else:
            await until(lambda: group.legs["copies"].error is not None)
            target.away = False
        await protected(group)
        finished.set()
        await application
        await shipped(group, tag="after")
        assert site.disk_at(at="tag:after") == model, f"seed {seed}"
        again = sum(target.pieces) - SIZE
        print(f"{len(target.pieces)} pieces; {again} bytes were sent twice")
        assert again <= (PIECES_UNDER_WAY + 1) * (PIECE_BYTES + READ_BYTES)

    run(tmp_path, story)
