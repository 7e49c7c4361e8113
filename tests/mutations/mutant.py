"""A copy of the engine with one line changed, and what a test says about it.

The tests of a mutant run in a process of their own whose `dpac_engine` is the copy, so that every process that they start
is mutated too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setup.checkout import ROOT

ENGINE = ROOT / "engine"
_SAID_CHARACTERS = 6000


@dataclass(frozen=True)
class Mutation:
    """One defect: in `file`, a path below `engine/dpac_engine`, `old` becomes `new`; `tests` must fail then."""

    file: str
    old: str
    new: str
    tests: Sequence[str]
    """pytest's names of them."""

    def mutated(self, source: str) -> str:
        """The module's source with the defect; fails if it does not hold the text exactly once."""
        found = source.count(self.old)
        assert found == 1, (
            f"engine/dpac_engine/{self.file} holds {self.old!r} {found} times, not once: it was rewritten. "
            "Say in tests/mutations/defects.py how this promise is broken now."
        )
        return source.replace(self.old, self.new)


def engine_with(folder: Path, mutation: Mutation | None) -> Path:
    """A copy of the engine in `folder`, with the defect if there is one."""
    shutil.copytree(ENGINE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        path = folder / "dpac_engine" / mutation.file
        source = mutation.mutated(path.read_text())
        compile(source, mutation.file, "exec")
        path.write_text(source)
    return folder


@dataclass(frozen=True)
class Verdict:
    """How pytest ended."""

    status: int
    said: str

    @property
    def passed(self) -> bool:
        """Every test passed, and there was one."""
        return self.status == 0 and " passed" in self.said.splitlines()[-1]

    @property
    def failed(self) -> bool:
        """A test was run and failed: not an error of collection, or none found, or an engine that cannot be imported."""
        return self.status == 1 and " failed" in self.said.splitlines()[-1]


def judge(engine: Path, tests: Sequence[str], seconds_max: float) -> Verdict:
    """Run tests on the engine in a folder, up to the first that fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "soak or not soak", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(engine), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    return Verdict(ended.returncode, ended.stdout.strip()[-_SAID_CHARACTERS:] or "nothing")
