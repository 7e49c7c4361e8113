"""Getting it back: what the order application and a disk had at a checkpoint is in its mounts and restores, no less."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dpac_api.models import Checkpoint
from examples.quickstart.orders import read_acknowledged
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, read, until, write

pytestmark = pytest.mark.e2e
ORDERS = Path(__file__).parents[2] / "examples" / "quickstart" / "orders.py"
SIZE = 8 * MIB


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """One site for all of these tests."""
    with LiveSite(tmp_path_factory.mktemp("recovery")) as site:
        site.start()
        yield site


@pytest.fixture
def site(started: LiveSite) -> Iterator[LiveSite]:
    """The site, with its logs in the report of a failure."""
    yield started
    started.print_logs()


class Shop:
    """The order application at work, and what it has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "orders"
        self._log = folder / "acknowledged.log"
        self.folder.mkdir()

    @contextmanager
    def taking_orders(self) -> Iterator[None]:
        """It writes all the time, until the end."""
        command = ["run", "--database", str(self.folder / "orders.db"), "--acknowledged", str(self._log)]
        process = subprocess.Popen([sys.executable, str(ORDERS), *command, "--per-second", "50"])
        try:
            self.wait_for_orders(10)
            yield
        finally:
            process.terminate()
            process.wait(60)

    @property
    def acknowledged(self) -> list[tuple[int, datetime]]:
        """(order, when its customer was told), so far."""
        return list(read_acknowledged(self._log)) if self._log.exists() else []

    def wait_for_orders(self, count: int) -> None:
        """Until that many more are acknowledged."""
        goal = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= goal, f"{goal} orders are taken")


