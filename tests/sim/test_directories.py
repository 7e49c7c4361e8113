"""Groups with directories in a simulated world: what a checkpoint holds of each path, it held between the cut's `as_of` and the mark.

The fault model and what must be true are told in `tests/simulation/directories.py`. A failure names its seed; `DPAC_SIM_KIND=directories
DPAC_SIM_SEED=N pytest tests/sim/test_simulation.py -k one_history` plays it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpac_engine.io.members import capture
from tests.simulation import stage, trees
from tests.simulation.directories import Directories
from tests.simulation.kinds import assert_noticed, play

HISTORIES = 40
ONCE_FAILED = [
    23,  # the index could not be written on a full disk: an error within dpac, said the log
    27,  # a barrier over a journal that failed ended in a bare OSError
    43,  # an abandoned capture was told of as an exception that was never retrieved
    45,  # a database that there was no room to copy did not hold `as_of` back
    379,  # what the journal had beyond an index that could not be written was never looked at again: a deleted file stayed
]


@pytest.fixture
def defects() -> Iterator[stage.Defects]:
    """The stage is set."""
    with stage.staged() as found:
        yield found


def _played(seed: int, defects: stage.Defects) -> Directories:
    history = play(seed, defects, "directories")
    assert isinstance(history, Directories)
    return history


def test_every_path_in_a_checkpoint_is_as_it_was_when_its_cut_says(defects: stage.Defects) -> None:
    """Observed and under a blueprint, through kills, losses of power, full disks and broken journals."""
    seen = Counter[str]()
    for seed in sorted({*range(HISTORIES), *ONCE_FAILED}):
        seen += _played(seed, defects).seen
    print(dict(seen))
    for what, least in {"observed": 200, "barrier": 20, "settled": 20}.items():
        assert seen[what] >= least, f"hardly ever {what}: {seen}"


def _a_scan_that_promises_its_end(patches: pytest.MonkeyPatch) -> None:
    real = capture.Capture._apply

    def apply(self: capture.Capture, plan: Any, work: Any, started_ns: int) -> None:
        real(self, plan, work, self._clock.now_ns())

    patches.setattr(capture.Capture, "_apply", apply)


def _an_index_ahead_of_the_journal(patches: pytest.MonkeyPatch) -> None:
    async def settle(self: capture.Capture) -> None:
        await self.in_thread(lambda: self.index.commit(self.index.journal_lsn))

    patches.setattr(capture.Capture, "_settle", settle)


def _a_database_taken_for_a_file(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(trees.Ledger, "recognises", lambda *_: False)


MUTATIONS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {
    "a scan that promises its end": (_a_scan_that_promises_its_end, 0),
    "an index that is ahead of the journal": (_an_index_ahead_of_the_journal, 100),
    "a database taken for a file": (_a_database_taken_for_a_file, 0),
}
"""How it is broken, and the first seed to try: so that this takes seconds."""
WITHIN = 200


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_capture_is_found(defects: stage.Defects, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Histories that a sound engine passes find each mutation within WITHIN seeds."""
    mutate, first = MUTATIONS[name]
    mutate(monkeypatch)
    assert_noticed(name, range(first, first + WITHIN), defects, "directories")
