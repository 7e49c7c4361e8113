"""The quota of a group's spool, between two upkeeps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from dpac_api.quantities import Size
from dpac_engine.control import spool_quota
from dpac_engine.io import spool as spool_module
from dpac_engine.io.members.volume import Volume
from tests.unit.test_group import Site, protected, run, until, volume_of, write

LIMIT_BYTES, FILE_BYTES, WRITE_BYTES = 8 * 2**20, 2**20, 2**16


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (spool_module, spool_quota):
        monkeypatch.setattr(module, "FILE_BYTES", FILE_BYTES)


def test_a_flood_between_two_upkeeps_does_not_pass_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that writes faster than the volume's disk is held back by the file of the spool that it has begun, however far
    the next upkeep is, and let on once the disk has caught up."""
    released = Event()
    real = Volume._apply_blocking

    def slow(self: Volume, batch: Any) -> None:
        released.wait(60)
        real(self, batch)

    async def story(site: Site) -> None:
        group = site.group(spool_max=Size("8MiB"))
        await group.start()
        await protected(group)
        monkeypatch.setattr(Volume, "_apply_blocking", slow)
        monkeypatch.setattr(spool_quota, "UPKEEP_SECONDS", 3600.0)
        volume = volume_of(group)
        for number in range(4 * LIMIT_BYTES // WRITE_BYTES):
            if volume.backpressure:
                break
            write(group, number * WRITE_BYTES % 2**21, bytes(WRITE_BYTES))
            await asyncio.sleep(0)
        assert volume.backpressure, "nobody held the client back"
        assert group.spool.stored_bytes <= LIMIT_BYTES
        relieved = asyncio.Event()
        volume.when_relieved(relieved.set)
        monkeypatch.setattr(spool_quota, "UPKEEP_SECONDS", 0.02)
        released.set()
        await until(relieved.is_set)

    try:
        run(tmp_path, story)
    finally:
        released.set()
