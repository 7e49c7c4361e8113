"""A mounted disk whose power can be cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dpac_engine.io.overlay_blocks import boot_id
from tests.powercut.disk import SYNC_ATTRIBUTE
from tests.tools import lacking, require_tool

ROOT = Path(__file__).parents[2]
_MOUNT_SECONDS_MAX = 20
_BOOT_ID = boot_id().encode()
_EARLIER_BOOT_ID = bytes(reversed(_BOOT_ID))
_NAMES_A_BOOT_BYTES_MAX = 2**16


class PoweredDisk:
    """`with PoweredDisk(folder) as disk:` — a file system at `disk.root`; whoever uses it must be dead when power is cut.

    After a cut the same path shows what is left. What led there lies in `folder/operations-<n>.log`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "disk"
        self.cuts = 0
        self._serving: subprocess.Popen[str] | None = None

    def __enter__(self) -> PoweredDisk:
        require_tool("fusermount3")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            lacking(
                "FUSE", "make /dev/fuse usable for this user (`modprobe fuse`; in a container `--device /dev/fuse`)"
            )
        self.root.mkdir(parents=True)
        self._mount()
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()

    def _mount(self) -> None:
        device = self.root.stat().st_dev
        self._serving = subprocess.Popen(
            [sys.executable, "-m", "tests.powercut.face", str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        deadline = time.monotonic() + _MOUNT_SECONDS_MAX
        while self.root.stat().st_dev == device:
            assert self._serving.poll() is None, "the file system's process ended"
            assert time.monotonic() < deadline, "the file system did not come"
            time.sleep(0.002)

    def _unmount(self) -> None:
        # Lazily: a process that is just dying may have something open. It keeps seeing the old disk, which nobody else does.
        if self._serving is None:
            return
        unmounted = subprocess.run([require_tool("fusermount3"), "-u", "-z", str(self.root)], check=False)
        assert self._serving.stdin is not None
        self._serving.stdin.close()
        self._serving.wait(_MOUNT_SECONDS_MAX)
        assert self._serving.stdout is not None
        self._serving.stdout.close()
        self._serving = None
        assert unmounted.returncode == 0

    def _ask(self, **command: Any) -> Any:
        assert self._serving is not None
        assert self._serving.stdin is not None
        assert self._serving.stdout is not None
        self._serving.stdin.write(json.dumps(command) + "\n")
        self._serving.stdin.flush()
        return json.loads(self._serving.stdout.readline())

    def power_cut(self, seed: int) -> None:
        """Lose what was not synced, as the seed chooses (see `PowerCutDisk.after_power_cut`), and start again."""
        self.cuts += 1
        log = self.folder / f"operations-{self.cuts}.log"
        print(f"power cut {self.cuts}: seed {seed}, operations in {log}")
        self._ask(cut=seed, log=str(log))

        of_another_boot(self.root)

    def sync(self) -> None:
        """Everything there is becomes durable."""
        os.setxattr(self.root, SYNC_ATTRIBUTE, b"")

    def renew(self) -> None:
        """An empty disk."""
        self._ask(new=True)


def of_another_boot(folder: Path) -> None:
    """A host that had no power has another boot id. This kernel's stays, so what the files below `folder` remember of it changes.

    It tells what was torn by the loss of power from what was damaged under a host that ran on.
    """
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _NAMES_A_BOOT_BYTES_MAX:
            content = path.read_bytes()
            if _BOOT_ID in content:
                with path.open("r+b") as file:
                    file.write(content.replace(_BOOT_ID, _EARLIER_BOOT_ID))
                    file.flush()
                    os.fsync(file.fileno())
