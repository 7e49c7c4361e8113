"""What files need beyond the standard library: replaced whole, folders synced, writes completed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from dpac_api.errors import Conflict, Invalid

IOV_MAX = 1024
"""Parts that one system call takes (Linux)."""


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


def write_new_file(path: Path, data: bytes) -> None:
    """Write a private file (0600) that did not exist: it may be the only copy of a key. Durable when this returns.

    Conflict if there is a file, Invalid if it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        sync_folder(path.parent)
    except FileExistsError:
        raise Conflict(f"{path} exists already. Name a new file for the key.") from None
    except OSError as error:
        raise Invalid(f"{path} cannot be written ({error.strerror}). Name a file in a folder that can.") from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name(path: Path) -> None:
    """Make the name of a file or folder durable, whoever made it: a process may have ended between that and its sync.

    Above a folder that this user may not read nothing of ours is new. Raises OSError.
    """
    with contextlib.suppress(PermissionError):
        sync_folder(path.parent)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it, if they are missing; its name is durable when this returns.

    One that is there keeps its mode; those above it are made as the umask has it. Raises OSError.
    """
    if not path.parent.is_dir():
        make_folder(path.parent, 0o777)
    path.mkdir(mode=mode, exist_ok=True)
    sync_name(path)


def write_all(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write the parts one after the other from `offset` on, all of them, whatever the kernel takes at once. Raises OSError."""
    if len(parts) == 1 and os.pwrite(descriptor, parts[0], offset) == len(parts[0]):
        return  # by far the most usual: a batch of one costs thrice as much
    for begin in range(0, len(parts), IOV_MAX):
        batch = parts[begin : begin + IOV_MAX]
        wanted = sum(map(len, batch))
        written = os.pwritev(descriptor, batch, offset)
        if written != wanted:
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.pwrite(descriptor, rest, offset + wanted - len(rest)) :]
        offset += wanted
