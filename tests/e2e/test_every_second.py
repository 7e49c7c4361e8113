"""Checkpoints go on every second while eight volumes are written to as fast as they take it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.site import LiveSite, connected
from tests.nbd.client import write

VOLUMES = 8
BLOCK_BYTES = 4096
BATCH = 64
SECONDS = 15
GAP_SECONDS_MAX = 2.0


class Lateness:
    """By how much the machine alone lets a thread that only sleeps be late, at worst."""

    def __init__(self) -> None:
        self.seconds_max = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Lateness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            self._stop.wait(0.01)
            self.seconds_max = max(self.seconds_max, time.monotonic() - before - 0.01)


def load(uri: str, until_at: float) -> int:
    """Write batches of random blocks until then; returns how many blocks."""
    blocks = 0
    data = os.urandom(BLOCK_BYTES)
    with connected(uri) as client:
        while time.monotonic() < until_at:
            for _ in range(BATCH):
                client.send(write(blocks, (blocks * 7919 % 4096) * BLOCK_BYTES, data))
                blocks += 1
            for _ in range(BATCH):
                assert client.reply().error == 0
    return blocks


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.parametrize("shards", [1, 2])
def test_no_checkpoint_is_missing_under_load(tmp_path: Path, shards: int) -> None:
    """For a quarter of a minute: no two checkpoints that follow each other are more than two seconds apart."""
    with LiveSite(tmp_path, workers=shards) as site, ExitStack() as stack:
        site.start()
        members = {
            f"v{at}": {"kind": "volume", "path": str(tmp_path / f"v{at}.raw"), "size": "16MiB"} for at in range(VOLUMES)
        }
        site.protect("busy", members, journal={"history": "1h", "shards": shards, "spool_max": "1GiB"})
        begin = site.wait_for_checkpoint("busy")
        lateness = stack.enter_context(Lateness())
        until_at, counts = time.monotonic() + SECONDS, list[int]()
        uris = [member.nbd_uri for member in site.rest.group("busy").members.values()]
        writers = [threading.Thread(target=lambda uri=uri: counts.append(load(uri, until_at))) for uri in uris]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(counts) == VOLUMES
        last = site.rest.group_status("busy").checkpoint_sequence
        site.wait_for_checkpoint("busy", f"ck-1-{last}")
        found = sorted(one.time for one in site.rest.checkpoints("busy", limit=500).items if one.time >= begin.time)
        gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(found)]
        status = site.rest.group_status("busy")
        site.print_logs()
    print(
        f"{sum(counts) / SECONDS:.0f} writes/s; {len(found)} checkpoints, the longest gap {max(gaps):.2f} s; a sleeping thread "
        f"was {lateness.seconds_max:.2f} s late; holds: {[shard.hold_wait for shard in status.shards]}, "
        f"skipped: {sum(shard.checkpoints_skipped for shard in status.shards)}"
    )
    assert max(gaps) <= GAP_SECONDS_MAX + 4 * lateness.seconds_max
