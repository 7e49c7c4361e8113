"""The disk of the spool full: the application writes on, the group says so, and journals again once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpac_api.models import DataState, SlaState
from tests.e2e.ledger import BLOCK_BYTES, Ledger
from tests.e2e.site import LiveSite, contents, until

pytestmark = pytest.mark.e2e
BLOCKS = 4096


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site whose data folder lies on a file system of 256 MiB; the volume and its copies lie elsewhere."""
    disk = tmp_path / "site"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=700", "tmpfs", str(disk)]
    done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        with LiveSite(tmp_path) as site:
            site.start()
            site.protect_volume("shop", BLOCKS * BLOCK_BYTES)
            yield site
            site.print_logs()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def conditions(site: LiveSite) -> set[str]:
    """Of the group now."""
    return {each.type for each in site.rest.group_status("shop").conditions}


def fill(path: Path) -> None:
    """Write zeroes until the disk takes no more."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(2**20)):
                pass
        except OSError:
            return


def test_a_full_disk_and_room_again(site: LiveSite, seed: int) -> None:
    """No write is refused and none is lost; after the gap, checkpoints hold the volume again, without a restart."""
    ballast = site.data / "ballast"
    with Ledger(site.uri("shop/disk"), BLOCKS, seed) as ledger:
        ledger.wait_for(50)
        fill(ballast)
        until(lambda: "JournalFailed" in conditions(site) or "StateNotStored" in conditions(site), "it is said", 60)
        until(lambda: "JournalFailed" in conditions(site), "the journal has met the full disk", 100)
        status = site.rest.group_status("shop")
        assert (status.data_state, status.sla_state, status.protected) == (
            DataState.STALLED,
            SlaState.RPO_NOT_MET,
            False,
        )
        ledger.wait_for(200)
        worker = site.pids()["worker-0"]
        ballast.unlink()
        until(lambda: "JournalFailed" not in conditions(site), "it journals again", 90)
        ledger.wait_for(100)
        until(lambda: site.rest.group_status("shop").protected, "shop is protected again")
        assert site.pids()["worker-0"] == worker
    assert ledger.refusals == []
    assert ledger.problems(contents(site.uri("shop/disk"))) == []
    tagged = site.rest.take_checkpoint("shop", tag="after")
    with site.mounted("shop", tagged.id) as mount:
        assert ledger.problems(contents(mount.members["disk"])) == []
