"""A volume is compared with what a bucket holds of it by hashes alone: what differs is sent, and nothing of it is read back."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Temporary
from dpac_engine.control import comparing, seeding
from dpac_engine.control.group import Group
from dpac_engine.core import image, segment
from dpac_engine.core.records import Kind
from dpac_engine.core.stream_hashes import UNIT_BYTES
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.nbd.export import Change, ChangeKind
from tests.unit.test_group import Site, Target, _fast, protected, run, shipped, until, volume_of, write

__all__ = ["_fast"]  # its fixture: seconds become hundredths
MIB = 2**20
SIZE = 16 * MIB
BLOCK = 4096


class Counted(Target):
    """A bucket that counts requests and bytes, and goes away for a while after some requests."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = self.read_bytes = self.sent_bytes = 0
        self.fails_at: int | None = None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        found = super().get(key, offset, length)
        if key.startswith("s/"):
            self.gets, self.read_bytes = self.gets + 1, self.read_bytes + len(found)
            if self.gets == self.fails_at:
                raise Temporary("The bucket is away. Wait.")
        return found

    def put(self, key: str, data: bytes | memoryview) -> None:
        super().put(key, data)
        self.sent_bytes += len(data)


class Carried:
    """A group whose copies were carried to a bucket, `second`, and whose log since is not kept: what then is sent there."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.chance = site, random.Random(seed)
        self.bucket = Counted()
        self.group: Group
        self.known: set[str] = set()
        self.known_bytes = 0

    def spec(self, *legs: str, size: int = SIZE) -> dict[str, Any]:
        """The volume, and the legs."""
        disk = {"kind": "volume", "path": str(self.site.disk), "size": f"{size // MIB}MiB"}
        return {"members": {"disk": disk}, "replication": {name: {"target": name, "rpo": "1s"} for name in legs}}

    async def begin(self, history: Callable[[Carried], None] | None = None) -> None:
        """The disk is seeded to `copies`, `history` is written behind that, and the copies are carried."""
        self.site.disk.write_bytes(self.chance.randbytes(SIZE))
        self.group = self.site.group(spec=self.spec("copies"))
        await self.group.start()
        await protected(self.group)
        if history is not None:
            history(self)
        await shipped(self.group, tag="first")
        self.then = self.content()
        self.bucket.objects.update(self.site.targets["copies"].objects)
        self.site.targets["second"] = self.bucket
        self.site.buckets.add("second")
        refs = self.site.reader("second").refs()
        self.known, self.known_bytes = {ref.name for ref in refs}, sum(ref.bytes for ref in refs)
        # So much is written that the spool lets go of what the bucket would need.
        cursor = self.group.legs["copies"].memory.cursor
        for number in range(64):
            self.write(number * UNIT_BYTES, self.content(number * UNIT_BYTES, UNIT_BYTES))  # as it was
        await shipped(self.group, tag="meanwhile")
        await until(lambda: self.group.spool.released_lsn > cursor)

    async def declare(self, *, size: int = SIZE) -> int:
        """The leg is declared; how many bytes its seed has sent, once it has the volume exactly, and what was carried still."""
        self.bucket.gets = self.bucket.read_bytes = self.bucket.sent_bytes = 0
        await self.group.apply(self.site.assignment(spec=self.spec("copies", "second", size=size), generation=2))
        await protected(self.group)
        gets, read_bytes = self.bucket.gets, self.bucket.read_bytes
        await shipped(self.group, tag="there")
        assert self.site.disk_at("second", at="tag:there") == self.content()
        assert self.site.disk_at("second", at="tag:first") == self.then
        self.bucket.gets, self.bucket.read_bytes = gets, read_bytes
        return self.fill_bytes()

    def fill_bytes(self) -> int:
        """What seeds have brought to the bucket."""
        reader, total = self.site.reader("second"), 0
        for ref in reader.refs():
            if ref.name not in self.known:
                rows = reader.stored(ref).rows
                total += int(rows["payload_bytes"][rows["kind"] == Kind.FILL].sum())
        return total

    def write(self, offset: int, data: bytes) -> None:
        """An application's write."""
        write(self.group, offset, data)

    def clear(self, offsets: range) -> None:
        """Zeroes over some units."""
        for offset in offsets:
            volume_of(self.group).submit([Change(ChangeKind.ZERO, offset, UNIT_BYTES, None)])

    def write_blocks(self, numbers: list[int]) -> None:
        """New content for some blocks."""
        for number in numbers:
            self.write(number * BLOCK, self.chance.randbytes(BLOCK))

    def content(self, offset: int = 0, length: int | None = None) -> bytes:
        """The volume as it is."""
        volume = volume_of(self.group)
        return bytes(volume.read_blocking(offset, volume.size_bytes - offset if length is None else length))


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 1 MiB, and as much is compared at once."""
    monkeypatch.setattr(seeding, "PIECE_BYTES", MIB)
    monkeypatch.setattr(comparing, "STEP_BYTES", MIB)


def test_where_nothing_differs_nothing_is_sent_and_only_indexes_are_read(tmp_path: Path, seed: int) -> None:
    """A handful of small requests for each segment; not a byte of the volume, in neither direction."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin()
        assert await carried.declare() == 0, f"seed {seed}"
        assert carried.bucket.sent_bytes < MIB // 4
        # Three for each segment: its header, its index with the last 128 KiB (here, of 1 MiB), and its hashes.
        assert carried.bucket.gets <= 6 * len(carried.known) + 16, f"{carried.bucket.gets}, seed {seed}"
        assert carried.bucket.read_bytes <= SIZE // 4, f"{carried.bucket.read_bytes}, seed {seed}"

    run(tmp_path, story)


