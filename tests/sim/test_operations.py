"""What persons do to a group in a simulated world: holds, retention, restores in place, sync legs that every write waits for, busy targets.

The fault models are told in `tests/simulation/operations.py` and `decay.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dpac_engine.control import gate, rewind, shipper
from dpac_engine.io.members import volume_file
from tests.simulation import stage
from tests.simulation.kinds import assert_noticed, play
from tests.simulation.operations import Operations

HISTORIES = 30
FOUND = [123]
"""In place of a safety checkpoint the end of a tail was taken, which bears its number: what came in between did not go back."""


@pytest.fixture
def defects() -> Iterator[stage.Defects]:
    """The stage is set."""
    with stage.staged() as found:
        yield found


def test_what_is_held_stays_and_what_is_brought_back_is_what_was(defects: stage.Defects) -> None:
    """Through kills, losses of power, targets that throttle and every other fault."""
    seen = Counter[str]()
    for seed in [*range(HISTORIES), *FOUND]:
        history = play(seed, defects, "operations")
        assert isinstance(history, Operations)
        seen += history.seen
    print(dict(seen))
    for what, least in {"held and right": 5, "brought back": 5, "acknowledged when committed": 20}.items():
        assert seen[what] >= least, f"hardly ever {what}: {seen}"


def test_rot_in_a_volume_s_own_file_reaches_no_target(defects: stage.Defects) -> None:
    """As long as nobody copies the volume anew: what is shipped is what was written, and not what the disk made of it."""
    for seed in range(15):
        play(seed, defects, "decay")


def _holds_that_are_not_stored(patches: pytest.MonkeyPatch) -> None:
    real = shipper.hold_or_release
    patches.setattr(
        shipper, "hold_or_release", lambda writer, change: real(writer, change) if not change.held else None
    )


def _a_rewind_that_misses_a_range(patches: pytest.MonkeyPatch) -> None:
    real = rewind.changed_ranges
    patches.setattr(rewind, "changed_ranges", lambda *args: real(*args)[1:])


def _writes_that_wait_for_no_sync_leg(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(gate.Gate, "_passes", lambda *_: True)


def _a_start_that_copies_what_nobody_changed(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(volume_file.Signature, "is_left_as", lambda *_: False)  # it brings rot over every good copy


MUTATIONS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "holds that are not stored": (_holds_that_are_not_stored, "operations"),
    "a rewind that misses a range": (_a_rewind_that_misses_a_range, "operations"),
    "writes that wait for no sync leg": (_writes_that_wait_for_no_sync_leg, "operations"),
    "a start that copies what nobody changed": (_a_start_that_copies_what_nobody_changed, "decay"),
}
WITHIN = 200


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_operation_is_found(defects: stage.Defects, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Histories that a sound engine passes find each mutation within WITHIN seeds."""
    mutate, kind = MUTATIONS[name]
    mutate(monkeypatch)
    assert_noticed(name, range(WITHIN), defects, kind)
