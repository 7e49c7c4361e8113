"""kill -9 at random moments of everything that can be killed, under clients that write.

Fault model: worker, control, supervisor (and with it all), or worker and control, end at any instruction; the host
and its page cache live on. After each round the exports, the checkpoints at the target and the repository must be
whole; in the end the volumes' own files too.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpac_api.models import Phase, VerifyReport
from tests.e2e.ledger import BLOCK_BYTES, Entry, Ledger, block_content
from tests.e2e.riders import nbdkit_rider, qemu_rider
from tests.e2e.site import MIB, SECONDS_MAX, LiveSite, contents, until

ROUNDS = int(os.environ.get("DPAC_ROUNDS", "10"))
BLOCKS = 512
VICTIMS = ("worker", "worker", "control", "supervisor", "worker and control")
SERVED_SECONDS_MAX = 30.0
"""For a machine that is busy with other tests; the goal of one second is for the printed figures."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site with a group of three volumes, one for each client."""
    with LiveSite(tmp_path) as site:
        site.start()
        sizes = {"disk": BLOCKS * BLOCK_BYTES, "qemu": MIB, "nbdkit": 2 * MIB}
        site.protect(
            "shop",
            {
                name: {"kind": "volume", "path": str(tmp_path / f"{name}.raw"), "size": f"{size // 1024}KiB"}
                for name, size in sizes.items()
            },
            # So little that what is older is merged all the time: kills hit that too.
            journal={"history": "1m", "size_max": "256MiB"},
        )
        yield site
        site.print_logs()


class Campaign:
    """Kills, and how long clients waited for what was killed."""

    def __init__(self, site: LiveSite, chance: random.Random) -> None:
        self.site = site
        self.chance = chance
        self.served_seconds: dict[str, list[float]] = {}
        self.data_path_kills: list[float] = []
        """When clients of exports were cut off, by time.monotonic."""

    def kill(self, victim: str) -> None:
        """kill -9, then wait until a new client gets through to the export, and REST answers."""
        pids = self.site.pids()
        began = time.monotonic()
        if victim != "control":
            self.data_path_kills.append(began)
        with ExitStack() as stack:
            if victim == "supervisor":
                os.kill(pids["supervisor"], 9)
                starting = stack.enter_context(ThreadPoolExecutor()).submit(self.site.start)
                stack.callback(starting.result)
            else:
                for name in victim.split(" and "):
                    os.kill(pids["worker-0" if name == "worker" else name], 9)
            until(lambda: self.site.serves("shop/disk"), f"the export is served after a kill of {victim}")
            self.served_seconds.setdefault(victim, []).append(time.monotonic() - began)
        until(self.site.rest.healthy, "REST answers")

    def report(self) -> None:
        """Print how long each kind of kill kept a new client waiting."""
        for victim, seconds in sorted(self.served_seconds.items()):
            print(
                f"kill -9 of {victim}: a new client served after p50 {statistics.median(seconds):.2f} s, "
                f"max {max(seconds):.2f} s ({len(seconds)} times)"
            )


def assert_checkpoints_whole(site: LiveSite, ledger: Ledger, chance: random.Random) -> None:
    """The newest checkpoint listed, and one a little older, hold all that was acknowledged before their marks, as a prefix."""
    listed = site.rest.checkpoints("shop", limit=5).items
    assert listed
    for checkpoint in {each.id: each for each in (listed[0], chance.choice(listed))}.values():
        with site.mounted("shop", checkpoint.id, "disk") as mount:
            problems = ledger.problems(contents(mount.members["disk"]), checkpoint.time.timestamp())
        assert problems == [], f"{checkpoint.id} of {checkpoint.time}"


def assert_repository_whole(site: LiveSite) -> None:
    """`dpac verify` reads everything and finds nothing."""
    operation = site.rest.wait(site.rest.verify("shop").id, timeout_seconds=SECONDS_MAX)
    assert operation.phase == Phase.SUCCEEDED, operation.error
    report = VerifyReport.model_validate(operation.result)
    assert report.findings == []
    assert report.checkpoints > 0


