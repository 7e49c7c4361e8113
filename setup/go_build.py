"""Programs built from modules of the Go module proxy.

A program is built in a throw-away module: `go install package@version` asks the
proxy for the list of versions, which not every proxy gives, and this does not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setup.console import SetupError, capture, run_counting

_LANGUAGE = "1.24.7"
"""Go's language version in the throw-away module; `go` raises it to what the program's module asks for. From 1.17 on
Go prunes the module graph, which spares the Pulumi CLI some 14,000 downloads."""


@dataclass(frozen=True)
class GoProgram:
    """A program and the module version it is built from."""

    name: str
    module: str
    version: str
    package: str
    linker_flags: str = "-s -w"


def require_go(program: str, oldest: tuple[int, int], or_else: str) -> None:
    """SetupError if there is no Go as new as `oldest` to build `program`; `or_else` is the other way to get it."""
    hint = f"{or_else}, or Go {oldest[0]}.{oldest[1]} or newer (https://go.dev/dl/) to build it, and run this again."
    if shutil.which("go") is None:
        raise SetupError(f"{program} is not here, cannot be downloaded, and there is no Go to build it. {hint}")
    match = re.search(r"go(\d+)\.(\d+)", capture(["go", "version"]))
    if match is None or (int(match[1]), int(match[2])) < oldest:
        raise SetupError(f"{program} is not here, cannot be downloaded, and Go is too old to build it. {hint}")


def build(program: GoProgram, folder: Path) -> None:
    """Build a program into `folder`; SetupError carries the end of what Go said if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        module = Path(scratch)
        (module / "go.mod").write_text(
            f"module build\n\ngo {_LANGUAGE}\n\nrequire {program.module} v{program.version}\n"
        )
        command: list[str | Path] = ["go", "build", "-v", "-ldflags", program.linker_flags]
        command += ["-o", folder / program.name, program.package]
        title = f"building {program.name} {program.version} from source"
        run_counting(title, "modules and packages", command, env=_environment(), cwd=module)


def module_folder(module: str, version: str) -> Path:
    """Where the Go module cache holds a module's source, after downloading it if need be."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "go.mod").write_text("module build\n")
        answer = capture(
            ["go", "mod", "download", "-json", f"{module}@v{version}"], env=_environment(), cwd=Path(scratch)
        )
    return Path(json.loads(answer)["Dir"])


def _environment() -> dict[str, str]:
    flags = f"{os.environ.get('GOFLAGS', '')} -mod=mod".strip()
    return {**os.environ, "GOFLAGS": flags, "CGO_ENABLED": "0", "GOWORK": "off"}
