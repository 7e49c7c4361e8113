"""A volume's file as the operating system shows it: what it looks like from outside, and opening it for oneself alone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from dpac_api.errors import Conflict, NotFound
from dpac_engine.io.files import sync_name


class Signature(NamedTuple):
    """What a file looks like from outside; a change made while detached shows in it."""

    size_bytes: int
    mtime_ns: int
    inode: int
    device: int = 0
    """Its file system's number, which a restart of the host may change; 0 in what an earlier version noted."""

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        """That of the file with this status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def is_left_as(self, known: Signature) -> bool:
        """Nobody has changed the file since it was `known`."""
        return self[:3] == known[:3]

    def is_other_than(self, known: Signature) -> bool:
        """It is surely another file, not the same one after its file system was mounted anew."""
        return self.device == known.device and self.inode != known.inode


class Descriptor(int):
    """An open file that is closed with the last thread that uses it: a number closed under a thread could be another
    file's by the time it writes."""

    def __del__(self) -> None:
        os.close(self)


def signature_of(path: Path) -> Signature | None:
    """The file's signature, None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Signature.of(status)


def open_locked(path: Path) -> tuple[int, bool]:
    """(An open file that nobody else may open so, whether it was just made). NotFound, Conflict, or OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        created = False
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise NotFound(f"{path} cannot be made: the folder {path.parent} is missing. Create or mount it.") from None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        created = True
    try:
        sync_name(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(
            f"{path} is in use by another process. Stop what has it open, then it is attached again."
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, created


def read_whole(descriptor: int, offset: int, length: int) -> bytes:
    """As many bytes as asked for; zeroes behind the file's end."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            return data + bytes(length - len(data))
        data += more
    return data
