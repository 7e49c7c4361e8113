"""The oracle: every checkpoint of three volumes under chained writers is a moment that was, exactly.

The record is kept outside the system (`oracle.py`). The short form mounts every checkpoint of some seconds over NBD while
the writers go on, with kills of the worker in between; the soak reads a thousand from the target for each of twenty seeds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpac_api.models import Checkpoint
from dpac_engine.control.site import Site
from dpac_engine.io.keys import Keyring
from dpac_engine.io.repository import RepositoryReader
from dpac_engine.wiring import reader_opener
from tests.e2e.oracle import BLOCK_BYTES, SLOTS, VOLUMES, Chain, block_of
from tests.e2e.site import LiveSite, contents, until

CHAINS = 2
CHECKPOINTS = int(os.environ.get("DPAC_CHECKPOINTS", "12"))
VOLUME_BYTES = CHAINS * SLOTS * BLOCK_BYTES


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site with a group of three volumes."""
    with LiveSite(tmp_path) as site:
        site.start()
        members = {
            name: {"kind": "volume", "path": str(tmp_path / f"{name}.raw"), "size": f"{VOLUME_BYTES // 1024}KiB"}
            for name in VOLUMES
        }
        site.protect("oracle", members, journal={"history": "12h", "size_max": "16GiB"})
        yield site
        site.print_logs()


def chains_over(site: LiveSite, seed: int) -> list[Chain]:
    """Writers that begin when they are entered."""
    uris = {name: site.uri(f"oracle/{name}") for name in VOLUMES}
    return [Chain(number, uris, seed) for number in range(CHAINS)]


def checkpoints_of(site: LiveSite, since: str) -> list[Checkpoint]:
    """What the target lists that is newer than `since`, newest first."""
    found: list[Checkpoint] = []
    cursor = None
    while True:
        page = site.rest.checkpoints("oracle", limit=500, cursor=cursor)
        for checkpoint in page.items:
            if checkpoint.id == since:
                return found
            found.append(checkpoint)
        if (cursor := page.next_cursor) is None:
            return found


def worker_dies(site: LiveSite) -> None:
    """kill -9 of the data path; returns once a new one serves."""
    os.kill(site.pids()["worker-0"], 9)
    until(lambda: site.serves("oracle/a"), "the exports are served again")


@pytest.mark.parametrize("fault", ["an older a", "a newer c", "a lost block", "a torn block", "none"])
def test_the_judge_finds_what_cannot_have_been(fault: str) -> None:
    """Each way in which a copy can be wrong fails it; a right one passes."""
    chain = Chain(0, {}, 1)
    for volume, lag in zip(VOLUMES, (0, 1, 2), strict=True):
        chain.sent_ns[volume] = [0, *(number * 1000 + lag * 100 for number in range(1, 400))]
        chain.acknowledged_ns[volume] = [0, *(number * 1000 + lag * 100 + 50 for number in range(1, 400))]

    def copy(newest: int) -> bytes:
        numbers = [newest - (newest - slot) % SLOTS for slot in range(SLOTS)]
        return b"".join(block_of(0, number) if number > 0 else bytes(BLOCK_BYTES) for number in numbers)

    copies = {"a": copy(300), "b": copy(300), "c": copy(299)}
    at_ns = 300_180
    if fault == "none":
        assert chain.judge(copies, at_ns, 0) == 299
        return
    if fault == "an older a":
        copies["a"] = copy(299)
    elif fault == "a newer c":
        copies["c"] = copy(300)
    elif fault == "a lost block":
        copies["a"] = copies["a"][: 7 * BLOCK_BYTES] + block_of(0, 7) + copies["a"][8 * BLOCK_BYTES :]
    else:
        copies["b"] = copies["b"][: 5 * BLOCK_BYTES + 512] + bytes(512) + copies["b"][5 * BLOCK_BYTES + 1024 :]
    with pytest.raises(AssertionError):
        chain.judge(copies, at_ns, 0)


@pytest.mark.e2e
def test_every_checkpoint_mounted_is_a_moment_that_was(site: LiveSite, seed: int) -> None:
    """A >= B >= C >= A - 1, all that was acknowledged before the mark, nothing sent after it: for each one, over NBD."""
    chance = random.Random(seed)
    begin = site.wait_for_checkpoint("oracle").id
    through = 0
    with ExitStack() as stack:
        chains = [stack.enter_context(chain) for chain in chains_over(site, seed)]
        for chain in chains:
            chain.wait_for(50)
        judged = {begin}
        while len(judged) <= CHECKPOINTS:
            for checkpoint in checkpoints_of(site, begin):
                if checkpoint.id in judged:
                    continue
                judged.add(checkpoint.id)
                assert {cut.kind for cut in checkpoint.cuts.values()} == {"exact"}
                with site.mounted("oracle", checkpoint.id) as mount:
                    copies = {name: contents(mount.members[name]) for name in VOLUMES}
                through = max(through, *(chain.judge(copies, nanoseconds(checkpoint)) for chain in chains))
            if chance.random() < 0.2:
                worker_dies(site)
    assert through > 100
    print(f"{len(judged) - 1} checkpoints judged, {through} blocks through all three volumes")


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_a_thousand_checkpoints_are_moments_that_were(site: LiveSite, seed: int, number: int) -> None:
    """The same for every checkpoint of a quarter of an hour, read from the target, with a kill about every minute."""
    chance = random.Random(seed + number)
    begin = site.wait_for_checkpoint("oracle").id
    chains = chains_over(site, seed + number)
    with ExitStack() as stack:
        for chain in chains:
            stack.enter_context(chain)
        while len(checkpoints_of(site, begin)) < 1000:
            chains[0].wait_for(chance.randrange(2000, 20_000))
            worker_dies(site)
    reader = opened(site)
    wanted = {checkpoint.id for checkpoint in checkpoints_of(site, begin)}
    judged = 0
    for mark in reader.marks():
        if mark.id in wanted:
            image = reader.image(mark)
            members = {state.name: ordinal for ordinal, state in reader.members_at(mark).items()}
            copies = {name: image.volume(members[name]).read(0, VOLUME_BYTES) for name in VOLUMES}
            for chain in chains:
                chain.judge(copies, mark.stamp_ns, 0)
            judged += 1
    assert judged == len(wanted) >= 1000


def opened(site: LiveSite) -> RepositoryReader:
    """The group's repository at the target."""
    group, target = site.rest.group("oracle"), site.rest.target("copies")
    reader = reader_opener(Keyring(Site.read(site.data).keys))(group.uid, target.spec)
    reader.refresh()
    return reader


def nanoseconds(checkpoint: Checkpoint) -> int:
    """A checkpoint's time; REST tells it to the microsecond."""
    return int(checkpoint.time.timestamp() * 1e6) * 1000
