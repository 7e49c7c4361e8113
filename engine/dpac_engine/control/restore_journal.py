"""How far a restore is: beside what it writes aside, so that one that was cut short is gone on with.

Lines of JSON, only ever appended. A last line that was torn is not there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dpac_engine.io.files import sync_name


class Begun(msgspec.Struct, tag="begun"):
    """What is restored, and from where: a selector may mean another checkpoint by the time it is gone on with."""

    checkpoint: str
    target: str


class Written(msgspec.Struct, tag="written"):
    """All that the volume has of these segments is in the file, durably."""

    segments: list[str]


class Whole(msgspec.Struct, tag="whole"):
    """Everything is there, durably; what is left is the name."""

    bytes_written: int
    bytes_kept: int
    bytes_zeroed: int = 0


_decoder = msgspec.json.Decoder(Begun | Written | Whole)


class RestoreJournal:
    """One restore's, at `path`. What it says is durable before a method returns. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begun: Begun | None = None
        self.segments: set[str] = set()
        self.whole: Whole | None = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for line in path.read_bytes().splitlines(keepends=True):
                self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return
        match _decoder.decode(line):
            case Begun() as begun:
                self.begun = begun
            case Written(segments):
                self.segments.update(segments)
            case Whole() as whole:
                self.whole = whole

    def begin(self, checkpoint: str, target: str) -> None:
        """The first line; the file's name is durable, too."""
        self.begun = Begun(checkpoint, target)
        self._append(self.begun)
        sync_name(self._path)

    def wrote(self, segments: Iterable[str]) -> None:
        """These are in the file, which was synced."""
        self._append(Written([*segments]))

    def end(self, bytes_written: int, bytes_kept: int, bytes_zeroed: int = 0) -> Whole:
        """All of it is."""
        self.whole = Whole(bytes_written, bytes_kept, bytes_zeroed)
        self._append(self.whole)
        return self.whole

    def _append(self, line: Begun | Written | Whole) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(descriptor, "ab", buffering=0) as file:
            file.write(msgspec.json.encode(line) + b"\n")
            os.fsync(file.fileno())
