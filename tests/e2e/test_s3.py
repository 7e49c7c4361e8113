"""A site whose copies go to a real S3 server, by the command line alone: seed, ship, mount, restore, drill, verify, purge."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpac_engine.io.stores.s3_client import make_client
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, until, write
from tests.s3_server import S3Server, s3_server

pytestmark = pytest.mark.e2e
SIZE = 24 * MIB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """The S3 server, with the bucket."""
    with s3_server(tmp_path / "s3") as running:
        running.make_bucket("shop-copies")
        yield running


@pytest.fixture
def site(tmp_path: Path, server: S3Server) -> Iterator[LiveSite]:
    """A site with the target, and its logs in the report of a failure."""
    with LiveSite(tmp_path / "site") as made:
        made.start()
        options = ["--bucket", "shop-copies", "--prefix", "fra", "--endpoint", server.endpoint]
        made.dpac(
            "target",
            "add",
            "copies",
            *options,
            "--price",
            "storage_gib_month=2.0",
            "--credentials",
            f"file:{server.keys_file}",
        )
        yield made
        made.print_logs()


def objects(server: S3Server) -> list[Path]:
    """What lies in the bucket."""
    return [path for path in (server.buckets / "shop-copies").rglob("*") if path.is_file()]


def test_a_group_lives_in_a_bucket(site: LiveSite, server: S3Server, seed: int) -> None:
    """Everything that a folder can do: and the keys of the bucket are nowhere in the site."""
    checks = site.dpac_json("target", "check", "copies")
    assert checks["ok"] is True
    assert checks["checks"]["create-only"] == "ok"
    assert objects(server) == [], "a check leaves nothing behind"

    disk = site.folder / "disk.raw"
    chance = random.Random(seed)
    before = chance.randbytes(SIZE)
    disk.write_bytes(before)  # the seed: what was there first
    papers = site.folder / "papers"
    papers.mkdir()
    (papers / "note.txt").write_text("as it was")
    members = {
        "disk": {"kind": "volume", "path": str(disk)},
        "papers": {"kind": "directory", "path": str(papers)},
    }
    site.protect("shop", members)
    content = chance.randbytes(2 * MIB)
    with connected(site.uri("shop/disk")) as client:
        write(client, 4 * MIB, content)
        flush(client)
    site.dpac("checkpoint", "shop", "--tag", "filled")
    expected = before[: 4 * MIB] + content + before[6 * MIB :]

    with site.mounted("shop", "tag:filled", "disk") as mount:
        assert contents(mount.members["disk"]) == expected
    site.dpac("restore", "shop", "--member", "disk", "--at", "tag:filled", "--to", str(site.folder / "restored.raw"))
    assert (site.folder / "restored.raw").read_bytes() == expected
    site.dpac("restore", "shop", "--member", "papers", "--to", str(site.folder / "restored"))
    assert (site.folder / "restored" / "note.txt").read_text() == "as it was"
    report = site.folder / "report.json"
    site.dpac("drill", "shop", "--at", "tag:filled", "--rto", "5m", "--report", str(report))
    assert json.loads(report.read_text())["passed"] is True
    site.dpac("verify", "shop")

    usage = site.dpac_json("target", "show", "copies")["usage"]
    assert usage["stored_bytes"] > SIZE
    assert usage["traffic"]["sent_bytes"] > SIZE
    assert usage["traffic"]["received_bytes"] > 3 * SIZE, "a restore, a drill and a verification have read it"
    assert usage["traffic"]["failed_requests"] == 0
    assert usage["monthly_cost"]["storage"] == round(usage["stored_bytes"] / 2**30 * 2.0, 4)
    assert 'dpac_target_requests_total{class="write",target="copies"}' in site.rest.metrics()

    assert {path.relative_to(server.buckets).parts[:3] for path in objects(server)} == {("shop-copies", "fra", "g")}
    told = [path.read_bytes() for path in site.folder.rglob("*") if path.is_file() and path.suffix != ".raw"]
    assert not [text for text in told if server.secret_key.encode() in text]

    site.dpac("group", "delete", "shop", "--on-destroy", "purge", "--yes")
    until(lambda: not objects(server), "nothing is left in the bucket")


def upload(folder: Path, server: S3Server) -> None:
    """Bring a folder into the bucket as `aws s3 cp --recursive` does."""
    client = make_client(server.spec("shop-copies"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = f"fra/g/{path.relative_to(folder)}"
        client.put_object(Bucket="shop-copies", Key=key, Body=path.read_bytes())


def test_damage_in_a_bucket_is_found_and_never_served(site: LiveSite, server: S3Server, seed: int) -> None:
    """One flipped bit in a stored object: `verify` names it, a drill does not pass."""
    disk = site.folder / "disk.raw"
    disk.write_bytes(random.Random(seed).randbytes(SIZE))
    site.protect("shop", {"disk": {"kind": "volume", "path": str(disk)}})
    site.dpac("verify", "shop")
    victim = max((path for path in objects(server) if "/s/" in str(path)), key=lambda path: path.stat().st_size)
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    with victim.open(
        "r+b"
    ) as file:  # in place: the server keeps checksums beside the bytes, and must not be asked for them
        file.write(damaged)
    (finding,) = site.dpac_json("verify", "shop", status=20)["result"]["findings"]
    assert victim.name in finding["object"]


def test_copies_that_were_uploaded_are_what_a_leg_to_a_bucket_starts_from(
    site: LiveSite, server: S3Server, seed: int
) -> None:
    """A folder target's group is brought to the bucket by other means; the leg then sends what differs, by hashes."""
    disk = site.folder / "disk.raw"
    chance = random.Random(seed)
    disk.write_bytes(chance.randbytes(SIZE))
    for name in ("disk", "home"):
        site.dpac("target", "add", name, "--path", str(site.folder / name))
    legs = {name: {"target": name, "rpo": "1s"} for name in ("disk", "home", "copies")}
    spec: dict[str, Any] = {
        "members": {"disk": {"kind": "volume", "path": str(disk)}},
        "replication": {name: legs[name] for name in ("disk", "home")},
        "journal": {"history": "1h", "spool_max": "512MiB"},
    }
    site.protect_to("shop", spec)
    site.dpac("checkpoint", "shop", "--tag", "before")
    site.protect_to("shop", {**spec, "replication": {"home": legs["home"]}})
    before = disk.read_bytes()
    expected = bytearray(before)
    upload(site.folder / "disk" / "g", server)
    known = {path.name for path in objects(server)}

    with connected(site.uri("shop/disk")) as client:
        for _ in range(8):  # so much that the spool has let go of what the bucket would need
            for at in range(0, SIZE, MIB):
                write(client, at, bytes(expected[at : at + MIB]))
        for number in chance.sample(range(SIZE // 65536), 12):
            expected[number * 65536 : number * 65536 + 4096] = chance.randbytes(4096)
            write(client, number * 65536, bytes(expected[number * 65536 : number * 65536 + 4096]))
        flush(client)
    site.dpac("checkpoint", "shop", "--tag", "changed")
    site.wait_drained("shop")
    site.protect_to("shop", {**spec, "replication": {"home": legs["home"], "copies": legs["copies"]}})
    site.dpac("checkpoint", "shop", "--tag", "there")
    new = sum(path.stat().st_size for path in objects(server) if path.name not in known)
    assert 12 * 4096 < new <= 1.1 * 12 * 65536 + MIB // 2, f"{new}, seed {seed}"
    for tag, content in (("there", bytes(expected)), ("before", before)):
        there = site.folder / f"{tag}.raw"
        site.dpac("restore", "shop", "--member", "disk", "--at", f"tag:{tag}", "--target", "copies", "--to", str(there))
        assert there.read_bytes() == content, f"{tag}, seed {seed}"