def orders_in(folder: Path) -> dict[int, datetime]:
    """Order -> when it was placed, in a copy of the database whose integrity check passes."""
    with closing(sqlite3.connect(folder / "orders.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {
            order: datetime.fromisoformat(placed) for order, placed in database.execute("SELECT id, placed FROM orders")
        }


@dataclass
class Marked:
    """A checkpoint somebody asked for, and what the application had acknowledged around it."""

    selector: str
    before: list[int]
    """Acknowledged when it was asked for."""
    after: list[int]
    """Acknowledged when it was taken."""

    def assert_holds_exactly(self, orders: set[int]) -> None:
        """No order acknowledged before it is missing, and none that was placed after it is there."""
        assert set(self.before) <= orders
        # One order may have been committed and not yet acknowledged when the command returned.
        assert max(orders) <= max(self.after) + 1
        assert orders == set(range(1, max(orders) + 1))


@pytest.fixture
def shop(site: LiveSite, tmp_path: Path) -> Iterator[Shop]:
    """An order application beside a disk, both protected as `shop`, writing all the time."""
    shop = Shop(tmp_path)
    with shop.taking_orders():
        site.protect(
            "shop",
            {
                "orders": {"kind": "directory", "path": str(shop.folder), "blueprint": "sqlite"},
                "disk": {"kind": "volume", "path": str(tmp_path / "disk.raw"), "size": f"{SIZE // 1024}KiB"},
            },
        )
        yield shop
    site.rest.delete_group("shop", on_destroy="purge")


def take(site: LiveSite, shop: Shop, tag: str) -> Marked:
    """`dpac checkpoint shop --app --tag TAG`."""
    before = [order for order, _ in shop.acknowledged]
    taken = site.dpac_json("checkpoint", "shop", "--app", "--tag", tag)
    after = [order for order, _ in shop.acknowledged]
    assert taken["consistency"] == "app"
    assert taken["cuts"]["orders"]["kind"] == "barrier"
    return Marked(f"tag:{tag}", before, after)


def test_three_checkpoints_mounted_at_once_hold_what_was_acknowledged_by_then(site: LiveSite, shop: Shop) -> None:
    """Application-consistent checkpoints while orders come in: each has all orders before it and none after it."""
    taken = []
    for tag in ("morning", "noon", "evening"):
        shop.wait_for_orders(60)
        taken.append(take(site, shop, tag))
    shop.wait_for_orders(20)
    with ExitStack() as stack:
        mounts = [stack.enter_context(site.mounted("shop", marked.selector, "orders")) for marked in taken]
        found = [orders_in(Path(mount.members["orders"])) for mount in mounts]
        for marked, orders in zip(taken, found, strict=True):
            marked.assert_holds_exactly(set(orders))
        assert len(found[0]) < len(found[1]) < len(found[2])
    assert orders_in(shop.folder)


def assert_holds_its_cut(site: LiveSite, shop: Shop, checkpoint: Checkpoint) -> None:
    """The database in a checkpoint is whole, has every order acknowledged by the cut's `as_of`, and none placed later."""
    with site.mounted("shop", checkpoint.id, "orders") as mount:
        orders = orders_in(Path(mount.members["orders"]))
    cut = checkpoint.cuts["orders"]
    assert cut.kind in ("observed", "barrier")
    assert cut.as_of is not None
    assert cut.as_of <= checkpoint.time
    # The log's times are cut to milliseconds.
    by_then = {order for order, told in shop.acknowledged if told < cut.as_of - timedelta(milliseconds=1)}
    assert by_then
    assert by_then <= set(orders), f"{checkpoint.id}, as of {cut.as_of}, lacks {by_then - set(orders)}"
    assert max(orders.values()) <= checkpoint.time


def test_every_ordinary_checkpoint_holds_what_was_acknowledged_before_its_cut(site: LiveSite, shop: Shop) -> None:
    """Checkpoints nobody asked for: each database is whole, and has every order acknowledged by the cut's `as_of`."""
    began = datetime.now(UTC)
    until(lambda: len(site.rest.checkpoints("shop", after=began).items) >= 5, "five checkpoints have passed")
    for checkpoint in site.rest.checkpoints("shop", after=began).items[:5]:
        assert_holds_its_cut(site, shop, checkpoint)


def test_captures_go_on_after_the_worker_was_killed(site: LiveSite, shop: Shop, seed: int) -> None:
    """kill -9 at random moments of captures: checkpoints before and after it hold their cuts, and the cut moves on."""
    chance = random.Random(seed)
    for _ in range(3):
        shop.wait_for_orders(chance.randrange(1, 60))
        before = site.wait_for_checkpoint("shop")
        site.kill("worker-0")
        killed = datetime.now(UTC)
        after = site.wait_for_checkpoint("shop", after=killed, as_of_member="orders")
        for checkpoint in (before, after):
            assert_holds_its_cut(site, shop, checkpoint)


def test_restores_are_what_the_mount_shows(site: LiveSite, shop: Shop, tmp_path: Path, seed: int) -> None:
    """A directory restored to a new path is whole to the last order; a volume restored to a file is its mount, byte for byte."""
    chance = random.Random(seed)
    with connected(site.uri("shop/disk")) as disk:
        for _ in range(200):
            write(disk, chance.randrange(0, SIZE // 2, 512), chance.randbytes(chance.choice([512, 4096, 65536])))
        live = read(disk, 0, SIZE)
        marked = take(site, shop, "restored")
        write(disk, 0, bytes(SIZE // 4))
    site.wait_for_checkpoint("shop", marked.selector)
    site.dpac("restore", "shop", "--at", marked.selector, "--member", "orders", "--to", str(tmp_path / "back"))
    raw = tmp_path / "back.raw"
    site.dpac("restore", "shop", "--at", marked.selector, "--member", "disk", "--to", str(raw))
    with site.mounted("shop", marked.selector) as mount:
        assert orders_in(Path(mount.members["orders"])) == orders_in(tmp_path / "back")
        assert raw.read_bytes() == contents(mount.members["disk"]) == live
    marked.assert_holds_exactly(set(orders_in(tmp_path / "back")))
    command = ["check", str(tmp_path / "back" / "orders.db"), "--acknowledged", str(tmp_path / "acknowledged.log")]
    checked = subprocess.run([sys.executable, str(ORDERS), *command], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    refused = site.dpac("restore", "shop", "--member", "disk", "--to", str(raw), status=2)
    assert str(raw) in refused.stderr
    assert raw.read_bytes() == live


def test_what_is_written_to_a_mount_stays_in_it_and_survives_the_worker(site: LiveSite, shop: Shop) -> None:
    """Writes to a mounted volume and folder change neither the checkpoint nor the live data, and outlive kill -9."""
    with connected(site.uri("shop/disk")) as disk:
        write(disk, 0, b"\x11" * 65536)
        write(disk, 2 * MIB, b"\x12" * 4096)
        marked = take(site, shop, "overlaid")
        live = read(disk, 0, SIZE)
    with site.mounted("shop", marked.selector) as mount:
        with connected(mount.members["disk"]) as disk:
            write(disk, 512, b"\x22" * 1024)
            write(disk, 3 * MIB, b"\x33" * 8192)
            unsynced = read(disk, 0, SIZE)
            flush(disk)
            write(disk, 5 * MIB, b"\x44" * 512)
        expected = bytearray(unsynced)
        expected[5 * MIB : 5 * MIB + 512] = b"\x44" * 512
        (Path(mount.members["orders"]) / "note").write_text("mine")
        site.kill("worker-0")
        until(lambda: site.serves("shop/disk"), "the volume is served again")
        until(lambda: site.serves(f"mount-{mount.id}/disk"), "the mount is served again")
        assert contents(mount.members["disk"]) == bytes(expected)
        assert contents(site.uri("shop/disk")) == live
        assert (Path(mount.members["orders"]) / "note").read_text() == "mine"
        assert [each.id for each in site.rest.mounts()] == [mount.id]
        with site.mounted("shop", marked.selector) as again:
            assert contents(again.members["disk"]) == live
            assert not (Path(again.members["orders"]) / "note").exists()
            marked.assert_holds_exactly(set(orders_in(Path(again.members["orders"]))))
    assert not (shop.folder / "note").exists()
    assert site.rest.mounts() == []
    assert list(site.site.mounts.iterdir()) == []
