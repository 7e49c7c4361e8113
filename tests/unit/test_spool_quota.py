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


def test_a_volumes_file_is_synced_in_time_or_once_much_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upkeep alone syncs nothing while little waits, so that what clients overwrite meanwhile goes to the disk once; a share of
    the quota that waits is synced at once, and anything in the end."""
    upkeeps = 0
    keep = spool_quota.SpoolQuota.keep

    async def counted(self: spool_quota.SpoolQuota) -> None:
        nonlocal upkeeps
        await keep(self)
        upkeeps += 1

    async def story(site: Site) -> None:
        monkeypatch.setattr(spool_quota, "UPKEEP_SECONDS", 0.02)
        monkeypatch.setattr(spool_quota, "SYNC_SECONDS", 3600.0)
        monkeypatch.setattr(spool_quota.SpoolQuota, "keep", counted)
        group = site.group(spool_max=Size("64MiB"))
        await group.start()
        volume = volume_of(group)
        await until(lambda: upkeeps > 0)
        synced_lsn = volume.synced_lsn
        write(group, 0, bytes(4096))
        volume.hurry()
        await until(lambda: volume.low_lsn == group.spool.head_lsn)
        seen = upkeeps
        await until(lambda: upkeeps > seen + 3)
        assert volume.synced_lsn == synced_lsn

        for _ in range(9 * 2**20 // WRITE_BYTES):
            write(group, 0, bytes(WRITE_BYTES))
        volume.hurry()
        await until(lambda: volume.synced_lsn > synced_lsn)

        write(group, 0, bytes(4096))
        volume.hurry()
        last_lsn = group.spool.head_lsn
        monkeypatch.setattr(spool_quota, "SYNC_SECONDS", 0.02)
        await until(lambda: volume.synced_lsn >= last_lsn)

    run(tmp_path, story)
