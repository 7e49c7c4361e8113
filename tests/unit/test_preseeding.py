"""A raw image that something else made is a leg's starting point: what differs from it is sent, and nothing depends on it."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from dpac_api.errors import Conflict, DpacError, Invalid, NotFound, Temporary
from dpac_api.models import DataState, TargetSpec, target_spec_of
from dpac_engine.control import seeding
from dpac_engine.control.group import Group
from dpac_engine.control.preseed_kit import PreseedKit, make_kit, read_kit
from dpac_engine.control.preseeding import Preseeded, Preseeding
from dpac_engine.core.segment import SegmentKind, decode_segment_header
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.keys import Keyring
from dpac_engine.io.raw_image import RawImage
from dpac_engine.io.repository import RepositoryWriter
from tests.unit.test_comparing import BLOCK, MIB, SIZE, Counted
from tests.unit.test_group import KEY, KEY_ID, UID, Site, _fast, protected, run, shipped, write

__all__ = ["_fast"]  # its fixture: seconds become hundredths


class Dying(Counted):
    """The process that writes to it is killed after so many pieces."""

    puts_left = -1

    def put(self, key: str, data: bytes | memoryview) -> None:
        if key.startswith("s/"):
            if self.puts_left == 0:
                raise Temporary("The process dies here.")
            self.puts_left -= 1
        super().put(key, data)


class Scene:
    """A group with one leg whose volume somebody copied, and another site that has the copy and an empty target."""

    def __init__(self, site: Site, seed: int, bucket: bool) -> None:
        self.site, self.chance = site, random.Random(seed)
        self.far = Dying()
        site.targets["far"] = self.far
        if bucket:
            site.buckets.add("far")
        self.raw = site.root / "carried.raw"
        self.group: Group

    def spec(self, *legs: str) -> dict[str, object]:
        """The volume, and the legs."""
        disk = {"kind": "volume", "path": str(self.site.disk), "size": f"{SIZE // MIB}MiB"}
        return {"members": {"disk": disk}, "replication": {name: {"target": name, "rpo": "1s"} for name in legs}}

    async def begin(self) -> None:
        """The copy is of before the last writes."""
        self.site.disk.write_bytes(self.chance.randbytes(SIZE))
        self.raw.write_bytes(self.site.disk.read_bytes())
        self.group = self.site.group(spec=self.spec("copies"))
        await self.group.start()
        await protected(self.group)

    def change(self, count: int) -> set[int]:
        """Write blocks that the image has otherwise; their numbers."""
        blocks = set(self.chance.sample(range(SIZE // BLOCK), count))
        for number in sorted(blocks):
            write(self.group, number * BLOCK, self.chance.randbytes(BLOCK))
        return blocks

    async def preseed(self) -> Preseeded:
        """As `dpac target preseed` does."""
        store = self.far
        writer = RepositoryWriter(store, UID, KEY_ID, b"wrapped", lambda _: KEY, SystemClock())
        image = RawImage(self.raw)
        image.require_size(SIZE)
        return await Preseeding(writer, self.site.assignment(), "disk", image, SystemClock(), lambda _: None).run()

    async def join(self) -> int:
        """The leg to the other site is declared; the bytes of its seed."""
        known, self.far.sent_bytes = set(self.far.objects), 0
        await self.group.apply(self.site.assignment(spec=self.spec("copies", "far"), generation=2))
        await protected(self.group)
        await shipped(self.group, tag="joined")
        assert self.site.disk_at("far", "tag:joined") == self.site.disk_at("copies", "tag:joined")
        # Not all that was sent: how many marks and manifests there are is up to how busy the machine is.
        new = (data for key, data in self.far.objects.items() if key.startswith("s/") and key not in known)
        return sum(len(data) for data in new if decode_segment_header(data).kind == SegmentKind.FILL)


@pytest.mark.parametrize(("bucket", "unit_bytes"), [(False, 4096), (True, 65536)])
def test_what_differs_from_the_image_is_all_that_is_sent(
    tmp_path: Path, seed: int, bucket: bool, unit_bytes: int
) -> None:
    """To a folder blocks of 4 KiB, to a bucket units of 64 KiB; the checkpoints there are the volume's, not the image's."""

    async def story(site: Site) -> None:
        scene = Scene(site, seed, bucket)
        await scene.begin()
        blocks = scene.change(12)
        done = await scene.preseed()
        assert (done.image_bytes, done.resumed_bytes) == (SIZE, 0)
        with pytest.raises(DpacError):
            site.image("far")  # there is no checkpoint of it alone
        sent_bytes = await scene.join()
        differing_bytes = len({number * BLOCK // unit_bytes for number in blocks}) * unit_bytes
        print(f"sent {sent_bytes} bytes; {differing_bytes} differ in units of {unit_bytes}")
        assert sent_bytes < differing_bytes + 65536
        assert scene.far.sent_bytes >= 12 * BLOCK, "by the seed, or by the log where the spool has all of it still"

    run(tmp_path, story)


@pytest.mark.parametrize("bucket", [False, True])
def test_a_preseeding_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, bucket: bool
) -> None:
    """Every piece is committed; the next run brings the others, and reads the image from there."""
    monkeypatch.setattr(seeding, "PIECE_BYTES", MIB)

    async def story(site: Site) -> None:
        scene = Scene(site, seed, bucket)
        await scene.begin()
        scene.far.puts_left = 7
        with pytest.raises(Temporary):
            await scene.preseed()
        scene.far.puts_left, sent = -1, scene.far.sent_bytes
        done = await scene.preseed()
        assert 0 < done.resumed_bytes <= 7 * MIB
        assert scene.far.sent_bytes - sent < SIZE - done.resumed_bytes + MIB
        scene.change(3)
        assert await scene.join() < 4 * 65536

    run(tmp_path, story)


@pytest.mark.parametrize("bucket", [False, True])
def test_a_leg_that_comes_before_the_image_is_all_there_trusts_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, bucket: bool
) -> None:
    """It compares what came, wrong blocks and all, and sends the rest; whoever brings the image is told that it is too late."""
    monkeypatch.setattr(seeding, "PIECE_BYTES", MIB)

    async def story(site: Site) -> None:
        scene = Scene(site, seed, bucket)
        await scene.begin()
        with scene.raw.open("r+b") as raw:
            raw.write(b"\0" * BLOCK + scene.chance.randbytes(BLOCK))
            raw.seek(4 * MIB)
            raw.write(b"wrong")
        scene.far.puts_left = 9
        with pytest.raises(Temporary):
            await scene.preseed()
        scene.far.puts_left = -1
        assert await scene.join() < SIZE
        with pytest.raises(Conflict, match="copies of the group shop already"):
            await scene.preseed()
        assert site.disk_at("far", "tag:joined") == site.disk.read_bytes()

    run(tmp_path, story)


def test_an_image_of_nonsense_costs_bytes_and_harms_nothing(tmp_path: Path, seed: int) -> None:
    """Of another volume altogether all is sent; a leg that waits for it says that its first copy is under way, not a second one."""

    async def story(site: Site) -> None:
        scene = Scene(site, seed, False)
        await scene.begin()
        scene.raw.write_bytes(scene.chance.randbytes(SIZE))
        await scene.preseed()
        with pytest.raises(Conflict, match="has an image of disk already"):
            await scene.preseed()
        states: set[DataState] = set()
        await scene.group.apply(site.assignment(spec=scene.spec("copies", "far"), generation=2))
        async with asyncio.timeout(90):
            while not scene.group.status().protected:
                states.add(scene.group.legs["far"].data_state)
                await asyncio.sleep(0.005)
        assert DataState.FULL_RESYNC not in states
        await shipped(scene.group, tag="joined")
        assert site.disk_at("far", "tag:joined") == site.disk.read_bytes()

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda raw: None, NotFound, "is not there"),
        (lambda raw: raw.mkdir(), Invalid, "neither a file nor a block device"),
        (lambda raw: os.mkfifo(raw), Invalid, "neither a file nor a block device"),
        (lambda raw: raw.write_bytes(bytes(SIZE - 512)), Invalid, f"{SIZE - 512} bytes and the volume {SIZE}"),
        (lambda raw: raw.write_bytes(b"QFI\xfb" + bytes(1000)), Invalid, "qemu-img convert -f qcow2 -O raw"),
        (lambda raw: raw.write_bytes(b"\x1f\x8b\x08" + bytes(1000)), Invalid, "compressed"),
    ],
    ids=["missing", "folder", "pipe", "short", "qcow2", "gzip"],
)
def test_what_is_no_raw_image_of_the_volume_is_refused(
    tmp_path: Path, make: object, error: type[DpacError], said: str
) -> None:
    """Before anything lies at the target; the message says what to do."""

    async def story(site: Site) -> None:
        scene = Scene(site, 1, False)
        site.assignment(spec=scene.spec("copies"))
        make(scene.raw)  # type: ignore[operator]
        with pytest.raises(error, match=said):
            await scene.preseed()
        assert not scene.far.objects

    run(tmp_path, story)


def test_a_kit_has_what_another_site_needs_and_nothing_else_passes_for_one(tmp_path: Path) -> None:
    """It is written from the data folder to a private file, and read back; members that are no volumes are refused by name."""

    async def story(site: Site) -> None:
        (site.root / "tree").mkdir()
        disk = {"kind": "volume", "path": str(site.disk), "size": "4MiB"}
        members = {"disk": disk, "tree": {"kind": "directory", "path": str(site.root / "tree")}}
        keyring = _keyring(site.root / "keys")
        key_id = keyring.create()
        assignment = site.assignment(spec={"members": members}).model_copy(update={"key_id": key_id})
        folder = site.root / "groups" / UID
        folder.mkdir(parents=True)
        (folder / "assignment.json").write_text(assignment.model_dump_json())
        spec: TargetSpec = target_spec_of({"kind": "filesystem", "path": "/far"})
        kit = make_kit(site.root / "groups", keyring, UID, "far", spec)
        kit.write(site.root / "kit")
        assert (site.root / "kit").stat().st_mode & 0o777 == 0o600
        found = read_kit(site.root / "kit")
        assert isinstance(found, PreseedKit)
        assert (found.data_key(key_id), found.wrapped(key_id)) == (keyring.data_key(key_id), keyring.wrapped(key_id))
        assert found.sizes_bytes == {"disk": 4 * MIB}
        assert found.shard_of("disk").group_uid == UID
        with pytest.raises(NotFound, match="no member 'other'"):
            found.shard_of("other")
        with pytest.raises(Invalid, match="'tree' is no volume"):
            found.shard_of("tree")
        with pytest.raises(NotFound, match="no such group"):
            make_kit(site.root / "groups", keyring, "2" * 32, "far", spec)
        (site.root / "other").write_text("{}")
        with pytest.raises(Invalid, match="is not what `dpac target preseed-kit` writes"):
            read_kit(site.root / "other")

    run(tmp_path, story)


def _keyring(folder: Path) -> Keyring:
    folder.mkdir()
    (folder / "kek").write_bytes(bytes(range(32)))
    return Keyring(folder)
