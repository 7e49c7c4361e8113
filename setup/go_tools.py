"""Servers and peers that tests and benchmarks drive, written in Go: found on PATH or in the tools cache, or built.

python -m setup.go_tools versitygw           prints the path, after building the program if need be
python -m setup.go_tools versitygw kopia     one path a line
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setup import checkout, go_build
from setup.console import SetupError, alone, say
from setup.go_build import GoProgram
from setup.tools_cache import appearing

PROGRAMS = {
    program.name: program
    for program in (
        # An S3 server over a folder.
        GoProgram("versitygw", "github.com/versity/versitygw", "1.8.0", "github.com/versity/versitygw/cmd/versitygw"),
        # A backup program, a peer of the benchmarks.
        GoProgram("kopia", "github.com/kopia/kopia", "0.21.1", "github.com/kopia/kopia"),
        # What replicates SQLite databases, another peer.
        GoProgram(
            "litestream",
            "github.com/benbjohnson/litestream",
            "0.5.18",
            "github.com/benbjohnson/litestream/cmd/litestream",
        ),
    )
}
"""Every program that is built here; a further one is one more line."""

_GO_OLDEST = (1, 25)
"""The oldest Go that builds all of them."""


def find(name: str) -> Path | None:
    """The path of a program, from PATH or from the cache; None if it is not there yet."""
    on_path = shutil.which(name)
    return Path(on_path) if on_path else _in_cache(PROGRAMS[name])


def ensure(name: str) -> Path:
    """The path of a program, building it first if need be. SetupError if that cannot be done."""
    found = find(name)
    if found:
        return found
    with alone(checkout.tools_folder()):
        # Another run may have finished while this one waited.
        return _in_cache(PROGRAMS[name]) or _get(PROGRAMS[name])


def _in_cache(program: GoProgram) -> Path | None:
    file = _cache_folder(program) / program.name
    return file if os.access(file, os.X_OK) else None


def _cache_folder(program: GoProgram) -> Path:
    return checkout.tools_folder() / f"{program.name}-{program.version}"


def _get(program: GoProgram) -> Path:
    go_build.require_go(program.name, _GO_OLDEST, f"Put {program.name} on PATH (https://{program.module})")
    target = _cache_folder(program)
    with appearing(target) as partial:
        go_build.build(program, partial)
    return target / program.name


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in PROGRAMS]
    if unknown or not arguments:
        say(f"which program? {', '.join(PROGRAMS)}" + (f"; not {', '.join(unknown)}" if unknown else ""))
        return 2
    try:
        for name in arguments:
            print(ensure(name))
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
