"""Every short sequence of changes, flushes and upkeep, with a crash at its end: as CrashMonkey does with file systems.

Ace and CrashMonkey (Mohan et al., OSDI 2018) found that nearly every crash bug shows in a sequence of three operations or
fewer on small, overlapping ranges. A sequence's every beginning is a sequence too, so a crash follows every completed
operation. Fault model: tests/sim/test_volume_crash.py. Losses of power keep nothing that was not synced, all of it, or a
random part.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from dpac_engine.io import spool as spool_module
from dpac_engine.io.members import overlay as overlay_module
from dpac_engine.io.members import volume as volume_module
from dpac_engine.io.nbd.export import Change, ChangeKind
from tests.sim.test_volume_crash import Disk, Rig, make_impatient

Operation = Callable[[Rig, int], Awaitable[None]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files, and batches of two, so that a sequence's end finds changes in every place."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", 128 * 1024)
    monkeypatch.setattr(volume_module, "BATCH_RECORDS", 2)
    monkeypatch.setattr(overlay_module, "ZERO_BLOCKS_MAX", 2)


def _change(kind: ChangeKind, offset: int, length: int) -> Operation:
    async def operation(rig: Rig, number: int) -> None:
        data = memoryview(bytes([number + 1]) * length) if kind == ChangeKind.WRITE else None
        rig.send([Change(kind, offset, length, data)])

    return operation


async def _forced(rig: Rig, number: int) -> None:
    # What the server makes of a write with FUA: its answer waits until it is durable.
    rig.send([Change(ChangeKind.WRITE, 4096, 4096, memoryview(bytes([number + 1]) * 4096))])
    await rig.durable()


OPERATIONS: dict[str, Operation] = {
    "write a block": _change(ChangeKind.WRITE, 0, 4096),
    "write over its edge": _change(ChangeKind.WRITE, 2048, 8192),
    "zero a part": _change(ChangeKind.ZERO, 1024, 4096),
    "trim much": _change(ChangeKind.TRIM, 0, 32768),
    "write with FUA": _forced,
    "flush": lambda rig, _: rig.durable(),
    "write behind": lambda rig, _: rig.volume._apply_batch(),
    "remember": lambda rig, _: rig.remember(),
}
ENDS: dict[str, tuple[bool, float]] = {
    "kill": (False, 0.0),
    "power, nothing kept": (True, 0.0),
    "power, all kept": (True, 1.0),
    "power, some kept": (True, 0.5),
}


class _Share(random.Random):
    """The rig's chance, which keeps the share of unsynced sectors that the end says."""

    share = 0.0

    def choice(self, options: object) -> float:  # type: ignore[override]
        del options  # the rig asks for nothing else
        return self.share


async def _crash_after(root: Path, disk: Disk, names: Iterable[str], end: str, seed: int) -> None:
    chance = _Share(seed)
    power, chance.share = ENDS[end]
    rig = Rig(root, disk, chance, asyncio.get_running_loop())
    for number, name in enumerate(names):
        await OPERATIONS[name](rig, number)
    rig.crash(power=power)
    await rig.durable()
    for _ in range(len(rig.volume._pending) + 1):  # what the next life brings to the file is right too
        await rig.volume._apply_batch()
    await (
        rig.remember()
    )  # from here on the file alone tells it: the journal hides what is wrong there until it is let go
    rig.crash(power=False)
    rig.end()
    rig.executor.shutdown()


def _all_sequences(root: Path, monkeypatch: pytest.MonkeyPatch, length: int, seed: int) -> int:
    count = 0
    with monkeypatch.context() as patches:
        disk = Disk(patches)
        for names in itertools.product(OPERATIONS, repeat=length):
            for end in ENDS:
                folder = root / str(count)
                folder.mkdir()
                try:
                    asyncio.run(_crash_after(folder, disk, names, end, seed + count))
                except Exception as error:
                    raise AssertionError(f"{' > '.join(names)} > {end} (DPAC_TEST_SEED={seed}): {error!r}") from error
                shutil.rmtree(folder)
                disk.synced.clear()
                count += 1
    return count


@pytest.mark.parametrize("length", [1, 2])
def test_after_any_short_sequence_a_crash_loses_nothing_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, length: int
) -> None:
    """The device is what some beginning of the acknowledged changes made it, and nothing flushed is missing."""
    assert _all_sequences(tmp_path, monkeypatch, length, seed) == len(ENDS) * len(OPERATIONS) ** length


@pytest.mark.soak
@pytest.mark.parametrize("length", [3, 4])
def test_after_any_longer_sequence_a_crash_loses_nothing_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, length: int
) -> None:
    """The same for 2,048 and 16,384 crashes."""
    assert _all_sequences(tmp_path, monkeypatch, length, seed) == len(ENDS) * len(OPERATIONS) ** length


@pytest.mark.parametrize("mutation", ["a flush that does not wait", "write-behind before the journal is durable"])
def test_the_sequences_find_a_broken_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, mutation: str
) -> None:
    """With the rule taken out of the engine, some sequence of two fails."""
    if mutation == "a flush that does not wait":
        monkeypatch.setattr(spool_module.Spool, "when_durable", lambda self, lsn, done: done(None))
    else:
        monkeypatch.setattr(volume_module.Volume, "_durable", _at_once)
        make_impatient(monkeypatch)
    with pytest.raises(AssertionError):
        _all_sequences(tmp_path, monkeypatch, 2, seed)


async def _at_once(self: object, lsn: int) -> bool:
    del self, lsn
    return True
