"""Pictures of trees: everything a restore must bring back, comparable by `==`."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Path -> all there is to see of it; names of one inode share a group."""
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    paths = [top]
    for folder, folders, names in os.walk(top):
        paths += [os.path.join(folder, name) for name in [*folders, *names]]
    for path in sorted(paths):
        found[os.path.relpath(path, top)] = _one(path, top, groups)
    return found


def _one(path: bytes, top: bytes, groups: dict[tuple[int, int], bytes]) -> tuple[object, ...]:
    status = os.lstat(path)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    content: object = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        content = status.st_rdev
    group = None
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        group = groups.setdefault((status.st_dev, status.st_ino), os.path.relpath(path, top))
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    owner = (status.st_uid, status.st_gid)
    return (
        stat.S_IFMT(status.st_mode),
        stat.S_IMODE(status.st_mode),
        *owner,
        status.st_mtime_ns,
        size,
        content,
        xattrs,
        group,
    )
