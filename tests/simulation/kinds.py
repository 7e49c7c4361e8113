"""The kinds of histories there are, and how one is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.simulation import stage, world
from tests.simulation.absences import Absences
from tests.simulation.decay import Decay
from tests.simulation.directories import Directories
from tests.simulation.history import History, replay_command
from tests.simulation.operations import Operations

TOLD = 40
"""Lines of what came last that a failure shows."""


class Kind(NamedTuple):
    """A kind of histories."""

    make: Callable[[int, stage.Defects], History]
    run: Callable[[Any], object]
    weight: int
    """Of so many in a campaign, relative to the others."""


KINDS = {
    "faults": Kind(History, History.run, 8),
    "rot": Kind(History, History.run_into_rot, 2),
    "directories": Kind(Directories, History.run, 3),
    "operations": Kind(Operations, History.run, 3),
    "decay": Kind(Decay, Decay.run, 1),
    "absences": Kind(Absences, History.run, 1),
}


def play(seed: int, defects: stage.Defects, kind: str = "faults") -> History:
    """The history of that seed, played to its end. AssertionError, with the seed and what came last, if a promise was broken."""
    defects.found.clear()
    history = KINDS[kind].make(seed, defects)
    try:
        KINDS[kind].run(history)
    except (Exception, world.Ended) as error:
        told = "\n".join(history.world.trace[-TOLD:])
        raise AssertionError(f"{replay_command(kind, seed)}\n{error!r}\n{told}") from error
    return history


def assert_noticed(defect: str, seeds: range, defects: stage.Defects, kind: str = "faults") -> None:
    """One of these histories breaks a promise: the engine was broken on purpose, by `defect`."""
    for seed in seeds:
        try:
            play(seed, defects, kind)
        except AssertionError as error:
            print(f"{defect}: seed {seed}: {str(error).splitlines()[1]}")
            return
    raise AssertionError(f"{len(seeds)} histories did not notice {defect}")
