"""Mounted volumes are copied behind their clients: after that neither their target nor a restart matters."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpac_api.models import Mount
from tests.e2e.site import MIB, LiveSite, connected, contents, read, until, write

pytestmark = pytest.mark.e2e
SIZE = 8 * MIB
EIO = 5


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """One site with a protected volume for all of these tests."""
    with LiveSite(tmp_path_factory.mktemp("mounts")) as site:
        site.start()
        site.protect_volume("shop", SIZE)
        yield site


@pytest.fixture
def site(started: LiveSite) -> Iterator[LiveSite]:
    """The site, with its logs in the report of a failure."""
    yield started
    started.print_logs()


def marked(site: LiveSite, tag: str) -> str:
    """A checkpoint of now, by its selector."""
    site.dpac_json("checkpoint", "shop", "--tag", tag)
    return f"tag:{tag}"


def listed(site: LiveSite, mount_id: str) -> Mount:
    """A mount as `dpac mounts` shows it."""
    (found,) = [item for item in site.dpac_json("mounts")["items"] if item["id"] == mount_id]
    return Mount.model_validate(found)


@contextmanager
def without(target: Path) -> Iterator[None]:
    """The target is away."""
    target.rename(target.with_name("away"))
    try:
        yield
    finally:
        target.with_name("away").rename(target)


def test_a_mount_that_is_copied_outlives_its_target_and_the_worker(site: LiveSite, seed: int) -> None:
    """With the target away: reads, writes and kill -9 of the worker as ever. One that is not copied gives EIO, and says why."""
    chance, target = random.Random(seed), site.folder / "copies"
    with connected(site.uri("shop/disk")) as disk:
        for _ in range(100):
            write(disk, chance.randrange(0, SIZE, 4096), chance.randbytes(4096))
        selector = marked(site, "copied")
        live = read(disk, 0, SIZE)
    site.wait_for_checkpoint("shop", selector)
    kept = site.rest.mount("shop", at=selector)
    bare = site.rest.mount("shop", at=selector, hydrate=False)
    until(lambda: listed(site, kept.id).hydrated_fraction == 1.0, "the mount is copied")
    assert listed(site, bare.id).hydrated_fraction is None
    with without(target):
        assert contents(kept.members["disk"]) == live
        with connected(kept.members["disk"]) as disk:
            write(disk, 4096, b"w" * 8192)
            site.kill("worker-0")
        until(lambda: site.serves(f"mount-{kept.id}/disk"), "the copied mount is served again")
        assert contents(kept.members["disk"]) == live[:4096] + b"w" * 8192 + live[12288:]
    until(lambda: site.serves(f"mount-{bare.id}/disk"), "the other one is served with its target")
    with without(target):
        site.kill("worker-0")
        until(lambda: listed(site, bare.id).problem, "it says why it is not served")
    until(lambda: site.serves(f"mount-{bare.id}/disk"), "it is opened again by itself once the target is back")
    with connected(bare.members["disk"]) as disk, without(target):
        began = time.monotonic()
        disk.read(1, 0, SIZE)
        assert disk.reply().error == EIO
        assert time.monotonic() - began < 30
    assert contents(bare.members["disk"]) == live
    for mount in (kept, bare):
        site.dpac("unmount", mount.id)
    assert list(site.site.mounts.iterdir()) == []


def resident_bytes(site: LiveSite) -> int:
    """Memory of the worker."""
    status = Path(f"/proc/{site.pids()['worker-0']}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def test_twenty_checkpoints_are_open_at_once_and_cost_little(site: LiveSite) -> None:
    """Each has its own content; memory stays bounded; all are listed, and all are gone after."""
    selectors, expected = [], []
    with connected(site.uri("shop/disk")) as disk:
        for number in range(20):
            write(disk, number * 8192, bytes([number + 1]) * 8192)
            selectors.append(marked(site, f"many-{number}"))
            expected.append(read(disk, 0, SIZE))
    site.wait_for_checkpoint("shop", selectors[-1])
    before = resident_bytes(site)
    mounts = [site.rest.mount("shop", at=selector) for selector in selectors]
    for mount, content in zip(mounts, expected, strict=True):
        assert contents(mount.members["disk"]) == content
    grown = resident_bytes(site) - before
    print(f"20 mounts: the worker grew by {grown / MIB:.1f} MiB")
    assert grown < 100 * MIB
    assert {mount.id for mount in site.rest.mounts()} == {mount.id for mount in mounts}
    for mount in mounts:
        site.rest.unmount(mount.id)
    assert site.rest.mounts() == []
    assert list(site.site.mounts.iterdir()) == []
