"""A small file that is replaced on a full disk too."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

import pytest

from dpac_engine.io import files, reserved_file
from dpac_engine.io.reserved_file import RESERVE_BYTES, ReservedFile


class Disk:
    """A folder that holds so many bytes and no more."""

    def __init__(self, folder: Path, patches: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bytes_max = 1 << 40
        self.error = errno.ENOSPC
        patches.setattr(reserved_file, "replace_file", self._replace_file)
        patches.setattr(reserved_file, "write_all", self._write_all)

    @property
    def used_bytes(self) -> int:
        """By what lies there now."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def fill(self) -> None:
        """From now on there is no room but what is deleted."""
        self.bytes_max = self.used_bytes

    def _take(self, length: int) -> None:
        if self.used_bytes + length > self.bytes_max:
            raise OSError(self.error, "no")

    def _replace_file(self, path: Path, data: bytes) -> None:
        self._take(len(data))
        files.replace_file(path, data)

    def _write_all(self, descriptor: int, parts: list[bytes], offset: int) -> None:
        self._take(len(parts[0]))
        files.write_all(descriptor, parts, offset)


def test_a_full_disk_takes_the_next_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also ones that are longer; and room is set aside again once there is some."""
    disk = Disk(tmp_path, monkeypatch)
    file = ReservedFile(tmp_path / "state.json")
    file.reserve()
    file.replace(lambda: b"old")
    disk.fill()
    for version in (b"new" * 100, b"newer" * 1000):
        file.replace(lambda version=version: version)  # type: ignore[misc]
        assert file.path.read_bytes() == version
    file.reserve()
    assert disk.used_bytes < RESERVE_BYTES
    disk.bytes_max = 1 << 40
    file.reserve()
    disk.fill()
    file.replace(lambda: b"newest" * 10_000)
    assert file.path.read_bytes() == b"newest" * 10_000


def test_a_reserve_of_an_earlier_life_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power may have left its name alone."""
    disk = Disk(tmp_path, monkeypatch)
    (tmp_path / "state.json.reserve").touch()
    file = ReservedFile(tmp_path / "state.json")
    file.reserve()
    disk.fill()
    file.replace(lambda: b"new")
    assert file.path.read_bytes() == b"new"


def test_a_disk_that_fails_is_told_and_keeps_its_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room does not help there; nor does it without a reserve."""
    disk = Disk(tmp_path, monkeypatch)
    file = ReservedFile(tmp_path / "state.json")
    file.reserve()
    disk.fill()
    disk.error = errno.EIO
    with pytest.raises(OSError, match="no"):
        file.replace(lambda: b"new")
    assert disk.used_bytes == RESERVE_BYTES
    bare = ReservedFile(tmp_path / "bare.json")
    disk.error = errno.ENOSPC
    with pytest.raises(OSError, match="no"):
        bare.replace(lambda: b"new")


def test_what_is_stored_never_becomes_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for its turn stores what is true then, not what was true when it came."""
    file, truth = ReservedFile(tmp_path / "state.json"), [b"in sync"]
    turn = mock.MagicMock()
    turn.__enter__.side_effect = lambda: truth.append(b"lost")  # somebody else had the turn until now, and stored this
    monkeypatch.setattr(file, "lock", turn)
    file.replace(lambda: truth[-1])
    assert file.path.read_bytes() == b"lost"
