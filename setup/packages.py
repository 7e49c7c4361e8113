"""Programs that tests and benchmarks drive, and the packages they come in.

As root on Debian it installs what is missing; elsewhere it prints what is missing.

    python -m setup.packages            what the tests need
    python -m setup.packages bench      and what only the benchmarks need
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from setup.console import SetupError, run, say

DEBIAN_PACKAGE = {
    "qemu-io": "qemu-utils",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "nbdsh": "python3-libnbd",
    "fio": "fio",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "getfattr": "attr",
    "setfattr": "attr",
    "sqlite3": "sqlite3",
    "blkid": "util-linux",
    "mkswap": "util-linux",
    "dumpe2fs": "e2fsprogs",
    "initdb": "postgresql",
    "pgbench": "postgresql",
    "pg_amcheck": "postgresql",
}
"""Program of the tests -> the Debian package that brings it."""
BENCH_PACKAGE = {"restic": "restic"}
"""The same for programs that only the benchmarks drive."""

_ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
_POSTGRESQL = Path("/usr/lib/postgresql")
"""Debian keeps a version's programs in a folder of its own, off the PATH."""
_CLUSTER_SETTINGS = Path("/etc/postgresql-common/createcluster.d/dpac.conf")


def program(name: str) -> str | None:
    """The path of a program; folders of administration tools and of PostgreSQL count even if they are not on PATH."""
    versions = os.pathsep.join(str(folder) for folder in _POSTGRESQL.glob("*/bin"))
    return shutil.which(name) or shutil.which(name, path=_ADMIN_FOLDERS) or shutil.which(name, path=versions)


def missing_packages(package_of: Mapping[str, str]) -> list[str]:
    """Debian packages of which a program is not there."""
    return sorted({package for name, package in package_of.items() if program(name) is None})


def install_missing(package_of: Mapping[str, str] = DEBIAN_PACKAGE) -> None:
    """Install what is missing where that needs nobody's leave (root on Debian); otherwise say what to install.

    Never calls sudo. A test whose program is missing says so by name.
    """
    missing = missing_packages(package_of)
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        say(f"what needs them will be skipped; not installed: {' '.join(missing)}")
        say(f"on Debian or Ubuntu: sudo apt-get install {' '.join(missing)}")
        return
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(["apt-get", "update", "-qq"], env=environment)
        with _without_default_cluster():
            run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=environment)
    except SetupError as error:
        # The tests name what they lack; with CI=true they fail on it.
        say(str(error))


@contextmanager
def _without_default_cluster() -> Iterator[None]:
    """While this lasts, installing PostgreSQL brings its programs only: no database that starts with the machine."""
    made = not _CLUSTER_SETTINGS.parent.exists()
    _CLUSTER_SETTINGS.parent.mkdir(parents=True, exist_ok=True)
    _CLUSTER_SETTINGS.write_text("create_main_cluster = false\n")
    try:
        yield
    finally:
        _CLUSTER_SETTINGS.unlink()
        if made:
            with suppress(OSError):  # the package may have put something there meanwhile
                _CLUSTER_SETTINGS.parent.rmdir()


if __name__ == "__main__":
    install_missing({**DEBIAN_PACKAGE, **BENCH_PACKAGE} if "bench" in sys.argv[1:] else DEBIAN_PACKAGE)
    sys.exit(0)
