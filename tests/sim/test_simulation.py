"""A whole group, with the real spool, volumes, legs, seeds, bitmaps and compaction, in a world made from one seed.

The fault model and what must be true are told in `tests/simulation/history.py`. A failure names its seed; `DPAC_SIM_SEED=N` plays that history
again, the same to the last byte (`DPAC_SIM_KIND` says of which kind). The soak goes on for `DPAC_SIM_SECONDS`, in as many processes as there are
processors, or `DPAC_SIM_PROCESSES`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.internal.conjecture.providers  # noqa: F401 - its plugin would import it within a greenlet
import pytest

from dpac_engine.control import gate, merging, shipper
from dpac_engine.core import merge, records
from dpac_engine.io import reserved_file, spool
from dpac_engine.io.members import volume
from tests.sim.test_volume_crash import make_impatient
from tests.simulation import host, oracle, stage
from tests.simulation.campaign import campaign
from tests.simulation.history import replay_command
from tests.simulation.kinds import assert_noticed, play

ROOT = Path(__file__).parents[2]
HISTORIES = 200
SOAK_SECONDS = float(os.environ.get("DPAC_SIM_SECONDS", "3600"))
SEED = int(os.environ.get("DPAC_SIM_SEED", "0"))
KIND = os.environ.get("DPAC_SIM_KIND", "faults")
PROCESSES = int(os.environ.get("DPAC_SIM_PROCESSES", os.cpu_count() or 1))
ONCE_FAILED = [
    146,  # a change that no log tells was dated at an LSN that a loss of power gave to later records
    37,  # of two changes that no log tells the target learned of the later one alone
    299,  # a journal that had begun anew lay in a file whose name was not durable
    228,  # what went past a broken journal before a kill was not covered by a FLUSH after it
    910023,  # the only founding member left before it was whole: no checkpoint of those that came later was ever listed
    910282,  # the same, with another primary in between
    940347,  # what went past a broken journal was not durable when the next one began to answer FLUSHes
    940172,  # the same, of a loss of power
    1100001322,  # a sync leg was an asynchronous one when power went, and on record as in sync once it was declared so again
    1000137,  # a FLUSH past a broken journal was answered before the sync leg's loss was on record, and a kill came in between
    910220,  # a leg that was added while the journal was broken waited for a log that the new journal did not have
]


@pytest.fixture
def defects() -> Iterator[stage.Defects]:
    """The stage is set."""
    with stage.staged() as found:
        yield found


def test_one_history(defects: stage.Defects) -> None:
    """The history of DPAC_SIM_SEED keeps every promise."""
    play(SEED, defects, KIND)


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_a_history_that_once_failed(defects: stage.Defects, seed: int) -> None:
    """What was found stays mended."""
    play(seed, defects)


def test_histories_keep_every_promise(defects: stage.Defects) -> None:
    """The same ones on every machine; seeds that nobody has tried are for the soak."""
    for number in range(HISTORIES):
        play(number, defects)


def test_damage_to_the_spool_is_never_taken_for_what_was_written(defects: stage.Defects) -> None:
    """Bits flip in dead spool files, and pages land in the place of others: the journal ends there, and nothing else is made up."""
    damaged = 0
    for number in range(60):
        trace = play(number, defects, "rot").world.trace
        damaged += any("damage in page" in line for line in trace)
    assert damaged > 30


@pytest.mark.soak
def test_histories_keep_every_promise_for_long(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """For DPAC_SIM_SECONDS; each failing seed is told when it is found, with the command that plays it again."""

    def tell(line: object) -> None:
        with capsys.disabled():
            print(f"\n{line}", flush=True)

    found = campaign(seed, SOAK_SECONDS, PROCESSES, tell)
    tell(found)
    assert not found.failures, [replay_command(failure.kind, failure.seed) for failure in found.failures]


def test_a_seed_tells_everything_that_happens(defects: stage.Defects, seed: int) -> None:
    """Played twice here, and by a process whose hashes are seeded otherwise, a history is the same to the last stored byte."""
    chosen = [seed, seed + 1, *ONCE_FAILED]
    here = [play(number, defects).digest for number in chosen]
    assert [play(number, defects).digest for number in reversed(chosen)] == here[::-1]
    program = (
        "from tests.simulation import stage; from tests.simulation.kinds import play\n"
        f"with stage.staged() as defects:\n    print(*(play(seed, defects).digest for seed in {chosen!r}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(random.Random(seed).randrange(1, 2**32))}
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert told.stdout.split() == here


# ---------------------------------------------------------------------- it can see every promise broken


def test_a_start_without_a_journal_answers_no_flush() -> None:
    """What it finds is durable here, but a sync leg's target need not have it until a FLUSH is answered; what one was answered for, it must."""
    old, new, newer = (letter * oracle.SECTOR for letter in (b"o", b"n", b"x"))
    device = oracle.Device(oracle.SECTOR)
    device.add(oracle.Written(0, 0, old, False))
    device.flush_answered(1)
    device.add(oracle.Written(64, 0, new, False))
    device.adopt(new, 64, "the device")
    device.began()
    for sound in (old, new):
        device.check_flushed(sound, "the target")
    with pytest.raises(oracle.Wrong, match="not as it was flushed"):
        device.check_flushed(bytes(oracle.SECTOR), "the target")
    device.add(oracle.Written(128, 0, newer, False))
    device.flush_answered(2)
    for sound in (new, newer):
        device.check_flushed(sound, "the target")
    with pytest.raises(oracle.Wrong, match="not as it was flushed"):
        device.check_flushed(old, "the target")


