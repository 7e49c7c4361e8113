"""The model of a disk that loses power: what was synced stays, what was not may be there, and nothing else ever is."""

from __future__ import annotations

import pickle
import stat
from random import Random

from tests.powercut.disk import PAGE_BYTES, SECTOR_BYTES, PowerCutDisk

FILE, FOLDER = stat.S_IFREG | 0o600, stat.S_IFDIR | 0o700


def outcomes(disk: PowerCutDisk, path: str, seeds: int = 200) -> set[bytes | None]:
    """What a file may hold after a cut; None: it is gone. The disk is copied by cutting the power of a pickled one."""
    image, found = pickle.dumps(disk), set()
    for seed in range(seeds):
        left = pickle.loads(image).after_power_cut(seed)
        try:
            node = left.find(path)
            found.add(left.read(node, 0, node.size))
        except FileNotFoundError:
            found.add(None)
    return found


def test_what_was_synced_with_its_name_is_always_there() -> None:
    """A file's fsync and its folder's: one outcome only."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.write(file, 0, b"x" * 10_000, 1)
    disk.sync(file)
    disk.sync(disk.root)
    assert outcomes(disk, "/a") == {b"x" * 10_000}


def test_a_synced_file_is_lost_with_a_name_that_was_not() -> None:
    """fsync of the file alone does not make its name durable, nor does that of a folder whose own name is not."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.write(file, 0, b"x", 1)
    disk.sync(file)
    assert outcomes(disk, "/a") == {None, b"x"}
    folder = disk.make("/f", FOLDER)
    inner = disk.make("/f/b", FILE)
    disk.write(inner, 0, b"y", 1)
    disk.sync(inner)
    disk.sync(folder)
    assert None in outcomes(disk, "/f/b")


def test_a_write_is_torn_at_sectors_only() -> None:
    """Each sector of an unsynced write is the old or the new one, independently; none is of both."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.write(file, 0, b"o" * PAGE_BYTES, 1)
    disk.sync(file)
    disk.sync(disk.root)
    disk.write(file, 0, b"n" * PAGE_BYTES, 2)
    seen = outcomes(disk, "/a")
    sectors = {
        content[at : at + SECTOR_BYTES] for content in seen if content for at in range(0, PAGE_BYTES, SECTOR_BYTES)
    }
    assert sectors == {b"o" * SECTOR_BYTES, b"n" * SECTOR_BYTES}
    assert len(seen) > 20


def test_writes_within_one_sector_are_kept_in_their_order() -> None:
    """The cache writes whole sectors back: a later write of it never lies there without an earlier one."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.write(file, 0, bytes(512), 1)
    disk.sync(file)
    disk.sync(disk.root)
    for at in range(3):
        disk.write(file, at * 64, b"w" * 64, 2)
    assert outcomes(disk, "/a") == {b"w" * (64 * count) + bytes(512 - 64 * count) for count in range(4)}


def test_a_size_that_was_not_synced_may_be_there_without_the_data() -> None:
    """Then it reads as zeroes; or the file is shorter."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.sync(disk.root)
    disk.write(file, 0, b"x" * 1024, 1)
    assert {b"", bytes(1024), b"x" * 1024} <= outcomes(disk, "/a")


def test_a_rename_is_atomic_and_may_be_lost() -> None:
    """The name means the old file or the new one, never none; the sync of its folder settles it."""
    disk = PowerCutDisk()
    for path, content in (("/a", b"old"), ("/b", b"new")):
        file = disk.make(path, FILE)
        disk.write(file, 0, content, 1)
        disk.sync(file)
    disk.sync(disk.root)
    disk.rename("/b", "/a")
    assert outcomes(disk, "/a") == {b"old", b"new"}
    disk.sync(disk.root)
    assert outcomes(disk, "/a") == {b"new"}
    assert outcomes(disk, "/b") == {None}


def test_changes_in_one_folder_are_kept_in_order() -> None:
    """If a later name is there, so are the earlier ones."""
    for seed in range(100):
        disk = PowerCutDisk()
        for number in range(6):
            disk.make(f"/{number}", FILE)
        left = sorted(disk.after_power_cut(seed).root.names)
        assert left == [str(number) for number in range(len(left))]


def test_a_removal_may_come_undone() -> None:
    """Until the folder is synced the file may be there again, whole."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.write(file, 0, b"x", 1)
    disk.sync(file)
    disk.sync(disk.root)
    disk.remove("/a")
    assert outcomes(disk, "/a") == {None, b"x"}
    disk.sync(disk.root)
    assert outcomes(disk, "/a") == {None}


def test_the_modification_time_takes_an_fsync() -> None:
    """fdatasync makes data and size durable, and leaves the time as it was."""
    disk = PowerCutDisk()
    file = disk.make("/a", FILE)
    disk.sync(disk.root)
    disk.write(file, 0, b"x", 7)
    disk.sync(file, data_only=True)
    assert disk.after_power_cut(0).find("/a").mtime_ns == 0
    disk.sync(file)
    left = disk.after_power_cut(0)
    assert (left.find("/a").mtime_ns, left.find("/a").size) == (7, 1)


def test_one_seed_is_one_outcome() -> None:
    """A failure can be repeated."""
    chance = Random(5)
    writes = [(chance.randrange(50_000), chance.randbytes(chance.randrange(5000))) for _ in range(60)]
    found = []
    for _ in range(2):
        disk = PowerCutDisk()
        file = disk.make("/a", FILE)
        disk.sync(disk.root)
        for offset, data in writes:
            disk.write(file, offset, data, 1)
        left = disk.after_power_cut(11)
        found.append(left.read(left.find("/a"), 0, 100_000))
    assert found[0] == found[1]
