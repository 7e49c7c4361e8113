"""Each promise of the engine, broken on purpose in a copy of it, turns the test red that guards it.

A test that stays green whatever the engine does proves nothing. Here it is seen to fail: the same tests pass on an
unchanged copy first, so that what turns them red is the defect and nothing else.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutations.defects import SEEN_BY_ORACLES, SEEN_SOON
from tests.mutations.mutant import ENGINE, Mutation, engine_with, judge

SECONDS_MAX = 250
"""For tests that take some seconds: other tests compete for the same cores."""


def see(folder: Path, mutation: Mutation, seconds_max: float) -> None:
    """Fail unless the mutation's tests do."""
    verdict = judge(engine_with(folder / "engine", mutation), mutation.tests, seconds_max)
    print(verdict.said)
    assert verdict.failed, f"engine/dpac_engine/{mutation.file} without {mutation.old!r}: nobody noticed"


@pytest.mark.parametrize(
    "names", [["a FUA that is ignored"], pytest.param(list(SEEN_SOON), marks=pytest.mark.soak)], ids=["one", "all"]
)
def test_without_a_defect_the_same_tests_pass(tmp_path: Path, names: list[str]) -> None:
    """On an unchanged copy of the engine nothing is red. The other tests pass on the engine itself in the same `make test`."""
    tests = list(dict.fromkeys(test for name in names for test in SEEN_SOON[name].tests))
    verdict = judge(engine_with(tmp_path / "engine", None), tests, SECONDS_MAX)
    assert verdict.passed, verdict.said


@pytest.mark.parametrize("name", SEEN_SOON)
def test_a_defect_is_seen(tmp_path: Path, name: str) -> None:
    """A test that passes on the engine fails on this copy of it."""
    see(tmp_path, SEEN_SOON[name], SECONDS_MAX)


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.parametrize("name", SEEN_BY_ORACLES)
def test_a_defect_is_seen_by_an_oracle(tmp_path: Path, name: str) -> None:
    """On a live site whose every process has the defect."""
    see(tmp_path, SEEN_BY_ORACLES[name], 1800)


@pytest.mark.parametrize("name", [*SEEN_SOON, *SEEN_BY_ORACLES])
def test_a_defect_is_one_of_the_engine_as_it_is(name: str) -> None:
    """Its text is in the engine once, and what stands there instead is Python that means something else."""
    mutation = (SEEN_SOON | SEEN_BY_ORACLES)[name]
    source = (ENGINE / "dpac_engine" / mutation.file).read_text()
    assert ast.dump(ast.parse(mutation.mutated(source))) != ast.dump(ast.parse(source))


def test_a_text_that_is_gone_is_told() -> None:
    """A defect of a line that was rewritten is not passed over."""
    with pytest.raises(AssertionError, match="it was rewritten"):
        Mutation("core/image.py", "return what_is_not_there", "return None", []).mutated("x = 1\n")
