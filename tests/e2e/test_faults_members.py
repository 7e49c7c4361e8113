"""A volume's file renamed, replaced, changed, cut short or claimed twice: said by name, and nothing that a client wrote is lost."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpac_api.models import Condition
from tests.e2e.ledger import Ledger
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, until, write

pytestmark = pytest.mark.e2e
BLOCKS = 256


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site with a group of two volumes."""
    with LiveSite(tmp_path_factory.mktemp("members")) as site:
        site.start()
        site.protect(
            "shop",
            {
                "disk": {"kind": "volume", "path": str(site.folder / "disk.raw"), "size": "1MiB"},
                "logs": {"kind": "volume", "path": str(site.folder / "logs.raw"), "size": "1MiB"},
            },
        )
        yield site
        site.print_logs()


def conditions(site: LiveSite, subject: str = "member/disk") -> dict[str, Condition]:
    """What is said about a member."""
    return {each.type: each for each in site.rest.group_status("shop").conditions if each.subject == subject}


def assert_protected_as_it_is(site: LiveSite) -> None:
    """Nothing is said of the members any more, and a new checkpoint is the volume."""
    until(lambda: site.rest.group_status("shop").protected and not conditions(site), "shop is protected again")
    tagged = site.rest.take_checkpoint("shop", tag=f"as-is-{time.time_ns()}")
    with site.mounted("shop", tagged.id) as mount:
        assert contents(mount.members["disk"]) == contents(site.uri("shop/disk"))


@pytest.mark.parametrize("how", ["missing", "replaced"])
def test_a_file_that_is_moved_away_under_its_clients(site: LiveSite, seed: int, how: str) -> None:
    """It is said within seconds, clients and replication go on with the open file, and it is over when the file is back."""
    path = site.folder / "disk.raw"
    with Ledger(site.uri("shop/disk"), BLOCKS, seed) as ledger:
        ledger.wait_for(20)
        path.rename(site.folder / "away.raw")
        if how == "replaced":
            path.write_bytes(bytes(MIB))
        until(lambda: f"Member{how.capitalize()}" in conditions(site), "it is said", 90)
        ledger.wait_for(100)
        (site.folder / "away.raw").rename(path)
        until(lambda: f"Member{how.capitalize()}" not in conditions(site), "it is over", 90)
        ledger.wait_for(20)
    assert ledger.refusals == []
    assert ledger.problems(contents(site.uri("shop/disk"))) == []
    assert_protected_as_it_is(site)
    site.wait_drained("shop")
    assert ledger.problems(path.read_bytes()) == []


def test_a_file_that_is_away_at_the_start_is_attached_when_it_comes(site: LiveSite) -> None:
    """The other member is served meanwhile, and no file is made in its place."""
    path = site.folder / "disk.raw"
    before = contents(site.uri("shop/disk"))
    site.dpac("stop", "--data", str(site.data))
    path.rename(site.folder / "away.raw")
    site.start()
    assert "MemberMissing" in conditions(site)
    assert site.serves("shop/logs")
    assert not site.serves("shop/disk")
    assert not path.exists()
    (site.folder / "away.raw").rename(path)
    until(lambda: site.serves("shop/disk"), "it is attached by itself", 90)
    assert contents(site.uri("shop/disk")) == before
    assert_protected_as_it_is(site)


@pytest.mark.parametrize("how", ["written", "cut short"])
def test_what_another_program_does_to_the_file_is_seen_and_copied_anew(site: LiveSite, seed: int, how: str) -> None:
    """Between two looks at a file at rest; a device that was cut short keeps its size."""
    path = site.folder / "disk.raw"
    with connected(site.uri("shop/disk")) as client:
        write(client, 0, random.Random(seed).randbytes(4096))
        flush(client)
    site.wait_drained("shop")
    pauses = iter(range(1000))
    known = path.stat().st_mtime_ns

    def told() -> bool:
        # It is told between two looks at a file at rest; how soon the first of them comes is not ours to know.
        if next(pauses) % 120 == 0 and "MemberChanged" not in conditions(site):
            if how == "written":
                with open(path, "r+b") as file:
                    file.seek(512 * 1024)
                    file.write(b"behind its back")
            else:
                os.truncate(path, 768 * 1024)
        return "MemberChanged" in conditions(site)

    until(told, "it is seen", 90)
    assert path.stat().st_mtime_ns > known
    assert_protected_as_it_is(site)
    assert path.stat().st_size == MIB
    assert len(contents(site.uri("shop/disk"))) == MIB


