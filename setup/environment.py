"""The Python environment `.venv` of this checkout, with the package in it.

    python -m setup.environment backend aws test        installs those extras if they are not there yet

Nothing is installed again until `pyproject.toml`, the set of extras, the Python
or the checkout's place changes: a stamp in the environment says for what it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setup.checkout import ROOT, VENV
from setup.console import SetupError, alone, run, say

OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Stamp:
    """For what an environment was made."""

    project: str
    """SHA-256 of pyproject.toml."""
    root: str
    """The checkout: the editable package and every script name it."""
    extras: tuple[str, ...]

    @classmethod
    def wanted(cls, root: Path, extras: Sequence[str]) -> Stamp:
        """The stamp of an environment made now."""
        digest = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
        return cls(digest, str(root), tuple(sorted(set(extras))))

    @classmethod
    def read(cls, file: Path) -> Stamp | None:
        """The stamp in `file`; None if there is none, or none that can be read."""
        try:
            found: dict[str, Any] = json.loads(file.read_text())
            return cls(str(found["project"]), str(found["root"]), tuple(sorted(found["extras"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, file: Path) -> None:
        """Leave the stamp in `file`, whole or not at all."""
        scratch = file.with_name(f"{file.name}.{os.getpid()}")
        scratch.write_text(json.dumps({"project": self.project, "root": self.root, "extras": list(self.extras)}) + "\n")
        scratch.replace(file)

    def serves(self, wanted: Stamp) -> bool:
        """True if an environment of this stamp is all that `wanted` asks for."""
        same = self.project == wanted.project and self.root == wanted.root
        return same and set(wanted.extras) <= set(self.extras)

    def together(self, wanted: Stamp) -> Stamp:
        """What to install so that nothing that was there is lost: `make up` after `make test` keeps the test tools."""
        kept = self.extras if self.root == wanted.root else ()
        return Stamp(wanted.project, wanted.root, tuple(sorted({*wanted.extras, *kept})))


def ensure(extras: Sequence[str], *, venv: Path = VENV, root: Path = ROOT) -> Path:
    """Make the environment have the package with `extras`; returns its Python. Quick when nothing is to do."""
    python = venv / "bin" / "python"
    stamp_file = venv / ".dpac-installed"
    wanted = Stamp.wanted(root, extras)
    with alone(venv.parent):
        found = Stamp.read(stamp_file)
        moved = found is not None and found.root != wanted.root
        if moved or not _usable(python):
            _create(venv)
            found = None
        elif found and found.serves(wanted):
            return python
        target = found.together(wanted) if found else wanted
        stamp_file.unlink(missing_ok=True)
        _install(python, root, target.extras)
        target.write(stamp_file)
    return python


def _usable(python: Path) -> bool:
    """True if this Python runs and is new enough: an upgrade of the system may have taken it away."""
    check = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _create(venv: Path) -> None:
    say(f"creating the Python environment {venv} (Python {sys.version_info.major}.{sys.version_info.minor})")
    uv = shutil.which("uv")
    if uv:
        # Not `uv venv --clear`, which older versions do not know.
        shutil.rmtree(venv, ignore_errors=True)
        run([uv, "venv", "--quiet", "--seed", "--python", sys.executable, venv])
        return
    try:
        run([sys.executable, "-m", "venv", "--clear", venv])
    except SetupError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{error}\nThis Python cannot make environments. On Debian: apt install python{version}-venv; or install uv."
        ) from error


def _install(python: Path, root: Path, extras: Sequence[str]) -> None:
    package = f"{root}[{','.join(extras)}]" if extras else str(root)
    say(f"installing dpac with {', '.join(extras) or 'no extras'} (a minute or two the first time)")
    uv = shutil.which("uv")
    if uv:
        run([uv, "pip", "install", "--quiet", "--python", python, "--editable", package])
    else:
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", package])


def main(extras: list[str]) -> int:
    """Install the extras named on the command line."""
    if sys.version_info < OLDEST_PYTHON:
        say(f"dpac needs Python 3.11 or newer; this is {sys.version.split()[0]}")
        return 1
    try:
        ensure(extras)
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
