"""Taking a file system away from its place, whatever state it is in."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
from pathlib import Path

log = logging.getLogger(__name__)

_MNT_DETACH = 2
_MOUNTS = Path("/proc/self/mountinfo")


def is_mounted(place: Path) -> bool:
    """Whether anything is mounted right there; asks the kernel's list, so that a mount which hangs does not matter."""
    wanted = os.fsencode(place)
    return any(_unescaped(line.split(b" ")[4]) == wanted for line in _MOUNTS.read_bytes().splitlines())


def _unescaped(place: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), place)


def detach(place: Path) -> None:
    """Take away what is mounted there, at once: whoever has a file of it open keeps that. OSError if it is not permitted."""
    while is_mounted(place):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(place), _MNT_DETACH) == 0:
            continue
        code = ctypes.get_errno()
        done = subprocess.run(
            ["fusermount3", "-u", "-z", os.fspath(place)], capture_output=True, text=True, check=False
        )
        if done.returncode and is_mounted(place):
            raise OSError(code, f"{place} cannot be unmounted: {done.stderr.strip() or os.strerror(code)}")