def _no_sync_of_the_spool(patches: pytest.MonkeyPatch) -> None:
    real = host.Host.fsync

    def fsync(self: host.Host, descriptor: int, *, data_only: bool = False) -> None:
        if not (data_only and self._open[descriptor][1].endswith(".spool")):
            real(self, descriptor, data_only=data_only)

    patches.setattr(host.Host, "fsync", fsync)


def _impatient_write_behind(patches: pytest.MonkeyPatch) -> None:
    async def at_once(*_: object) -> bool:
        return True

    make_impatient(patches)
    patches.setattr(volume.Volume, "_durable", at_once)


def _unchecked_records(patches: pytest.MonkeyPatch) -> None:
    def payload_of(stream: memoryview, at: int, header: records.Header) -> memoryview:
        return stream[at + records.HEADER_BYTES :][: header.payload_bytes]

    patches.setattr(spool, "records", SimpleNamespace(**{**vars(records), "payload_of": payload_of}))


def _cursor_before_the_commit(patches: pytest.MonkeyPatch) -> None:
    real = shipper.Shipper._store_slice

    def store(self: shipper.Shipper, piece: Any, members: Any) -> None:
        self.memory.cursor = piece.to_lsn
        real(self, piece, members)

    patches.setattr(shipper.Shipper, "_store_slice", store)


def _merge_that_loses_a_row(patches: pytest.MonkeyPatch) -> None:
    real = merge.merged_rows

    def rows(*args: Any, **named: Any) -> Iterator[Any]:
        for number, row in enumerate(real(*args, **named)):
            if number != 3:
                yield row

    patches.setattr(merging, "merged_rows", rows)


def _no_reserve(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(reserved_file, "_FULL", ())


def _no_wait_for_sync_legs(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(gate.Gate, "_passes", lambda *_: True)


MUTATIONS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {
    "a commit of the spool without fdatasync": (_no_sync_of_the_spool, 0),
    "a write-behind that does not wait for durability": (_impatient_write_behind, 0),
    "a spool whose checksums nobody looks at": (_unchecked_records, 0),
    "a cursor that moves before the manifest": (_cursor_before_the_commit, 0),
    "a state that a full disk does not take": (_no_reserve, 90),
    "a FLUSH that waits for no sync leg": (_no_wait_for_sync_legs, 20),
    "a merge that loses a row": (_merge_that_loses_a_row, 40),
}
"""How it is broken, and the first seed to try: so that this takes seconds."""
WITHIN = 300


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_engine_is_found(defects: stage.Defects, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Histories that a sound engine passes find each mutation within WITHIN seeds."""
    mutate, first = MUTATIONS[name]
    mutate(monkeypatch)
    assert_noticed(name, range(first, first + WITHIN), defects)
