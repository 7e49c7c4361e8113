"""The clients people really use, against a protected volume: what they wrote is in the export, in the volume's own
file, and in a checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.file_system import Disk, DiskError, files_in, require_file_systems, write_files
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, qemu_io, run, write

pytestmark = pytest.mark.e2e
SIZE = 32 * MIB


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """One site for all of these tests; each has a group of its own."""
    with LiveSite(tmp_path_factory.mktemp("clients")) as site:
        site.start()
        yield site


@pytest.fixture
def site(started: LiveSite) -> Iterator[LiveSite]:
    """The site, with its logs in the report of a failure."""
    yield started
    started.print_logs()


@pytest.fixture
def group(request: pytest.FixtureRequest, site: LiveSite) -> Iterator[str]:
    """A group of one empty volume of 32 MiB, which is retired at the end."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())[5:60].strip("-")
    site.protect_volume(name, SIZE)
    yield name
    site.rest.delete_group(name, on_destroy="purge")


@pytest.fixture(params=["unix", "tcp"])
def uri(request: pytest.FixtureRequest, site: LiveSite, group: str) -> str:
    """The volume by either way."""
    export = f"{group}/disk"
    return site.uri(export) if request.param == "unix" else site.tcp_uri(export)


def assert_everywhere(site: LiveSite, group: str, expected: bytes) -> None:
    """The export, the volume's file once it has been brought up to date, and a checkpoint hold these bytes."""
    assert contents(site.uri(f"{group}/disk")) == expected
    site.rest.take_checkpoint(group, tag="now")
    site.wait_drained(group)
    assert (site.folder / f"{group}.raw").read_bytes() == expected
    with site.mounted(group, "tag:now") as mount:
        assert contents(mount.members["disk"]) == expected


def test_qemu_io_writes_patterns_zeroes_and_discards(site: LiveSite, group: str, uri: str) -> None:
    """Every kind of change of qemu-io is read back by it, reaches the file in order, and is in a checkpoint."""
    qemu_io(
        uri,
        "write -P 0xa5 0 4M",
        "write -P 0x5a -f 4M 64k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "discard 192k 64k",
        "flush",
        "write -P 0x11 66k 512",
        "write -P 0x77 31M 1M",
        "flush",
        "read -P 0xa5 0 64k",
        "read -P 0 64k 2k",
        "read -P 0x11 66k 512",
        "read -P 0 128k 128k",
        "read -P 0xa5 256k 768k",
        "read -P 0x5a 4M 64k",
    )
    expected = bytearray(SIZE)
    expected[: 4 * MIB] = b"\xa5" * 4 * MIB
    expected[65536 : 4 * 65536] = bytes(3 * 65536)
    expected[66 * 1024 : 66 * 1024 + 512] = b"\x11" * 512
    expected[4 * MIB : 4 * MIB + 65536] = b"\x5a" * 65536
    expected[31 * MIB :] = b"\x77" * MIB
    assert_everywhere(site, group, bytes(expected))


def test_qemu_io_overwrites_again_and_again(site: LiveSite, group: str, seed: int) -> None:
    """Hundreds of writes of every size over each other: the last one to a place counts, everywhere."""
    chance, model, commands = random.Random(seed), bytearray(SIZE), []
    for _ in range(400):
        length = chance.choice([512, 4096, 12288, 65536, 300 * 1024])
        offset, value = chance.randrange(0, 4 * MIB, 512), chance.randrange(256)
        commands.append(f"write -q -P {value} {offset} {length}")
        model[offset : offset + length] = bytes([value]) * length
    qemu_io(site.uri(f"{group}/disk"), *commands, "flush")
    assert_everywhere(site, group, bytes(model))


def test_qemu_img_converts_in_and_out(site: LiveSite, group: str, tmp_path: Path, seed: int) -> None:
    """A qcow2 image goes in and comes out the same; what was never written stays a hole."""
    raw, image, back = tmp_path / "image.raw", tmp_path / "image.qcow2", tmp_path / "back.qcow2"
    with raw.open("wb") as file:
        file.truncate(SIZE)
        file.seek(9 * MIB)
        file.write(random.Random(seed).randbytes(3 * MIB))
    uri = site.uri(f"{group}/disk")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", str(image), uri)
    assert json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", uri))["virtual-size"] == SIZE
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, str(back))
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(back))
    assert_everywhere(site, group, raw.read_bytes())
    assert (site.folder / f"{group}.raw").stat().st_blocks * 512 < 4 * MIB


def test_nbdcopy_with_many_connections(site: LiveSite, group: str, uri: str, tmp_path: Path, seed: int) -> None:
    """Four connections at once, in and out; --flush on one covers them all."""
    raw, back = tmp_path / "image.raw", tmp_path / "back.raw"
    raw.write_bytes(random.Random(seed).randbytes(24 * MIB) + bytes(8 * MIB))
    run("nbdcopy", "--connections=4", "--flush", str(raw), uri)
    run("nbdcopy", "--connections=4", "--request-size=1048576", uri, str(back))
    assert back.read_bytes() == raw.read_bytes()
    assert_everywhere(site, group, raw.read_bytes())


