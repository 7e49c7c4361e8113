"""Immutable copies: whoever has the writer's keys to the bucket cannot take a recovery point away."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dpac_engine.control.site import Site
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.keys import Keyring
from dpac_engine.io.stores.counting import Meters
from dpac_engine.wiring import open_locks, reader_opener, stored_groups
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, until, write
from tests.s3_server import S3Server, attack, s3_server

pytestmark = pytest.mark.e2e
SIZE = 8 * MIB
HOUR = timedelta(hours=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server with a bucket that locks objects, and one that does not."""
    with s3_server(tmp_path / "s3", keeps_versions=True) as running:
        running.make_bucket("vault", locks=True)
        running.make_bucket("plain")
        yield running


@pytest.fixture
def site(tmp_path: Path, server: S3Server) -> Iterator[LiveSite]:
    """A site with the locked bucket as its target, and its logs in the report of a failure."""
    with LiveSite(tmp_path / "site") as made:
        made.start()
        add(made, server, "copies", "vault")
        yield made
        made.print_logs()


def add(site: LiveSite, server: S3Server, name: str, bucket: str, *more: str) -> None:
    """A target with locks."""
    where = ["--bucket", bucket, "--prefix", "fra", "--endpoint", server.endpoint]
    keys = ["--credentials", f"file:{server.keys_file}"]
    site.dpac("target", "add", name, *where, *keys, *(more or ("--object-lock", "compliance")))


def test_an_attack_with_the_writers_keys_takes_no_checkpoint_away(site: LiveSite, server: S3Server, seed: int) -> None:
    """Every object is overwritten and deleted, twice; every checkpoint comes back byte for byte, and the leg goes on."""
    checks = site.dpac_json("target", "check", "copies")
    assert checks["checks"]["object-lock"] == "ok"
    assert checks["ok"]
    disk = site.folder / "disk.raw"
    chance = random.Random(seed)
    content = bytearray(chance.randbytes(SIZE))
    disk.write_bytes(content)
    member = {"disk": {"kind": "volume", "path": str(disk)}}
    site.protect("shop", member, leg={"retention": {"immutable_for": "1h"}})
    spec = server.spec("vault", prefix="fra", object_lock="compliance")
    expected: dict[str, bytes] = {}

    def checkpoint(tag: str) -> None:
        at = chance.randrange(SIZE - 64 * 1024) // 4096 * 4096
        data = chance.randbytes(64 * 1024)
        with connected(site.uri("shop/disk")) as client:
            write(client, at, data)
            flush(client)
        content[at : at + len(data)] = data
        site.dpac("checkpoint", "shop", "--tag", tag)
        expected[tag] = bytes(content)
        site.wait_for_checkpoint("shop", f"tag:{tag}")

    for round_ in range(2):
        for number in range(3):
            checkpoint(f"r{round_}n{number}")
        kept = attack(spec)
        assert kept >= 10, "everything that was written is locked"
        for tag, wanted in expected.items():
            with site.mounted("shop", f"tag:{tag}", "disk") as mount:
                assert contents(mount.members["disk"]) == wanted, tag
    site.dpac("verify", "shop")

    # Somebody who has only the bucket and the site's keys, and never read it before:
    data = Site.read(Path(site.data))
    [(uid, found)] = list(stored_groups(data)(spec))
    assert getattr(found, "name", found) == "shop"
    reader = reader_opener(Keyring(data.keys), Meters(SystemClock()))(uid, spec)
    reader.refresh()
    for tag, wanted in expected.items():
        assert reader.image(reader.resolve(f"tag:{tag}")).volume(1).read(0, SIZE) == wanted, tag


