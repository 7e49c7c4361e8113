"""Peers of the copy rows: restic and kopia, which both compress with zstd, encrypt, and authenticate as dpac does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from bench.places import Place
from setup import go_tools

_PASSWORD = "bench"


def missing_tools() -> list[str]:
    """What the copy rows need and this host lacks."""
    lacking = [] if shutil.which("restic") else ["restic"]
    return lacking + [name for name in ("versitygw", "kopia", "litestream") if go_tools.find(name) is None]


class Restic:
    """One repository of restic, with its defaults."""

    name = "restic"

    def __init__(self, place: Place, part: str, scratch: Path) -> None:
        self._environment = {
            **os.environ,
            **place.environment,
            "RESTIC_PASSWORD": _PASSWORD,
            "RESTIC_REPOSITORY": place.restic(part),
            "RESTIC_CACHE_DIR": str(scratch / "restic-cache"),
        }
        self._run("init")

    def back_up(self, source: Path) -> None:
        """The first snapshot."""
        self._run("backup", str(source))

    def restore(self, to: Path) -> None:
        """The snapshot, whole."""
        self._run("restore", "latest", "--target", str(to))

    def _run(self, *arguments: str) -> None:
        subprocess.run(["restic", "--quiet", *arguments], env=self._environment, check=True, stdout=subprocess.DEVNULL)


class Kopia:
    """One repository of kopia; compression is on, and one large file is uploaded in parallel."""

    name = "kopia"

    def __init__(self, place: Place, part: str, scratch: Path) -> None:
        self._environment = {
            **os.environ,
            **place.environment,
            "KOPIA_PASSWORD": _PASSWORD,
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }
        self._scratch = scratch / "kopia"
        self._snapshot = ""
        self._run("repository", "create", *place.kopia(part), f"--cache-directory={self._scratch / 'cache'}")
        self._run("policy", "set", "--global", "--compression=zstd", "--parallel-upload-above-size-mib=256")

    def back_up(self, source: Path) -> None:
        """The first snapshot."""
        self._snapshot = json.loads(self._run("snapshot", "create", str(source), "--no-progress", "--json"))["id"]

    def restore(self, to: Path) -> None:
        """The snapshot, whole; holes stay holes."""
        self._run("snapshot", "restore", self._snapshot, str(to), "--write-sparse-files", "--no-progress")

    def _run(self, *arguments: str) -> str:
        program = str(go_tools.ensure("kopia"))
        common = [f"--config-file={self._scratch / 'config'}", f"--log-dir={self._scratch / 'log'}"]
        done = subprocess.run(
            [program, *common, *arguments], env=self._environment, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"kopia {arguments[0]}: {done.stderr.strip()}")
        return done.stdout
