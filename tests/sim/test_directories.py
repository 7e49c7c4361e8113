"""Groups with directories in a simulated world: what a checkpoint holds of each path, it held between the cut's `as_of` and the mark.

The fault model and what must be true are told in `tests/simulation/directories.py`. A failure names its seed; `DPAC_SIM_KIND=directories
DPAC_SIM_SEED=N pytest tests/sim/test_simulation.py -k one_history` plays it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation import stage
from tests.simulation.directories import Directories
from tests.simulation.kinds import play

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
