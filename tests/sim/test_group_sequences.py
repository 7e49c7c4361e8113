"""Every short sequence of operations on a group of two volumes, with an end after it (`tests/simulation/sequences.py`).

A sequence's every beginning is a sequence too, so an end follows every completed operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest

from dpac_engine.io import spool
from tests.simulation import host, stage
from tests.simulation.sequences import ENDS, OPERATIONS, Sequenced


@pytest.fixture
def defects() -> Iterator[stage.Defects]:
    """The stage is set."""
    with stage.staged() as found:
        yield found


SHORT = ["kill", "power, nothing kept"]


def _all(defects: stage.Defects, length: int, ends: Iterable[str]) -> int:
    count = 0
    for names in itertools.product(OPERATIONS, repeat=length):
        for end in ends:
            defects.found.clear()
            history = Sequenced(defects, names, end)
            try:
                history.run()
            except Exception as error:
                raise AssertionError(f"{' > '.join(names)} > {end}: {error!r}") from error
            count += 1
    return count


@pytest.mark.parametrize(("length", "ends"), [(1, [*ENDS]), (2, SHORT)])
def test_after_any_short_sequence_both_volumes_are_of_one_moment(
    defects: stage.Defects, length: int, ends: list[str]
) -> None:
    """Nothing flushed is missing, no volume is ahead of the other, and every checkpoint is what they were."""
    assert _all(defects, length, ends) == len(ends) * len(OPERATIONS) ** length


@pytest.mark.soak
@pytest.mark.parametrize("length", [2, 3])
def test_after_any_longer_sequence_both_volumes_are_of_one_moment(defects: stage.Defects, length: int) -> None:
    """The same for 576 and 6,912 ends."""
    assert _all(defects, length, ENDS) == len(ENDS) * len(OPERATIONS) ** length


@pytest.mark.parametrize("mutation", ["a flush that does not wait", "a spool that is not synced"])
def test_the_sequences_find_a_broken_promise(
    defects: stage.Defects, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    """With the rule taken out of the engine, some sequence of two fails."""
    if mutation == "a flush that does not wait":
        monkeypatch.setattr(spool.Spool, "when_durable", lambda self, lsn, done: done(None))
    else:
        monkeypatch.setattr(host.Host, "fdatasync", lambda self, descriptor: None)
    with pytest.raises(AssertionError):
        _all(defects, 2, SHORT)