def test_the_ledger_notices_what_is_lost_torn_or_too_new() -> None:
    """The judge of the campaign: each way in which a copy can be wrong is a problem, and a right copy has none."""
    ledger = Ledger("", 3, seed=1)
    ledger.entries += [
        Entry(block=0, sent=1, sent_at=10.0, acknowledged=2, acknowledged_at=10.1),
        Entry(block=1, sent=3, sent_at=11.0, acknowledged=4, acknowledged_at=11.1),
        Entry(block=0, sent=5, sent_at=12.0),
    ]

    def copy(*numbers: int) -> bytes:
        return b"".join(
            block_content(number, block) if number else bytes(BLOCK_BYTES) for block, number in enumerate(numbers)
        )

    assert ledger.problems(copy(1, 2, 0)) == ledger.problems(copy(3, 2, 0)) == []
    assert ledger.problems(copy(0, 0, 0), at=9.0) == ledger.problems(copy(1, 0, 0), at=11.05) == []
    assert "write 2 to block 1 is missing" in ledger.problems(copy(1, 0, 0))[0]
    assert "write 1 to block 0 is missing" in ledger.problems(copy(0, 2, 0), at=11.05)[0]
    assert "write 2 to block 1 is missing" in ledger.problems(copy(3, 0, 0), at=11.0)[1]
    assert "after this copy's moment" in ledger.problems(copy(1, 2, 0), at=10.5)[0]
    torn = block_content(1, 0)[:2048] + bytes(2048) + copy(0, 2, 0)[BLOCK_BYTES:]
    assert "block 0 holds what was never written to it" in ledger.problems(torn)[0]
    misplaced = block_content(2, 1) + copy(0, 2, 0)[BLOCK_BYTES:]
    assert "block 0 holds what was never written to it" in ledger.problems(misplaced)[0]


@pytest.mark.e2e
@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(ROUNDS, id="rounds", marks=pytest.mark.timeout(60 * ROUNDS)),
        pytest.param(100, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(6000)]),
    ],
)
def test_nothing_acknowledged_is_lost_and_every_checkpoint_is_whole(
    site: LiveSite, tmp_path: Path, seed: int, rounds: int
) -> None:
    """Rounds of kill -9 under three clients: exports, checkpoints, repository and raw files hold what they must."""
    chance = random.Random(seed)
    campaign = Campaign(site, chance)
    riders = [
        qemu_rider(site.uri("shop/qemu"), MIB),
        nbdkit_rider(site.tcp_uri("shop/nbdkit"), 2 * MIB, tmp_path / "nbdkit", seed),
    ]
    with Ledger(site.uri("shop/disk"), BLOCKS, seed) as ledger:
        with ExitStack() as stack:
            for rider in riders:
                stack.enter_context(rider)
            for number in range(rounds):
                ledger.wait_for(chance.randrange(50, 3000))
                victim = VICTIMS[number % len(VICTIMS)] if number < len(VICTIMS) else chance.choice(VICTIMS)
                print(f"round {number}: {ledger.acknowledged} writes acknowledged, kill -9 of {victim}")
                campaign.kill(victim)
                with ledger.held():
                    assert ledger.problems(contents(site.uri("shop/disk"))) == []
                assert_checkpoints_whole(site, ledger, chance)
                assert_repository_whole(site)
                assert [failure for rider in riders for failure in rider.failures] == []
        assert [failure for rider in riders for failure in rider.failures] == []
    campaign.report()
    print(f"{ledger.acknowledged} writes and {ledger.flushes} FLUSHes acknowledged over {ledger.connects} connections")
    assert ledger.refusals == []
    assert ledger.flushes > 0
    for rider in riders:
        assert rider.rode_through(campaign.data_path_kills) > 0, f"no kill hit {rider.name}"
    assert max(max(seconds) for seconds in campaign.served_seconds.values()) < SERVED_SECONDS_MAX
    in_exports = {name: contents(site.uri(f"shop/{name}")) for name in ("disk", "qemu", "nbdkit")}
    site.dpac("stop", "--data", str(site.data))
    in_files = {name: (tmp_path / f"{name}.raw").read_bytes() for name in in_exports}
    assert ledger.problems(in_files["disk"]) == []
    assert in_files["nbdkit"] == (tmp_path / "nbdkit" / "image.raw").read_bytes()
    assert in_files == in_exports
    site.start()
    assert {name: contents(site.uri(f"shop/{name}")) for name in in_exports} == in_exports
