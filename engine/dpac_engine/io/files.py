"""Small files that are replaced whole: a reader, or a crash, sees the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by a file that holds `data`, atomically.

    `durable`: it is on the disk when this returns; without it only a crash of the host may bring the old content
    back. Files of one path have one writer at a time. Raises OSError.
    """
    partial = path.with_name(f"{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.rename(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder, durably, if it is missing; one that is there keeps its mode. Raises OSError."""
    if path.is_dir():
        return
    path.mkdir(mode=mode, exist_ok=True)
    sync_folder(path.parent)
