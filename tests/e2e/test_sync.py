"""A sync leg, end to end: what was acknowledged is recovered from the target alone, and what happens while the target is away.

Fault model: every process of the backend is killed at once, at a random moment, and its data folder and the volume's file
are gone for good; only the target and an escrowed copy of the keys are left. Or the target's folder is gone for a while.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpac_api.models import LegStatus, Phase, VerifyReport
from dpac_engine.control.repositories import group_prefix
from dpac_engine.io.keys import Keyring
from dpac_engine.io.repository import RepositoryReader
from dpac_engine.io.stores.filesystem import FilesystemStore
from dpac_engine.io.stores.prefixed import PrefixedStore
from tests.e2e.ledger import BLOCK_BYTES, block_content, number_of
from tests.e2e.site import SECONDS_MAX, LiveSite, connected, contents, flush, until, write

pytestmark = pytest.mark.e2e

BLOCKS = 256
WRITES_A_FLUSH = 4


class Chain:
    """`with Chain(uri) as chain:` one client whose write N + 1 is sent after the answer to write N, with a FLUSH now and then."""

    def __init__(self, uri: str, first: int = 1) -> None:
        self._uri = uri
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chain", daemon=True)
        self.sent = self.written = self.flushed = first - 1
        """Numbers of the last write that was sent, acknowledged, and covered by an answered FLUSH."""
        self.error: Exception | None = None

    def __enter__(self) -> Chain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(SECONDS_MAX)

    def wait_for(self, flushed: int) -> None:
        """Until the FLUSH that covers that write is answered."""
        until(lambda: self.flushed >= flushed or self.error, f"write {flushed} is flushed ({self.flushed} are)")

    def _run(self) -> None:
        try:
            with connected(self._uri) as client:
                while not self._stop.is_set():
                    for _ in range(WRITES_A_FLUSH):
                        number = self.sent = self.sent + 1
                        write(client, number % BLOCKS * BLOCK_BYTES, block_content(number, number % BLOCKS))
                        self.written = number
                    flush(client)
                    self.flushed = self.written
        except (OSError, AssertionError) as error:
            self.error = error


def chain_end(copy: bytes, sent: int) -> int:
    """Up to which write a copy of the volume is the chain; fails if it is no prefix of it."""
    found = [number_of(copy[block * BLOCK_BYTES :][:BLOCK_BYTES], block) for block in range(BLOCKS)]
    assert None not in found, f"block {found.index(None)} holds what was never written to it"
    end = max(number or 0 for number in found)
    for block, number in enumerate(found):
        newest = next((at for at in range(end, max(0, end - BLOCKS), -1) if at % BLOCKS == block), 0)
        assert number == newest, f"block {block} holds write {number}, not {newest}, though write {end} is there"
    assert end <= sent
    return end


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site."""
    with LiveSite(tmp_path) as site:
        site.start()
        yield site
        site.print_logs()


def declare(site: LiveSite, **leg: Any) -> None:
    """A group of one volume with a sync leg."""
    site.protect(
        "shop",
        {
            "disk": {
                "kind": "volume",
                "path": str(site.folder / "disk.raw"),
                "size": f"{BLOCKS * BLOCK_BYTES // 1024}KiB",
            }
        },
        leg={"mode": "sync", **leg},
    )


def leg_of(site: LiveSite) -> LegStatus:
    """The leg now."""
    return site.rest.group_status("shop").legs["copies"]


def conditions(site: LiveSite) -> set[str]:
    """What the group complains of."""
    return {condition.type for condition in site.rest.group_status("shop").conditions}


