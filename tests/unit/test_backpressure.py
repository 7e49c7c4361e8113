"""What a client feels of a volume on a slow disk: it is slowed, never stalled, and takes no more memory than is allowed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from dpac_engine.io.members import volume as volume_module
from dpac_engine.io.members.volume import Volume
from tests.unit.test_volume import DEVICE_BYTES, Bench

PENDING_MAX, BATCH_BYTES, WRITE_BYTES, TURNS = 2**18, 2**16, 4096, 25
DEADLINE_SECONDS = 60


def test_a_client_waits_for_one_batch_at_a_time_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood against a disk that takes a batch only now and then: what waits for it stays below the limit, and every wait of the
    client ends with the next batch that the disk takes."""
    permits, taken, real = threading.Semaphore(0), list[int](), Volume._apply_blocking
    monkeypatch.setattr(volume_module, "BATCH_BYTES", BATCH_BYTES)

    def slow(self: Volume, batch: Any) -> None:
        permits.acquire(timeout=DEADLINE_SECONDS)
        real(self, batch)
        taken.append(len(batch))

    monkeypatch.setattr(Volume, "_apply_blocking", slow)

    async def story(bench: Bench) -> None:
        volume = bench.volume
        volume._pending_max = PENDING_MAX
        applying = asyncio.create_task(volume.write_behind())
        number = most = 0
        for _ in range(TURNS):
            while not volume.congested:
                bench.write(number * WRITE_BYTES % DEVICE_BYTES, number.to_bytes(8, "little") * (WRITE_BYTES // 8))
                number += 1
                most = max(most, volume.pending_bytes)
                await asyncio.sleep(0)
            relieved, before = asyncio.Event(), len(taken)
            volume.when_relieved(relieved.set)
            await asyncio.sleep(0)
            assert not relieved.is_set()
            permits.release()
            await relieved.wait()
            assert len(taken) == before + 1
        assert most <= PENDING_MAX + WRITE_BYTES
        assert number * WRITE_BYTES > PENDING_MAX + TURNS * WRITE_BYTES // 2, "the client did not get on"
        permits.release(10_000)
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)
        await volume.stop()

    async def told() -> None:
        bench = Bench(tmp_path)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await story(bench)
        finally:
            permits.release(10_000)
            bench.volume.close()
            bench.spool.stop()
            bench.executor.shutdown()

    asyncio.run(told())