def test_how_long_copies_are_locked_is_shown_and_a_purge_waits_for_it(site: LiveSite, server: S3Server) -> None:
    """Status, checkpoints and metrics say until when; a purge is refused, naming it, and changes nothing."""
    before = datetime.now(UTC)
    disk = site.folder / "disk.raw"
    disk.write_bytes(b"\1" * SIZE)
    site.protect("shop", {"disk": {"kind": "volume", "path": str(disk)}}, leg={"retention": {"immutable_for": "14d"}})
    site.dpac("checkpoint", "shop", "--tag", "one")
    until(lambda: site.rest.group_status("shop").legs["copies"].immutable_until, "the locks are known")
    locked = site.rest.group_status("shop").legs["copies"].immutable_until
    assert locked is not None
    assert timedelta(days=20.9) < locked - before < timedelta(days=21.1), "half as long again as asked for"
    shown = site.rest.checkpoints("shop", tag="one").items[0].targets["copies"]
    assert shown.locked_until == locked
    assert "locked until" in site.dpac("checkpoints", "shop").stdout.replace("\n", " ")
    assert 'dpac_leg_immutable_until_timestamp_seconds{group="shop"' in site.rest.metrics()
    assert not [one for one in site.rest.group_status("shop").conditions if one.type == "ImmutabilityBehind"]

    refused = site.dpac("group", "delete", "shop", "--on-destroy", "purge", "--yes", status=4)
    assert f"locked until {locked:%Y-%m}" in refused.stderr.replace("\n", " ")
    assert site.rest.group_status("shop").protected
    with site.mounted("shop", "tag:one", "disk") as mount:
        assert contents(mount.members["disk"]) == b"\1" * SIZE

    group = next(iter(site.rest.groups()))
    locks = open_locks(server.spec("vault", prefix="fra", object_lock="compliance"), group.uid, Meters(SystemClock()))
    assert locks.end_ns("repository.json") / 1e9 > (before + timedelta(days=20.9)).timestamp()


def test_immutable_copies_are_asked_for_only_where_they_can_be_had(site: LiveSite, server: S3Server) -> None:
    """A folder, or a bucket that is not declared to lock, is refused by the property; one that cannot lock ships nothing."""
    disk = site.folder / "disk.raw"
    disk.write_bytes(bytes(MIB))
    site.dpac("target", "add", "folder", "--path", str(site.folder / "folder"))
    add(site, server, "loose", "plain", "--onsite")
    add(site, server, "unfit", "plain-too")
    server.make_bucket("plain-too")
    locked = {"retention": {"immutable_for": "14d"}}
    declaration = {"members": {"disk": {"kind": "volume", "path": str(disk)}}}
    site.protect("shop", declaration["members"])
    for target, remedy in (("folder", "S3Target"), ("loose", "object_lock")):
        with pytest.raises(Exception, match=remedy) as refused:
            apply(site, target, locked)
        assert "spec.replication.copies.retention.immutable_for" in str(refused.value) + str(
            getattr(refused.value, "property_path", "")
        )
    site.apply_leg("shop", {"rpo": "1s", **locked})
    refused_change = site.dpac(
        "target", "add", "copies", "--bucket", "vault", "--prefix", "fra", "--endpoint", server.endpoint, status=4
    )
    assert "object_lock" in refused_change.stderr
    until(
        lambda: (
            (site.rest.group_status("shop").legs["copies"].immutable_until or datetime.now(UTC))
            > datetime.now(UTC) + 24 * HOUR
        ),
        "what was there before locks were asked for is locked now",
    )
    site.apply_leg("shop", {"target": "unfit", "rpo": "1s"})
    until(
        lambda: "TargetUnfit" in {one.type for one in site.rest.group_status("shop").conditions},
        "a bucket that cannot lock is told",
    )
    assert not [path for path in (server.buckets / "plain-too").rglob("*") if path.is_file()], "nothing was shipped"


def apply(site: LiveSite, target: str, leg: dict[str, object]) -> None:
    """Declare the leg to another target, by REST."""
    spec = site.rest.group("shop").spec
    wanted = spec.model_dump(mode="json")
    wanted["replication"]["copies"] |= {"target": target, **leg}
    site.rest.put_group("shop", type(spec).model_validate(wanted))
