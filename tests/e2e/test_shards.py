"""A group of several shards: its volumes are served by two workers, and its checkpoints are moments that were for both."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpac_api.models import Checkpoint
from tests.e2e.oracle import BLOCK_BYTES, SLOTS, VOLUMES, Chain
from tests.e2e.site import LiveSite, contents, until

CHAINS = 2
CHECKPOINTS = int(os.environ.get("DPAC_CHECKPOINTS", "10"))
VOLUME_BYTES = CHAINS * SLOTS * BLOCK_BYTES
GROUP = "spread"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site of two workers with a group of three volumes in two shards: a and c in the first, b in the second."""
    with LiveSite(tmp_path, workers=2) as site:
        site.start()
        members = {
            name: {"kind": "volume", "path": str(tmp_path / f"{name}.raw"), "size": f"{VOLUME_BYTES // 1024}KiB"}
            for name in VOLUMES
        }
        site.protect(GROUP, members, journal={"history": "12h", "size_max": "16GiB", "shards": 2})
        yield site
        site.print_logs()


def chains_over(site: LiveSite, seed: int) -> list[Chain]:
    """Writers that begin when they are entered."""
    members = site.rest.group(GROUP).members
    return [Chain(number, {name: members[name].nbd_uri for name in VOLUMES}, seed) for number in range(CHAINS)]


def newer_than(site: LiveSite, since: Checkpoint) -> list[Checkpoint]:
    """What the target lists that is newer, newest first."""
    return [found for found in site.rest.checkpoints(GROUP, limit=500).items if found.time > since.time]


def judge(site: LiveSite, chains: list[Chain], checkpoint: Checkpoint) -> int:
    """Mount a checkpoint and hold it against the record; the newest block that went through all volumes."""
    assert {cut.kind for cut in checkpoint.cuts.values()} == {"barrier"}
    assert set(checkpoint.cuts) == set(VOLUMES)
    assert len(checkpoint.lsn) == 2, "a checkpoint of two shards is a vector of two LSNs"
    with site.mounted(GROUP, checkpoint.id) as mount:
        copies = {name: contents(mount.members[name]) for name in VOLUMES}
    through = []
    for chain in chains:
        newest = {volume: chain.newest(volume, copies[volume]) for volume in VOLUMES}
        a, b, c = (newest[volume] for volume in VOLUMES)
        assert a >= b >= c >= a - 1, f"A, B, C hold {a}, {b}, {c}: no moment was like that"
        through.append(c)
    return max(through)


@pytest.mark.e2e
def test_every_checkpoint_over_two_workers_is_a_moment_that_was(site: LiveSite, seed: int) -> None:
    """Writers go from a (shard 0) to b (shard 1) to c (shard 0): in each checkpoint A >= B >= C, whatever dies meanwhile."""
    chance = random.Random(seed)
    begin = site.wait_for_checkpoint(GROUP)
    through, judged = 0, set[str]()
    with ExitStack() as stack:
        chains = [stack.enter_context(chain) for chain in chains_over(site, seed)]
        for chain in chains:
            chain.wait_for(50)
        while len(judged) < CHECKPOINTS:
            for checkpoint in newer_than(site, begin):
                if checkpoint.id not in judged:
                    judged.add(checkpoint.id)
                    through = max(through, judge(site, chains, checkpoint))
            if chance.random() < 0.3:
                name = chance.choice(("worker-0", "worker-1", "control"))
                os.kill(site.pids()[name], 9)
                last = max((found.time for found in newer_than(site, begin)), default=begin.time)
                site.wait_for_checkpoint(GROUP, after=last)
    assert through > 100
    print(f"{len(judged)} checkpoints judged, {through} blocks through all three volumes")


@pytest.mark.e2e
def test_a_group_of_two_shards_goes_through_every_face(site: LiveSite, tmp_path: Path) -> None:
    """Status, tagged checkpoint, hold, list, verify, space, restore, also in place, drill and purge work as for any other group."""
    status = site.rest.group_status(GROUP)
    assert [(shard.worker, shard.members) for shard in status.shards] == [(0, ["a", "c"]), (1, ["b"])]
    assert all(shard.hold_wait.count > 0 for shard in status.shards)
    with ExitStack() as stack:
        chains = [stack.enter_context(chain) for chain in chains_over(site, 1)]
        chains[0].wait_for(20)
        tagged = site.dpac_json("checkpoint", GROUP, "--tag", "mine")
        chains[0].wait_for(20)
    checkpoint = site.wait_for_checkpoint(GROUP, "tag:mine")
    assert checkpoint.id == tagged["id"]
    judge(site, chains, checkpoint)
    site.dpac("hold", GROUP, checkpoint.id, "--reason", "audit")
    assert site.rest.checkpoint(GROUP, checkpoint.id).held
    site.dpac("release", GROUP, checkpoint.id)
    site.dpac("verify", GROUP)
    site.dpac("space", GROUP)
    to = tmp_path / "back.raw"
    site.dpac("restore", GROUP, "--at", checkpoint.id, "--member", "b", "--to", str(to))
    with site.mounted(GROUP, checkpoint.id, "b") as mount:
        assert to.read_bytes() == contents(mount.members["b"])
    site.dpac("drill", GROUP, "--at", checkpoint.id)
    held = {name: contents(site.rest.group(GROUP).members[name].nbd_uri) for name in VOLUMES}
    report = site.dpac_json("restore", GROUP, "--at", checkpoint.id, "--member", "b", "--in-place", "--yes")["result"]
    assert contents(site.rest.group(GROUP).members["b"].nbd_uri) == to.read_bytes() != held["b"]
    safety = report["safety_checkpoint"]
    assert len(site.rest.checkpoint(GROUP, safety).lsn) == 2, "the safety checkpoint is one of all shards"
    with site.mounted(GROUP, safety) as mount:
        assert {name: contents(mount.members[name]) for name in VOLUMES} == held
    for name in ("a", "c"):
        assert contents(site.rest.group(GROUP).members[name].nbd_uri) == held[name], "the others stay as they are"
    uid = site.rest.group(GROUP).uid
    site.dpac("group", "delete", GROUP, "--on-destroy", "purge", "--yes")
    until(lambda: not list((tmp_path / "copies" / "g").glob(f"{uid}*/**/m/*")), "the target holds nothing of the group")
    until(lambda: not list((site.data / "groups").glob(f"{uid}*")), "nor does the host")
