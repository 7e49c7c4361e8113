"""A real file system on an export: nbdfuse makes the export a file, a loop device makes that a disk."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.site import run, until
from tests.tools import lacking, require_root, require_tool

TOOLS = ("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "mount", "umount")


def require_file_systems() -> None:
    """Skip the test, by name, where an export cannot become a block device."""
    require_root()
    for tool in TOOLS:
        require_tool(tool)
    if not Path("/dev/fuse").exists():
        lacking("/dev/fuse", "load the fuse module, or give the container the device")


class Disk:
    """`with Disk(uri, folder) as disk:` — an export as the block device `disk.device`."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.root = folder / "root"
        self._fuse = folder / "fuse"
        self._uri = uri
        self._stack = ExitStack()
        self.device = ""

    def __enter__(self) -> Disk:
        self.root.mkdir(parents=True)
        self._fuse.mkdir()
        with ExitStack() as stack:
            self._start_nbdfuse(stack)
            try:
                self.device = run("losetup", "--find", "--show", str(self._fuse / "nbd")).strip()
            except AssertionError as error:
                lacking("a loop device", str(error))
            stack.callback(run, "losetup", "--detach", self.device)
            self._stack = stack.pop_all()
        return self

    def _start_nbdfuse(self, stack: ExitStack) -> None:
        file = self._fuse / "nbd"
        process = subprocess.Popen([require_tool("nbdfuse"), str(file), self._uri])
        stack.callback(process.wait, 60)
        until(lambda: file.exists() or process.poll() is not None, "nbdfuse serves")
        assert process.poll() is None, f"nbdfuse ended with {process.returncode}"
        stack.callback(run, "fusermount3", "-u", str(self._fuse))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def mounted(self) -> ExitStack:
        """`with disk.mounted():` its file system is at `disk.root`."""
        run("mount", self.device, str(self.root))
        stack = ExitStack()
        stack.callback(run, "umount", str(self.root))
        return stack

    def check(self) -> str:
        """e2fsck without repair; fails if anything is wrong."""
        return run("e2fsck", "-f", "-n", self.device)


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