def test_what_differs_is_sent_by_the_64_kib(tmp_path: Path, seed: int) -> None:
    """Twelve blocks in as many units: at most a tenth more than these."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin()
        units = carried.chance.sample(range(SIZE // UNIT_BYTES), 12)
        carried.write_blocks([16 * unit + carried.chance.randrange(16) for unit in units])
        await shipped(carried.group, tag="changed")
        assert 12 * BLOCK <= await carried.declare() <= 1.1 * 12 * UNIT_BYTES, f"seed {seed}"
        assert carried.bucket.sent_bytes <= 1.1 * 12 * UNIT_BYTES + MIB // 4

    run(tmp_path, story)


def test_data_that_became_zeroes_and_zeroes_that_became_data_are_told(tmp_path: Path, seed: int) -> None:
    """Of what the bucket has as zeroes, blocks of 4 KiB that are none any more; of data, what is a hole now, for nothing."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin(lambda carried: carried.clear(range(4 * MIB, 8 * MIB, UNIT_BYTES)))
        carried.clear(range(8 * MIB, 9 * MIB, UNIT_BYTES))
        carried.write_blocks([1100, 1101, 1500])
        await shipped(carried.group, tag="changed")
        assert await carried.declare() == 3 * BLOCK, f"seed {seed}"

    run(tmp_path, story)


def test_a_volume_that_grew_is_compared_as_far_as_it_was(tmp_path: Path, seed: int) -> None:
    """What was written where nothing was is sent in blocks, beside what differs."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin()
        grown = SIZE + 4 * MIB
        await carried.group.apply(site.assignment(spec=carried.spec("copies", size=grown), generation=2))
        await until(lambda: volume_of(carried.group).size_bytes == grown)
        carried.write_blocks([7, SIZE // BLOCK + 1, SIZE // BLOCK + 900])
        await shipped(carried.group, tag="changed")
        site.changes["generation"] = 2
        assert await carried.declare(size=grown) == UNIT_BYTES + 2 * BLOCK, f"seed {seed}"

    run(tmp_path, story)


def test_what_shares_units_with_overwritten_data_is_sent_too(tmp_path: Path, seed: int) -> None:
    """Each block that was overwritten in the history costs the rest of its unit, once; nothing else is sent."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        units = carried.chance.sample(range(SIZE // UNIT_BYTES), 24)
        await carried.begin(lambda carried: carried.write_blocks([16 * unit + 3 for unit in units]))
        sent = await carried.declare()
        assert 24 * (UNIT_BYTES - BLOCK) <= sent <= 24 * UNIT_BYTES, f"{sent}, seed {seed}"

    run(tmp_path, story)


