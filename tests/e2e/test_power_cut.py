"""A power cut under a whole backend: data folder, volumes and target lie on a disk that loses what was not synced.

Fault model: at a random moment every process ends, and of everything that was written since its last sync any subset of
sectors, sizes and names is there (`tests/powercut/disk.py`). Then the host starts again with what is left.

Two clients' worth of writes go to two volumes of one group, one after the other, each sent when the one before was
acknowledged. So whatever moment the volumes show, it must be one of that one order: never a write without all before it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dpac_api.client import Client as RestClient
from dpac_api.errors import DpacError, Unreachable
from dpac_api.resolve import Endpoint, resolve
from tests.e2e.ledger import BLOCK_BYTES, block_content, number_of
from tests.e2e.site import LiveSite, connected, contents, flush, until
from tests.e2e.test_kill import assert_repository_whole
from tests.nbd.client import Client
from tests.nbd.client import write as write_request
from tests.powercut.powered import PoweredDisk
from tests.processes.backend import is_alive

pytestmark = pytest.mark.e2e
ROUNDS = int(os.environ.get("DPAC_ROUNDS", "3"))
VOLUMES = ("data", "log")
BLOCKS = 96


class Papers:
    """A folder of files that come, change and go. It lies on another disk, so that it is as it was after a cut."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self._chance = chance
        folder.mkdir()

    def shuffle(self) -> None:
        """Some files are written, some removed."""
        for _ in range(6):
            path = self.folder / f"paper-{self._chance.randrange(20)}"
            if path.exists() and self._chance.random() < 0.5:
                path.unlink()
            else:
                path.write_bytes(self._chance.randbytes(self._chance.choice([10, 5000, 400_000])))

    def assert_recoverable(self, site: LiveSite, after: datetime) -> None:
        """What was captured after a moment is exactly the files there are since then: none is missing, none is back."""

        def captured() -> bool:
            as_of = site.rest.group_status("shop").members["papers"].as_of
            return as_of is not None and as_of > after

        until(captured, f"the folder is captured after {after}")
        taken = site.rest.take_checkpoint("shop", tag=f"papers-{after:%H%M%S%f}")
        with site.mounted("shop", f"tag:{taken.tags[0]}", "papers") as mount:
            copy, there = Path(mount.members["papers"]), sorted(path.name for path in self.folder.iterdir())
            assert sorted(path.name for path in copy.iterdir()) == there
            differing = [name for name in there if (copy / name).read_bytes() != (self.folder / name).read_bytes()]
            assert differing == []


class Chain:
    """Numbered writes to two volumes in one order, and how much of it was promised to be durable."""

    def __init__(self, site: LiveSite, chance: random.Random) -> None:
        self._site = site
        self._chance = chance
        self._numbers = 0
        self.writes: list[tuple[int, str, int]] = []
        """(number, volume, block), in the order in which they were sent."""
        self.acknowledged = 0
        """How many of them."""
        self.flushed = 0
        """How many were acknowledged before a FLUSH was sent that was answered."""
        self.flushes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.problem: BaseException | None = None

    def start(self) -> None:
        """Write until the connection breaks."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="chain")
        self._thread.start()

    def join(self) -> None:
        """The power is gone."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        assert self.problem is None, self.problem

    def _run(self) -> None:
        try:
            with connected(self._site.uri("shop/data")) as data, connected(self._site.uri("shop/log")) as log:
                clients = dict(zip(VOLUMES, (data, log), strict=True))
                while not self._stop.is_set():
                    self._write(clients)
        except OSError:
            return
        except AssertionError as error:
            self.problem = error

    def _write(self, clients: dict[str, Client]) -> None:
        volume, block = self._chance.choice(VOLUMES), self._chance.randrange(BLOCKS)
        self._numbers += 1
        self.writes.append((self._numbers, volume, block))
        clients[volume].send(write_request(self._numbers, block * BLOCK_BYTES, block_content(self._numbers, block)))
        assert clients[volume].reply().error == 0
        self.acknowledged = len(self.writes)
        if self._chance.random() < 0.01:
            flush(clients[self._chance.choice(VOLUMES)])  # of one volume: the journal is the group's
            self.flushed, self.flushes = self.acknowledged, self.flushes + 1

    def state(self, count: int) -> dict[str, list[int]]:
        """The number in every block after so many writes."""
        found = {volume: [0] * BLOCKS for volume in VOLUMES}
        for number, volume, block in self.writes[:count]:
            found[volume][block] = number
        return found

    def length_of(self, copies: dict[str, bytes]) -> int:
        """How many writes the volumes hold; fails if they hold anything but some first ones of the order."""
        found = {
            volume: [number_of(copy[at * BLOCK_BYTES :][:BLOCK_BYTES], at) for at in range(BLOCKS)]
            for volume, copy in copies.items()
        }
        assert not any(None in numbers for numbers in found.values()), "a block holds what was never written to it"
        newest = max(number or 0 for numbers in found.values() for number in numbers)
        order = [number for number, _, _ in self.writes]
        count = order.index(newest) + 1 if newest else 0
        assert found == self.state(count), f"write {newest} is there, but not all before it"
        return count

    def recovered(self, count: int) -> None:
        """Go on from what the volumes hold now."""
        assert self.flushed <= count, f"{self.flushed - count} writes were flushed and are gone"
        del self.writes[count:]
        self.acknowledged = self.flushed = count  # what a restart found is durable


