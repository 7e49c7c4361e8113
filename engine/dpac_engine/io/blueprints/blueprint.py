"""Blueprints: how an application's files are read at a consistent moment, and checked after a restore."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol


class Copied(NamedTuple):
    """A consistent copy of a data file."""

    file: Path
    """Where it lies: the scratch path that was asked for."""
    mtime_ns: int
    """The newest change that is in it."""


class Unsettled(Exception):
    """The data file could not be read at a consistent moment just now; worth another try."""


class NotCovered(Exception):
    """It looks like a data file of the blueprint's application, but cannot be read by its means: a plain file then."""


class Blueprint(Protocol):
    """What a directory member asks of an application's blueprint. Called in a thread; may block."""

    name: str

    def recognises(self, head: bytes) -> bool:
        """Whether a file that starts with these bytes (at least 16 where it has them) is one of the application's."""

    def companions(self, name: bytes) -> tuple[bytes, ...]:
        """Names, in the same folder, of files that belong to data file `name` and are covered by copying it."""

    def logs(self, name: bytes) -> tuple[bytes, ...]:
        """The companions whose change means that the data changed."""

    def companion_of(self, name: bytes) -> bytes | None:
        """The data file that a file of this name would be a companion of, by its name alone."""

    def copy(self, source: bytes, scratch: Path) -> Copied:
        """Write a consistent copy of the data file at absolute path `source` to `scratch`, holding everything that
        was committed before the call. Raises Unsettled, NotCovered or OSError."""

    def check(self, root: Path) -> dict[str, str]:
        """Check every data file below a restored `root`: relative path -> `ok`, or what is wrong with it."""
