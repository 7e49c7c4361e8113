"""A real file system on an export, where this machine can have one."""

from __future__ import annotations

import os
from pathlib import Path

from examples.postgres.disks import Disk, DiskError
from tests.e2e.site import run
from tests.tools import lacking, require_root, require_tool

__all__ = ["Disk", "DiskError", "files_in", "require_file_systems", "write_files"]

TOOLS = ("nbdfuse", "fusermount3", "losetup", "blkid", "mkfs.ext4", "dumpe2fs", "e2fsck", "mkswap", "mount", "umount")


def require_file_systems() -> None:
    """Skip the test, by name, where an export cannot become a block device."""
    require_root()
    for tool in TOOLS:
        require_tool(tool)
    if not Path("/dev/fuse").exists():
        lacking("/dev/fuse", "load the fuse module, or give the container the device")
    try:
        run("losetup", "--find")
    except AssertionError as error:
        lacking("a loop device", str(error))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, and make them and their names durable."""
    for name, data in files.items():
        with open(folder / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_in(folder: Path) -> dict[str, bytes]:
    """Name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
