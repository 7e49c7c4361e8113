"""Where copies go: the same place for every program, a part of it for each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpac_api.models import FilesystemTargetSpec, TargetSpec


class Place(Protocol):
    """A file system or a bucket; `part` names what one run of one program has to itself."""

    @property
    def title(self) -> str:
        """For people."""

    def target(self, part: str) -> TargetSpec:
        """For dpac."""

    def restic(self, part: str) -> str:
        """Restic's name of a repository there."""

    def kopia(self, part: str) -> list[str]:
        """Kopia's arguments that name a repository there."""

    def stored_bytes(self, part: str) -> int:
        """What lies there."""

    def remove(self, part: str) -> None:
        """Free it."""


@dataclass(frozen=True)
class Folder:
    """A folder of a file system."""

    root: Path
    title: str = "a folder"

    def target(self, part: str) -> FilesystemTargetSpec:
        """See `Place`."""
        return FilesystemTargetSpec(path=str(self.root / part))

    def restic(self, part: str) -> str:
        """See `Place`."""
        return str(self.root / part)

    def kopia(self, part: str) -> list[str]:
        """See `Place`."""
        (self.root / part).mkdir(parents=True, exist_ok=True)
        return ["filesystem", f"--path={self.root / part}"]

    def stored_bytes(self, part: str) -> int:
        """See `Place`."""
        return bytes_below(self.root / part)

    def remove(self, part: str) -> None:
        """See `Place`."""
        shutil.rmtree(self.root / part, ignore_errors=True)


def bytes_below(folder: Path) -> int:
    """The sizes of all files below a folder, added up."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