@pytest.mark.parametrize("acknowledge", ["flush", "write"])
def test_what_was_acknowledged_is_recovered_from_the_target_alone(site: LiveSite, acknowledge: str, seed: int) -> None:
    """kill -9 of everything, the host's data lost: the target has every flushed write, or every acknowledged one."""
    chance = random.Random(seed)
    declare(site, acknowledge=acknowledge, rpo="1m")  # segments come late: it is the tail that tells
    group = site.rest.group("shop")
    with Chain(site.uri("shop/disk")) as chain:
        chain.wait_for(40 + chance.randrange(400))
        for pid in site.pids().values():
            os.kill(pid, 9)
        until(lambda: chain.error is not None, "the client is cut off")
    keys = shutil.copytree(site.data / "keys", site.folder / "escrowed")
    shutil.rmtree(site.data)
    (site.folder / "disk.raw").unlink()
    store = PrefixedStore(FilesystemStore(site.folder / "copies"), group_prefix(group.uid))
    reader = RepositoryReader(store, group.uid, Keyring(keys).data_key)
    reader.refresh()
    copy = reader.image(reader.resolve("latest")).volume(1).read(0, BLOCKS * BLOCK_BYTES)
    end, promised = chain_end(copy, chain.sent), chain.flushed if acknowledge == "flush" else chain.written
    print(
        f"sent {chain.sent}, acknowledged {chain.written}, flushed {chain.flushed}; the target has {end} (seed {seed})"
    )
    assert end >= promised, f"seed {seed}"


def test_latest_at_the_target_is_mounted_and_verified_with_its_tail(site: LiveSite) -> None:
    """The commands of recovery see what no manifest names yet."""
    declare(site, rpo="1m")
    with Chain(site.uri("shop/disk")) as chain:
        chain.wait_for(100)
    with site.mounted("shop", "latest", "disk") as mount:
        assert chain_end(contents(mount.members["disk"]), chain.sent) >= chain.flushed
    operation = site.rest.wait(site.rest.verify("shop").id, timeout_seconds=SECONDS_MAX)
    assert operation.phase == Phase.SUCCEEDED, operation.error
    assert VerifyReport.model_validate(operation.result).findings == []


def test_with_on_loss_async_the_application_goes_on_and_the_leg_comes_back(site: LiveSite) -> None:
    """The target's folder is gone: after the timeout writes are answered alone, visibly; once it is back, so is the pledge."""
    declare(site, on_loss="async", timeout="500ms")
    copies = site.folder / "copies"
    with Chain(site.uri("shop/disk")) as chain:
        chain.wait_for(40)
        copies.rename(site.folder / "away")
        before = chain.flushed
        chain.wait_for(before + 100)
        until(lambda: "SyncLost" in conditions(site), "the loss is shown")
        assert not leg_of(site).in_sync
        assert not site.rest.group_status("shop").protected
        (site.folder / "away").rename(copies)
        until(lambda: leg_of(site).in_sync, "the leg is in sync again")
        assert "SyncLost" not in conditions(site)
        chain.wait_for(chain.flushed + 40)
        assert chain.error is None
        assert leg_of(site).sync.falls == 1  # type: ignore[union-attr]
    with site.mounted("shop", "latest", "disk") as mount:
        assert chain_end(contents(mount.members["disk"]), chain.sent) >= chain.flushed


def test_with_on_loss_stop_the_application_is_held_and_freed(site: LiveSite) -> None:
    """No FLUSH is answered while the target is gone and none fails; its return frees them, and so does a new declaration."""
    declare(site, on_loss="stop", timeout="300ms")
    copies, away = site.folder / "copies", site.folder / "away"
    with Chain(site.uri("shop/disk")) as chain:
        chain.wait_for(40)
        copies.rename(away)
        until(lambda: "SyncHeld" in conditions(site), "that it is held is shown")
        held, began = chain.flushed, time.monotonic()
        until(lambda: time.monotonic() > began + 1.0, "a second has passed")
        assert chain.flushed == held
        away.rename(copies)
        chain.wait_for(held + 40)
        until(lambda: leg_of(site).in_sync, "the leg is in sync again")
        copies.rename(away)
        until(lambda: "SyncHeld" in conditions(site), "that it is held is shown")
        held = chain.flushed
        site.apply_leg("shop", {"mode": "sync", "on_loss": "async", "timeout": "300ms"})
        chain.wait_for(held + 40)
        assert chain.error is None
        away.rename(copies)
        until(lambda: leg_of(site).in_sync, "the leg is in sync again")
