"""An NBD export as a disk with a file system: nbdfuse makes the export a file, a loop device makes the file a disk.

What is attached is found again by its folder alone, so that one run may attach and another detach. Needs root.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

ATTACH_SECONDS_MAX = 30
UNMOUNT_SECONDS_MAX = 20
DETACH_SECONDS_MAX = 60
_ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


class DiskError(Exception):
    """Something about a disk did not work; the message says what was tried and what was said."""


class Disk:
    """`with Disk(uri, folder) as disk:` makes an export the block device `disk.device`, to be mounted at `disk.root`."""

    def __init__(self, uri: str, folder: Path) -> None:
        folder = folder.resolve()  # as the kernel names it
        self.root = folder / "root"
        self._uri = uri
        self._folder = folder
        self._fuse = folder / "fuse"
        self._file = self._fuse / "nbd"
        self._pid_file = folder / "nbdfuse.pid"
        self._uri_file = folder / "uri"

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # ------------------------------------------------------------------ the block device

    @property
    def device(self) -> str:
        """The loop device; an empty text if the disk is not attached."""
        # The kernel's own list: losetup would look at the file, which hangs or fails once nbdfuse has died.
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # a device that goes away meanwhile
                if backing.read_text().rstrip("\n") == str(self._file):
                    return f"/dev/{backing.parts[-3]}"
        return ""

    def attach(self) -> None:
        """Make the export a block device, unless it is one already; DiskError if another is attached here."""
        for folder in (self.root, self._fuse):
            folder.mkdir(parents=True, exist_ok=True)
        if not _mounted(self._fuse):
            self._start_nbdfuse()
            self._uri_file.write_text(self._uri)
        elif (attached := self._uri_file.read_text()) != self._uri:
            raise DiskError(f"{self._folder} has {attached} attached; detach that first, or choose another folder.")
        if not self.device:
            try:
                _run("losetup", "--find", str(self._file))
            except DiskError:
                self.detach()
                raise

    def detach(self) -> None:
        """Unmount, free the loop device and close the export, as far as there is anything to undo."""
        self.unmount()
        if device := self.device:
            _run("losetup", "--detach", device)
        if _mounted(self._fuse):
            _run("fusermount3", "-u", str(self._fuse))
        self._wait_for_nbdfuse()

    def _start_nbdfuse(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        log = self._folder / "nbdfuse.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_command("nbdfuse"), "--pidfile", self._pid_file, self._file, self._uri],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal must not take the disk from under a file system
            )
        deadline = time.monotonic() + ATTACH_SECONDS_MAX
        while not self._pid_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise DiskError(f"nbdfuse does not serve {self._uri}: {log.read_text().strip() or 'it says nothing'}")
            time.sleep(0.02)

    def _wait_for_nbdfuse(self) -> None:
        """Until nbdfuse has ended, and with it the connection to the export."""
        try:
            pid = int(self._pid_file.read_text())
            if Path(f"/proc/{pid}/comm").read_text().strip() != "nbdfuse":
                return
            descriptor = os.pidfd_open(pid)
        except (OSError, ValueError):
            return
        try:
            if not select.select([descriptor], [], [], DETACH_SECONDS_MAX)[0]:
                raise DiskError(f"nbdfuse (process {pid}) does not end, although {self._fuse} is unmounted.")
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------------ the file system

    def format_if_blank(self) -> bool:
        """Make an ext4 file system if there is nothing on the disk; anything but ext4 is an error. True if it made one."""
        probe = subprocess.run(
            [*_command("blkid"), "--probe", "--match-tag", "TYPE", "--output", "value", self.device],
            capture_output=True,
            text=True,
            check=False,
        )
        found = probe.stdout.strip()
        if probe.returncode == 0 and found == "ext4":
            return False
        if probe.returncode != 2 or found:  # 2: nothing that it knows
            raise DiskError(f"{self._uri} holds {found or probe.stderr.strip() or 'something'}, and is not formatted.")
        _run("mkfs.ext4", "-q", self.device)
        return True

    def needs_replay(self) -> bool:
        """Whether the file system was in use at that moment: its own journal is replayed when it is mounted."""
        return "needs_recovery" in _run("dumpe2fs", "-h", self.device)

    def mount(self) -> None:
        """Mount the file system at `root`, unless it is mounted."""
        if not _mounted(self.root):
            _run("mount", self.device, str(self.root))

    def unmount(self) -> None:
        """Unmount the file system, if it is mounted; who used it until now is given a moment to end."""
        deadline = time.monotonic() + UNMOUNT_SECONDS_MAX
        while _mounted(self.root):
            try:
                _run("umount", str(self.root))
            except DiskError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """`with disk.mounted():` its file system is at `disk.root`."""
        self.mount()
        try:
            yield
        finally:
            self.unmount()

    def check(self) -> str:
        """What e2fsck says of the unmounted file system, without repairing it; DiskError if anything is wrong."""
        return _run("e2fsck", "-f", "-n", self.device)


def _mounted(folder: Path) -> bool:
    """Whether something is mounted there, also if what serves it has died (`os.path.ismount` would say no)."""
    shown = "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in str(folder))
    return shown in (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())


def _command(tool: str) -> list[str]:
    # Folders of administration tools are not on everybody's PATH.
    return ["env", f"PATH={os.environ.get('PATH', os.defpath)}{os.pathsep}{_ADMIN_FOLDERS}", "LC_ALL=C", tool]


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([*_command(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}".strip()
        raise DiskError(f"`{tool} {' '.join(arguments)}` ended with {done.returncode}: {said}")
    return done.stdout