@dataclass
class Requests:
    """Changing requests, and what was answered."""

    site: LiveSite
    chain: Chain
    endpoint: Endpoint
    round: int
    tokens: dict[str, str] = field(default_factory=dict)
    """Id -> secret."""
    labels: list[str] = field(default_factory=list)
    """Of the group, as they were put; the newest answered one and what was sent after it."""
    tags: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Tag of a checkpoint -> (writes acknowledged before it was asked for, writes sent when it was answered)."""
    available: dict[str, None] = field(default_factory=dict)
    """Ids of checkpoints that were listed as recoverable at the target."""
    problem: DpacError | None = None

    def start(self) -> None:
        """Ask for things until the backend is gone."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests")
        self._thread.start()

    def join(self) -> None:
        """The power is gone."""
        self._stop.set()
        self._thread.join()
        assert self.problem is None, self.problem

    def _run(self) -> None:
        rest = RestClient(self.endpoint, timeout_seconds=10, retry_seconds=0)
        try:
            with rest:
                while not self._stop.is_set():
                    self._ask(rest, f"{self.round}-{len(self.tokens)}")
        except Unreachable:
            return
        except DpacError as error:
            self.problem = error

    def _ask(self, rest: RestClient, name: str) -> None:
        token = rest.create_token(f"token-{name}", "read")
        self.tokens[token.id] = token.secret
        self.labels.append(name)
        rest.put_group("shop", rest.group("shop").spec.model_copy(update={"labels": {"round": name}}))
        self.labels = [name]
        before = self.chain.acknowledged
        rest.take_checkpoint("shop", tag=f"tag-{name}")
        self.tags[f"tag-{name}"] = (before, len(self.chain.writes))
        self.available |= dict.fromkeys(each.id for each in rest.checkpoints("shop", limit=20).items)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PoweredDisk]:
    """A disk, empty."""
    with PoweredDisk(tmp_path / "power") as disk:
        yield disk


@pytest.fixture
def papers(tmp_path: Path, seed: int) -> Papers:
    """A folder of papers."""
    return Papers(tmp_path / "papers", random.Random(seed))


@pytest.fixture
def site(disk: PoweredDisk, papers: Papers, tmp_path: Path) -> Iterator[LiveSite]:
    """A site on that disk with a group of two volumes and a folder, and a target there too; only the CLI's own context lies elsewhere."""
    with LiveSite(disk.root / "host") as site:
        site.environ["DPAC_CONFIG_DIR"] = str(tmp_path / "config")
        disk.sync()  # the folder that everything lies in is older than all of it
        site.start()
        size = f"{BLOCKS * BLOCK_BYTES // 1024}KiB"
        members: dict[str, Any] = {"papers": {"kind": "directory", "path": str(papers.folder)}}
        for name in VOLUMES:
            members[name] = {"kind": "volume", "path": str(site.folder / f"{name}.raw"), "size": size}
        site.protect("shop", members)
        yield site
        site.print_logs()


