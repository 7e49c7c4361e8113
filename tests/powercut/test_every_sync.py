"""Every promise is kept through a power cut, and none of the engine's syncs could be left out.

Fault model: kill -9 of the process, then a power cut as `PowerCutDisk` has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.powercut.omission import sites
from tests.powercut.powered import ROOT, PoweredDisk
from tests.powercut.scenarios import SCENARIOS
from tests.powercut.sites import PROOFS, SEEDS_MAX
from tests.powercut.stage import lost

SEEDS = 2
TIMELINESS = {"a spare file", "a spare tail"}
"""Nothing is lost without their syncs, but somebody waits who should not."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoweredDisk]:
    """One mount for all."""
    with PoweredDisk(tmp_path_factory.mktemp("power")) as disk:
        yield disk


def test_every_sync_of_the_engine_is_proven() -> None:
    """A new call that makes something durable needs a scenario that fails without it, in tests/powercut/sites.py."""
    found = list(sites())
    assert sorted(set(found) - set(PROOFS)) == [], "name the scenario that breaks without it in tests/powercut/sites.py"
    assert sorted(set(PROOFS) - set(found)) == [], "these are gone from the engine"
    assert set(PROOFS.values()) <= set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_promise_outlives_a_power_cut(disk: PoweredDisk, seed: int, name: str) -> None:
    """What was told to be durable is there afterwards: when all that was not synced is lost, and when some of it is."""
    for number in (0, *range(seed, seed + SEEDS - 1)):
        assert (problem := lost(disk, name, number)) is None, f"seed {number}: {problem}"


@pytest.mark.parametrize("site", PROOFS)
def test_no_sync_can_be_left_out(disk: PoweredDisk, site: str) -> None:
    """Without this one call a power cut loses what was promised."""
    problems = (lost(disk, PROOFS[site], seed, site) for seed in range(SEEDS_MAX))
    assert any(problems), f"nothing is lost without {site}: remove it, or find a scenario that needs it"


@pytest.mark.soak
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_promise_outlives_many_power_cuts(disk: PoweredDisk, seed: int, name: str) -> None:
    """The same with many seeds."""
    for number in range(seed, seed + 25):
        assert (problem := lost(disk, name, number)) is None, f"seed {number}: {problem}"


def test_the_page_on_durability_names_scenarios_that_are_played() -> None:
    """docs/durability.md and the scenarios tell the same promises, one by one."""
    rows = [line for line in (ROOT / "docs" / "durability.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for row in rows[1:] for name in re.findall(r'"([^"]+)"', row.split("|")[4])}
    assert named | TIMELINESS == set(SCENARIOS)
    for test in {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}:
        assert any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py")), test
