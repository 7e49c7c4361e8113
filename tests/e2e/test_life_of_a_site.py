"""A site's life by the command line alone, with real processes: declare, prove, damage, delete, resume, purge."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.site import MIB, LiveSite, connected, flush, until, write

pytestmark = pytest.mark.e2e
SIZE = 8 * MIB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site of one's own, with its logs in the report of a failure."""
    with LiveSite(tmp_path / "life") as made:
        made.start()
        yield made
        made.print_logs()


def declare(site: LiveSite, seed: int) -> bytes:
    """A group of a volume and a directory, with data in both; returns the volume's content."""
    folder = site.folder / "papers"
    folder.mkdir()
    (folder / "note.txt").write_text("as it was")
    disk = {"kind": "volume", "path": str(site.folder / "disk.raw"), "size": f"{SIZE // MIB}MiB"}
    site.protect("shop", {"disk": disk, "papers": {"kind": "directory", "path": str(folder)}})
    content = random.Random(seed).randbytes(MIB)
    with connected(site.uri("shop/disk")) as client:
        write(client, 4 * MIB, content)
        flush(client)
    site.dpac("checkpoint", "shop", "--tag", "filled")
    site.wait_for_checkpoint("shop", "tag:filled")
    return content


def segments(site: LiveSite) -> list[Path]:
    """The largest objects at the target first."""
    files = [path for path in (site.folder / "copies").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def status(site: LiveSite) -> dict[str, Any]:
    found: dict[str, Any] = site.dpac_json("status", "shop")
    return found


def test_what_is_declared_is_drilled_restored_and_verified(site: LiveSite, seed: int) -> None:
    """A signed report, the very bytes, and damage that is found and never served."""
    content = declare(site, seed)
    report = site.folder / "report.json"
    site.dpac("drill", "shop", "--at", "tag:filled", "--rto", "5m", "--report", str(report))
    site.dpac("drill", "--verify-report", str(report))
    told = json.loads(report.read_text())
    assert told["passed"] is True
    assert told["members"]["disk"]["checked_bytes"] >= len(content)
    assert site.dpac_json("mounts")["items"] == [], "the drill's own export is closed"

    site.dpac("restore", "shop", "--member", "disk", "--at", "tag:filled", "--to", str(site.folder / "restored.raw"))
    assert (site.folder / "restored.raw").read_bytes()[4 * MIB : 5 * MIB] == content
    site.dpac("restore", "shop", "--member", "papers", "--to", str(site.folder / "restored"))
    assert (site.folder / "restored" / "note.txt").read_text() == "as it was"

    site.dpac("verify", "shop")
    assert site.dpac_json("checkpoints", "shop", "--tag", "filled")["items"][0]["targets"]["copies"]["verified_at"]
    victim = segments(site)[0]
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    (finding,) = site.dpac_json("verify", "shop", status=20)["result"]["findings"]
    assert victim.name in finding["object"] or finding["object"] in str(victim)
    site.dpac("drill", "shop", "--at", "tag:filled", "--no-wait")
    until(lambda: site.rest.operations(kind="Drill")[0].finished, "the drill has ended")
    assert site.rest.operations(kind="Drill")[0].result.get("passed", False) is False


def test_a_deleted_group_comes_back_with_its_recovery_points_and_a_purged_one_leaves_nothing(
    site: LiveSite, seed: int
) -> None:
    """Delete keeps, apply resumes under the same uid, purge deletes at the target."""
    content = declare(site, seed)
    uid = site.dpac_json("group", "show", "shop")["uid"]
    site.dpac("group", "delete", "shop")
    site.dpac("status", "shop", status=3)
    site.dpac("restore", "shop", "--member", "disk", "--at", "tag:filled", "--to", str(site.folder / "after.raw"))
    assert (site.folder / "after.raw").read_bytes()[4 * MIB : 5 * MIB] == content
    site.dpac("target", "delete", "copies")
    assert site.dpac_json("target", "list")["items"] == []

    site.dpac("target", "add", "copies", "--path", str(site.folder / "copies"))
    site.dpac("group", "apply", "-f", str(site.folder / "shop.yaml"))
    assert site.dpac_json("group", "show", "shop")["uid"] == uid
    until(lambda: status(site)["protected"], "the resumed group is protected")
    assert site.dpac_json("checkpoints", "shop", "--tag", "filled")["items"]

    site.dpac("group", "delete", "shop", "--on-destroy", "purge", "--yes")
    until(lambda: not segments(site), "nothing is left at the target")
    until(lambda: not (site.data / "groups" / uid).exists(), "nothing is left on the host")
    assert site.dpac_json("group", "list", "--retained")["items"] == []
    assert (site.folder / "disk.raw").stat().st_size == SIZE, "the member itself is the user's"


def test_the_key_is_escrowed_and_every_face_stops_warning(site: LiveSite, seed: int) -> None:
    """KeyNotEscrowed ends when a copy was read back, without a restart."""
    declare(site, seed)
    assert "KeyNotEscrowed" in {condition["type"] for condition in status(site)["conditions"]}
    copy = site.folder / "key.json"
    site.dpac("key", "export", "--to", str(copy), "--data", str(site.data))
    site.dpac("key", "confirm", str(copy), "--data", str(site.data))
    assert "KeyNotEscrowed" not in {condition["type"] for condition in status(site)["conditions"]}
    assert "KeyNotEscrowed" not in site.rest.metrics()


def test_an_operation_that_dies_with_control_is_cleaned_up_by_the_next_one(site: LiveSite, seed: int) -> None:
    """kill -9 of control in the middle: failed or done, never half."""
    content = declare(site, seed)
    to = site.folder / "restored.raw"
    begun = site.dpac_json("restore", "shop", "--member", "disk", "--to", str(to), "--at", "tag:filled", "--no-wait")
    report = json.loads(site.site.supervisor_file.read_text())
    os.kill(report["children"]["control"]["pid"], signal.SIGKILL)
    ended = site.rest.wait(begun["id"], timeout_seconds=60)
    assert not list(site.folder.glob(".restored.raw*"))
    if ended.phase == "Succeeded":
        assert to.read_bytes()[4 * MIB : 5 * MIB] == content
    else:
        assert "Start it again" in str(ended.error)
        if to.exists():  # killed between the rename and its note
            assert to.read_bytes()[4 * MIB : 5 * MIB] == content


def test_an_escrow_key_opens_the_target_and_ends_the_warning(site: LiveSite, seed: int) -> None:
    """Declared with a label by a file, shown, and proven with neither backend nor site keys at hand."""
    declare(site, seed)
    file = site.folder / "escrow.key"
    public = site.dpac("key", "generate-escrow", "--to", str(file)).stdout.strip()
    shown = site.dpac_json("group", "show", "shop")
    spec = {**shown["spec"], "encryption": {"escrow": [public]}, "labels": {"environment": "production"}}
    (site.folder / "shop.json").write_text(json.dumps({"name": "shop", **spec}))
    site.dpac("group", "apply", "-f", str(site.folder / "shop.json"))
    until(lambda: status(site)["conditions"] == [], "the escrow key opens the target and nothing is to be said")
    assert "environment=production" in site.dpac("status", "shop").stdout
    assert "environment=production" in site.dpac("group", "list").stdout

    copies = str(site.folder / "copies")
    site.dpac("stop", "--data", str(site.data))
    (found,) = site.dpac_json("key", "check-escrow", "--private", str(file), "--target-path", copies)["groups"]
    assert (found["group"], found["group_uid"], found["problem"]) == ("shop", shown["uid"], None)
    assert found["checkpoint"].startswith("ck-1-")
    other = site.folder / "other.key"
    site.dpac("key", "generate-escrow", "--to", str(other))
    refused = site.dpac("key", "check-escrow", "--private", str(other), "--target-path", copies, status=3)
    assert "No copy of data key" in refused.stdout
    private = file.read_text().splitlines()[-1]
    for path in [*(site.data / "log").iterdir(), *site.data.glob("groups/*/assignment.json")]:
        assert private not in path.read_text(errors="replace")
