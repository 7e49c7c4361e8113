"""A restore to a new path whose backend is killed on the way goes on by itself, and writes nothing twice."""

from __future__ import annotations

import fcntl
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dpac_api.errors import DpacError
from dpac_api.models import Operation, Phase, RestoreReport
from tests.e2e.site import MIB, LiveSite, until

pytestmark = pytest.mark.e2e
SIZE = 192 * MIB
FILES = 3000
TRIES = 20
"""A restore may be over before it is killed: then the next one is."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site that protects a volume of random bytes and a tree of small files, which do not change."""
    folder = tmp_path_factory.mktemp("cut")
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    with (folder / "disk.raw").open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(chance.randbytes(MIB))
    for number in range(FILES):
        path = folder / f"files/{number % 20}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(8192)))
    with LiveSite(folder / "live") as site:
        site.start()
        members = {"disk": {"kind": "volume", "path": str(folder / "disk.raw")}}
        members["files"] = {"kind": "directory", "path": str(folder / "files")}
        site.protect("shop", members)
        yield site
        site.print_logs()


def begin(site: LiveSite, member: str, to: Path) -> tuple[Operation, Path]:
    """A restore, and the folder that it writes aside in."""
    begun = site.rest.restore("shop", member=member, to=str(to))
    return begun, to.parent / f".{to.name}.{begun.id}.partial"


def ended(site: LiveSite, begun: Operation) -> Operation:
    """The operation once it is over; the backend may be away meanwhile."""
    found: list[Operation] = []

    def is_over() -> bool:
        with suppress(DpacError):
            found[:] = [site.rest.operation(begun.id)]
        return bool(found) and found[0].phase in (Phase.SUCCEEDED, Phase.FAILED)

    until(is_over, "the restore has ended")
    return found[0]


def wait_for(condition: Callable[[], bool], begun: Operation, to: Path) -> None:
    """Until the restore is on its way, or over; looked at all the time, because it may be short."""
    deadline = time.monotonic() + 60
    while not condition() and not to.exists():
        assert time.monotonic() < deadline, begun


def some_is_noted(aside: Path) -> bool:
    """The journal says that a part of the volume is on disk."""
    with suppress(FileNotFoundError):
        return b'"written"' in (aside / "journal").read_bytes()
    return False


def some_is_there(aside: Path) -> bool:
    """A part of the tree is."""
    return len(list((aside / "partial").glob("*/*"))) > FILES // 10


@pytest.mark.parametrize("member", ["disk", "files"])
def test_killed_on_the_way_it_goes_on_with_what_is_there(site: LiveSite, tmp_path: Path, member: str) -> None:
    """The same bytes in the end; some of them were there from before, and were not fetched again."""
    source = site.folder.parent / ("disk.raw" if member == "disk" else "files")
    on_its_way = some_is_noted if member == "disk" else some_is_there
    for number in range(TRIES):
        to = tmp_path / f"back{number}"
        begun, aside = begin(site, member, to)
        wait_for(lambda: on_its_way(aside), begun, to)  # noqa: B023 - called right here
        site.kill("control")
        done = ended(site, begun)
        assert done.phase is Phase.SUCCEEDED, done.error
        report = RestoreReport.model_validate(done.result)
        assert not aside.exists()
        if member == "disk":
            assert to.read_bytes() == source.read_bytes()
            assert report.bytes_written + report.bytes_kept == SIZE
        else:
            assert contents_of(to) == contents_of(source)
        if report.bytes_kept:
            return
    pytest.fail("no restore was cut short")


def contents_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Times and content of every file."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_restore_does_not_need_the_worker(site: LiveSite, tmp_path: Path) -> None:
    """Killed on the way, it is not missed."""
    to = tmp_path / "back"
    begun, aside = begin(site, "disk", to)
    wait_for(aside.exists, begun, to)
    site.kill("worker-0")
    done = ended(site, begun)
    assert done.phase is Phase.SUCCEEDED, done.error
    assert RestoreReport.model_validate(done.result).bytes_written == SIZE
    assert to.read_bytes() == (site.folder.parent / "disk.raw").read_bytes()


def test_over_an_older_image_only_what_differs_is_written(site: LiveSite, tmp_path: Path) -> None:
    """By the command line; a live volume, and an image in use, are left alone."""
    source = site.folder.parent / "disk.raw"
    content = source.read_bytes()
    old = tmp_path / "old.raw"
    old.write_bytes(content[: 20 * MIB] + bytes(3 * MIB) + content[23 * MIB :])
    done = site.dpac_json("restore", "shop", "--member", "disk", "--to", str(old), "--over")
    report = RestoreReport.model_validate(done["result"])
    assert old.read_bytes() == content
    assert 3 * MIB <= report.bytes_written <= 4 * MIB
    assert report.bytes_written + report.bytes_kept == SIZE
    refused = site.dpac("restore", "shop", "--member", "disk", "--to", str(source), "--over", status=2)
    assert "overlaps" in refused.stderr
    with old.open("rb") as user:
        fcntl.flock(user, fcntl.LOCK_EX)
        refused = site.dpac("restore", "shop", "--member", "disk", "--to", str(old), "--over", status=None)
    assert "in use" in refused.stderr