def test_nbdinfo_describes_the_volume(site: LiveSite, group: str) -> None:
    """Sizes and abilities are what a volume promises, by either way, and --list names it."""
    expected = {
        "export-size": SIZE,
        "is_read_only": False,
        "can_flush": True,
        "can_fua": True,
        "can_multi_conn": True,
        "can_trim": True,
        "can_zero": True,
        "block_size_minimum": 512,
    }
    for uri in (site.uri(f"{group}/disk"), site.tcp_uri(f"{group}/disk")):
        (export,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
        assert {name: export[name] for name in expected} == expected
        listed = json.loads(run("nbdinfo", "--list", "--json", uri))
        assert f"{group}/disk" in [each["export-name"] for each in listed["exports"]]


def test_nbdinfo_maps_data_and_holes_before_and_after_they_reach_the_file(site: LiveSite, group: str) -> None:
    """--map is the same while changes are in the journal only, when they are in the file, and in a mount."""
    uri = site.uri(f"{group}/disk")
    expected = [(0, 4 * MIB, 3), (4 * MIB, MIB, 0), (5 * MIB, MIB, 3), (6 * MIB, MIB, 0), (7 * MIB, 25 * MIB, 3)]

    def extents(of: str) -> list[tuple[int, int, int]]:
        found = json.loads(run("nbdinfo", "--map", "--json", of))
        return [(extent["offset"], extent["length"], extent["type"]) for extent in found]

    qemu_io(uri, "write -P 1 4M 3M", "discard 5M 1M")
    assert extents(uri) == expected
    site.rest.take_checkpoint(group, tag="mapped")
    site.wait_drained(group)
    assert extents(uri) == expected
    with site.mounted(group, "tag:mapped") as mount:
        assert extents(mount.members["disk"]) == expected


@pytest.mark.parametrize(("block", "way"), [("512", "unix"), ("4k", "unix"), ("4k", "tcp"), ("64k", "tcp")])
def test_fio_verifies_what_several_jobs_wrote(site: LiveSite, group: str, block: str, way: str) -> None:
    """Four jobs write at random beside each other, with flushes between, and read all back by checksum."""
    uri = site.uri(f"{group}/disk") if way == "unix" else site.tcp_uri(f"{group}/disk")
    share = {"512": MIB // 2, "4k": 4 * MIB, "64k": 8 * MIB}[block]
    told = run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--rw=randwrite",
        f"--bs={block}",
        "--iodepth=16",
        "--numjobs=4",
        "--group_reporting",
        f"--size={share}",
        f"--offset_increment={share}",
        "--fsync=64",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--do_verify=1",
        "--verify_fatal=1",
        "--output-format=json",
    )
    (result,) = json.loads(told[told.index("{") : told.rindex("}") + 1])["jobs"]
    assert result["error"] == 0
    assert result["write"]["io_bytes"] == result["read"]["io_bytes"] == 4 * share
    assert_everywhere(site, group, contents(site.uri(f"{group}/disk")))


def test_a_flush_makes_what_was_written_durable_in_the_journal(site: LiveSite, group: str) -> None:
    """Once FLUSH is answered, the journal is durable up to where it was when the FLUSH was sent."""
    with connected(site.uri(f"{group}/disk")) as client:
        for number in range(64):
            write(client, number * 4096, bytes([number]) * 4096)
        head = site.rest.group_status(group).head_lsn
        flush(client)
        assert site.rest.group_status(group).durable_lsn >= head


def test_a_file_system_comes_back_as_it_was_at_the_mark(site: LiveSite, group: str, tmp_path: Path, seed: int) -> None:
    """ext4 in use: a checkpoint between two sets of files mounts, replays its journal, is clean, and has the first set."""
    require_file_systems()
    chance = random.Random(seed)
    before = {f"file-{number}": chance.randbytes(chance.randrange(1, 200_000)) for number in range(20)}
    after = {name: chance.randbytes(len(data)) for name, data in list(before.items())[:5]}
    with Disk(site.uri(f"{group}/disk"), tmp_path / "live") as live:
        assert live.format_if_blank()
        with live.mounted():
            folder = live.root / "folder"
            folder.mkdir()
            write_files(folder, before)
            site.rest.take_checkpoint(group, tag="files")
            write_files(folder, {**after, "later": b"after the mark"})
            with site.mounted(group, "tag:files") as mount, Disk(mount.members["disk"], tmp_path / "past") as past:
                assert past.needs_replay()
                with past.mounted():  # writable, so that the file system's own journal replays
                    assert files_in(past.root / "folder") == before
                    write_files(past.root, {"note": b"a mounted checkpoint can be written"})
                past.check()
            assert files_in(folder) == {**before, **after, "later": b"after the mark"}
            assert not (live.root / "note").exists()
        live.check()


def test_only_a_blank_disk_is_formatted(site: LiveSite, group: str, tmp_path: Path) -> None:
    """A file system that is there stays; anything else is refused by name; a folder holds one disk at a time."""
    require_file_systems()
    uri = site.uri(f"{group}/disk")
    with Disk(uri, tmp_path / "disk") as disk:
        assert disk.format_if_blank()
        assert not Disk(uri, tmp_path / "disk").format_if_blank(), "another run finds the disk again"
        with pytest.raises(DiskError, match="attached; detach that first"):
            Disk(f"{uri}-other", tmp_path / "disk").attach()
        run("mkswap", "-f", disk.device)
        with pytest.raises(DiskError, match="holds swap, and is not formatted"):
            disk.format_if_blank()
    assert not disk.device
    with pytest.raises(DiskError, match="nbdfuse does not serve"):
        Disk(f"{uri}-other", tmp_path / "disk").attach()