def link(site: LiveSite, name: str, *, symbolic: bool) -> Path:
    """Another name of the volume's file."""
    path = site.folder / name
    if symbolic:
        path.symlink_to(site.folder / "disk.raw")
    else:
        path.hardlink_to(site.folder / "disk.raw")
    return path


@pytest.mark.parametrize("how", ["path", "symlink", "hard link", "directory above"])
def test_a_volume_belongs_to_one_group_whatever_it_is_called(site: LiveSite, how: str) -> None:
    """A second group's claim is refused with the name of the first; nothing is changed."""
    where = {
        "path": lambda: site.folder / "disk.raw",
        "symlink": lambda: link(site, "soft.raw", symbolic=True),
        "hard link": lambda: link(site, "hard.raw", symbolic=False),
        "directory above": lambda: site.folder / "nest",
    }[how]
    if how == "directory above":
        (site.folder / "nest").mkdir()
        inner = {"disk": {"kind": "volume", "path": str(site.folder / "nest" / "inner.raw"), "size": "1MiB"}}
        site.protect("inner", inner)
    path = where()
    kind = "directory" if how == "directory above" else "volume"
    declaration = site.folder / "second.yaml"
    declaration.write_text(
        f"name: second\nmembers: {{mine: {{kind: {kind}, path: {path}}}}}\nreplication: {{copies: {{target: copies}}}}\n"
    )
    said = site.dpac("group", "apply", "-f", str(declaration), status=4).stderr
    assert ("group 'inner'" if how == "directory above" else "member 'disk' of group 'shop'") in said
    assert "second" not in [group.name for group in site.rest.groups()]


def test_a_volume_grows_under_its_client(site: LiveSite) -> None:
    """The connected client keeps its size and goes on; the next one sees the new size; checkpoints have the size of their moment."""
    members = {
        name: {"kind": "volume", "path": str(site.folder / f"{name}.raw"), "size": "1MiB"} for name in ("disk", "logs")
    }
    assert_protected_as_it_is(site)
    before = site.rest.take_checkpoint("shop", tag="small")
    with connected(site.uri("shop/logs")) as client:
        members["logs"]["size"] = "3MiB"
        site.protect("shop", members)
        assert client.size_bytes == MIB
        write(client, 0, b"on" * 2048)
        with connected(site.uri("shop/logs")) as another:
            assert another.size_bytes == 3 * MIB
            write(another, 2 * MIB, b"new" * 1024 + bytes(1024))
            flush(another)
        write(client, 4096, b"on" * 2048)
        flush(client)
    assert (site.folder / "logs.raw").stat().st_size == 3 * MIB
    after = site.rest.take_checkpoint("shop", tag="large")
    for checkpoint, size in ((before, MIB), (after, 3 * MIB)):
        with site.mounted("shop", checkpoint.id, "logs") as mount:
            assert len(contents(mount.members["logs"])) == size
    with site.mounted("shop", after.id, "logs") as mount:
        assert contents(mount.members["logs"]) == contents(site.uri("shop/logs"))


def test_everything_killed_as_by_a_power_switch(site: LiveSite, seed: int) -> None:
    """Stale sockets, locks and reports are in nobody's way; the mount that was open is open again; nothing acknowledged is lost."""
    with site.mounted("shop", "latest", "logs") as mount, Ledger(site.uri("shop/disk"), BLOCKS, seed) as ledger:
        mounted = contents(mount.members["logs"])
        ledger.wait_for(50)
        for name in site.pids():
            with contextlib.suppress(ProcessLookupError, KeyError):
                site.kill(name)
        site.start()
        ledger.wait_for(20)
        assert contents(mount.members["logs"]) == mounted
    assert ledger.problems(contents(site.uri("shop/disk"))) == []
    assert_protected_as_it_is(site)
