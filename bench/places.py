"""Where copies go: the same place for every program, a part of it for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpac_api.models import FilesystemTargetSpec, TargetSpec
from tests.s3_server import S3Server


class Place(Protocol):
    """A file system or a bucket; `part` names what one run of one program has to itself."""

    @property
    def title(self) -> str:
        """For people."""

    def target(self, part: str) -> TargetSpec:
        """For dpac."""

    def restic(self, part: str) -> str:
        """Restic's name of a repository there."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a backup program may write there."""

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

    @property
    def environment(self) -> dict[str, str]:
        """See `Place`."""
        return {}

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


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 server on this machine, each part below a prefix of it."""

    server: S3Server
    name: str = "bench"
    title: str = "an S3 server"

    @property
    def environment(self) -> dict[str, str]:
        """See `Place`."""
        return {"AWS_ACCESS_KEY_ID": self.server.access_key, "AWS_SECRET_ACCESS_KEY": self.server.secret_key}

    def target(self, part: str) -> TargetSpec:
        """See `Place`."""
        return self.server.spec(self.name, prefix=part)

    def restic(self, part: str) -> str:
        """See `Place`."""
        return f"s3:{self.server.endpoint}/{self.name}/{part}"

    def kopia(self, part: str) -> list[str]:
        """See `Place`; the keys are in the environment."""
        address = f"--endpoint=127.0.0.1:{self.server.port}"
        return ["s3", f"--bucket={self.name}", f"--prefix={part}/", address, "--disable-tls"]

    def stored_bytes(self, part: str) -> int:
        """See `Place`."""
        return bytes_below(self.server.buckets / self.name / part)

    def remove(self, part: str) -> None:
        """See `Place`."""
        shutil.rmtree(self.server.buckets / self.name / part, ignore_errors=True)


@contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """A bucket of a server of its own, which is stopped at the end."""
    server = S3Server(folder)
    server.start()
    try:
        made = Bucket(server)
        server.make_bucket(made.name)
        yield made
    finally:
        server.stop()


def bytes_below(folder: Path) -> int:
    """The sizes of all files below a folder, added up."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
