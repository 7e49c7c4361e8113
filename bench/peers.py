"""Peers: NBD servers without protection, on a raw file of the same disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def missing_tools() -> list[str]:
    """What the benchmarks need and this host lacks."""
    return [tool for tool in ("fio", "nbdkit", "qemu-nbd", "qemu-img") if shutil.which(tool) is None]


@contextmanager
def nbdkit(folder: Path, size_bytes: int) -> Iterator[str]:
    """nbdkit's file plugin; its NBD URI."""
    disk, socket = _disk(folder, "nbdkit", size_bytes)
    with listening(["nbdkit", "--foreground", "--unix", str(socket), "file", str(disk)], socket):
        yield f"nbd+unix:///?socket={socket}"


@contextmanager
def qemu_nbd(folder: Path, size_bytes: int) -> Iterator[str]:
    """qemu-nbd; its NBD URI."""
    disk, socket = _disk(folder, "qemu", size_bytes)
    command = ["qemu-nbd", "--format=raw", "--persistent", "--shared=8", f"--socket={socket}", str(disk)]
    with listening(command, socket):
        yield f"nbd+unix:///?socket={socket}"


def _disk(folder: Path, name: str, size_bytes: int) -> tuple[Path, Path]:
    disk, socket = folder / f"{name}.raw", folder / f"{name}.sock"
    disk.unlink(missing_ok=True)
    disk.touch()
    os.truncate(disk, size_bytes)
    return disk, socket


@contextmanager
def listening(command: list[str], socket: Path) -> Iterator[None]:
    """Run a server until the end, from when its socket is there."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)
        socket.unlink(missing_ok=True)