def cut(site: LiveSite, disk: PoweredDisk, seed: int) -> None:
    """kill -9 of every process at one moment, then what that leaves of the disk."""
    pids = {*site.pids().values(), *filter(None, [site.standby_pid()])}
    os.killpg(os.getpgid(site.pids()["supervisor"]), signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids), "every process is gone")
    disk.power_cut(seed)


def assert_promises_kept(site: LiveSite, chain: Chain, requests: Requests, chance: random.Random) -> None:
    """Volumes, catalogue, tokens, checkpoints and repository after a cut."""
    chain.recovered(chain.length_of({name: contents(site.uri(f"shop/{name}")) for name in VOLUMES}))
    known = {token.id for token in site.rest.tokens()}
    assert requests.tokens.keys() <= known, "a token that was answered is gone"
    if requests.tokens:
        secret_file = site.folder.parent.parent / "secret"
        secret_file.write_text(requests.tokens[chance.choice(list(requests.tokens))])
        with RestClient(Endpoint(requests.endpoint.url, "test", secret_file), retry_seconds=0) as other:
            assert [group.name for group in other.groups()] == ["shop"]
    if requests.labels:
        assert site.rest.group("shop").spec.labels["round"] in requests.labels, "an answered declaration is gone"
    until(lambda: site.rest.group_status("shop").protected, "the group is protected again")
    assert [each for each in site.rest.group_status("shop").conditions if each.severity == "error"] == []
    listed = {each.id for each in site.rest.every_checkpoint("shop")}
    assert requests.available.keys() <= listed, "a checkpoint that was at the target is gone"
    for tag in chance.sample(sorted(requests.tags), min(2, len(requests.tags))):
        copies = {}
        for name in VOLUMES:
            with site.mounted("shop", f"tag:{tag}", name) as mount:
                copies[name] = contents(mount.members[name])
        acknowledged, sent = requests.tags[tag]
        assert acknowledged <= chain.length_of(copies) <= sent, f"checkpoint {tag} is not of its moment"
    assert_repository_whole(site)


def play_round(
    site: LiveSite, disk: PoweredDisk, chain: Chain, papers: Papers, chance: random.Random, number: int, seed: int
) -> None:
    """Work, a cut in the middle of it, a start with what is left, and every promise looked at."""
    requests = Requests(site, chain, resolve(environ=site.environ), number)
    chain.start()
    requests.start()
    goal = len(chain.writes) + chance.randrange(50, 2500)
    papers.shuffle()
    until(lambda: len(chain.writes) >= goal and requests.tags, "there is work under way")
    papers.shuffle()
    cut(site, disk, seed)
    chain.join()
    requests.join()
    sent, flushed = len(chain.writes), chain.flushed
    started = datetime.now(UTC)
    site.start()
    assert_promises_kept(site, chain, requests, chance)
    papers.assert_recoverable(site, started)
    print(
        f"round {number}: {sent} writes, {flushed} flushed, {len(chain.writes)} kept; {len(requests.tokens)} tokens, "
        f"{len(requests.tags)} tags, {len(requests.available)} checkpoints seen at the target"
    )


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(ROUNDS, id="rounds", marks=pytest.mark.timeout(120 + 60 * ROUNDS)),
        pytest.param(60, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_a_backend_keeps_what_it_promised_through_power_cuts(
    site: LiveSite, disk: PoweredDisk, papers: Papers, seed: int, rounds: int
) -> None:
    """Rounds of work and power cuts: flushed writes in order, answered requests, recovery points, and no damage."""
    chance = random.Random(seed)
    chain = Chain(site, chance)
    for number in range(rounds):
        play_round(site, disk, chain, papers, chance, number, seed + number if number else 0)
    assert chain.flushes > 0