def test_a_bucket_with_a_damaged_index_gets_all_of_it(tmp_path: Path, seed: int) -> None:
    """What was carried cannot be told from it, so nothing is left out."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin()
        name = carried.chance.choice(
            [ref.name for ref in site.reader("second").refs() if ref.bytes > MIB // 2],
        )
        whole = carried.bucket.objects[name]
        damaged = bytearray(whole)
        damaged[-200] ^= 1
        carried.bucket.objects[name] = bytes(damaged)
        await carried.group.apply(site.assignment(spec=carried.spec("copies", "second"), generation=2))
        await protected(carried.group)
        await shipped(carried.group, tag="there")
        carried.bucket.objects[name] = whole  # this checks what is there; a damaged segment is `dpac verify`'s to tell
        assert site.disk_at("second", at="tag:there") == carried.content()
        assert carried.fill_bytes() == SIZE, f"seed {seed}"

    run(tmp_path, story)


def test_what_was_stored_without_hashes_is_sent(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of an earlier dpac."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        with monkeypatch.context() as earlier:
            earlier.setattr(segment, "digests_of", lambda stream: b"")
            await carried.begin()
        assert await carried.declare() == SIZE, f"seed {seed}"

    run(tmp_path, story)


def test_what_is_written_while_it_is_compared_stands(tmp_path: Path, seed: int) -> None:
    """Writes go on, to what was compared, to what is, and to what will be, and the bucket goes away in between."""

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin()
        carried.write_blocks(carried.chance.sample(range(SIZE // BLOCK), 40))
        await shipped(carried.group, tag="changed")
        carried.bucket.fails_at = fails_at = carried.bucket.gets + carried.chance.randrange(10, 50)
        expected: dict[str, bytes] = {}

        async def application() -> None:
            for number in range(400):
                carried.write(carried.chance.randrange(SIZE // BLOCK) * BLOCK, os.urandom(BLOCK))
                if number % 20 == 0:
                    assert carried.group.mark(tags=(f"mark-{number}",)) is not None
                    expected[f"mark-{number}"] = carried.content()
                await asyncio.sleep(0)

        writing = asyncio.create_task(application())
        await carried.group.apply(site.assignment(spec=carried.spec("copies", "second"), generation=2))
        await writing
        await protected(carried.group)
        await shipped(carried.group, tag="there")
        assert carried.bucket.gets >= fails_at
        carried.bucket.fails_at = None
        found = [mark for mark in site.reader("second").marks() if set(mark.body.tags) & set(expected)]
        assert site.disk_at("second", at="tag:there") == carried.content(), f"seed {seed}"
        for mark in found:
            if site.reader("second").members_at(mark):
                same = site.disk_at("second", at=mark.id) == expected[mark.body.tags[0]]
                assert same, f"{mark.body.tags[0]}, seed {seed}"

    run(tmp_path, story)


def test_a_volume_is_read_by_whole_blocks_wherever_units_begin(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint says lies between the writes of a segment, so that units begin at odd bytes of the volume."""

    def history(carried: Carried) -> None:
        carried.write_blocks(list(range(8)))
        carried.group.mark(tags=("odd",))
        carried.write_blocks(list(range(8, 96)))

    async def story(site: Site) -> None:
        carried = Carried(site, seed)
        await carried.begin(history)
        carried.write_blocks([40])
        await shipped(carried.group, tag="changed")
        reads: list[tuple[int, int]] = []
        read_for_seed = Volume.read_for_seed

        async def watched(volume: Volume, offset: int, length: int) -> tuple[int, bytes]:
            reads.append((offset, length))
            return await read_for_seed(volume, offset, length)

        monkeypatch.setattr(Volume, "read_for_seed", watched)
        monkeypatch.setattr(image, "RUN_BYTES", UNIT_BYTES)  # what is read together ends at odd bytes, too
        assert await carried.declare() >= BLOCK, f"seed {seed}"
        assert reads
        assert all(offset % BLOCK == length % BLOCK == 0 for offset, length in reads), f"{reads}, seed {seed}"

    run(tmp_path, story)
