"""Who has files of a folder open, by /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def writers_below(root: Path) -> Iterator[tuple[int, str]]:
    """(pid, path) of other processes that have a file below `root` open for writing, as far as this user may see them."""
    prefix = os.path.realpath(root) + "/"
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with suppress(OSError):  # it ended meanwhile, or is another user's
            for descriptor in os.listdir(f"/proc/{name}/fd"):
                path = os.readlink(f"/proc/{name}/fd/{descriptor}")
                if path.startswith(prefix) and _writes(name, descriptor):
                    yield int(name), path
                    break


def _writes(pid: str, descriptor: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{descriptor}") as lines:
        flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), os.O_RDONLY)
    return flags & os.O_ACCMODE != os.O_RDONLY
