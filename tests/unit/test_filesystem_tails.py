"""Tails on a file system: made whole or not at all, and what a target that is full, gone or exchanged does to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Conflict, DpacError, Temporary
from dpac_engine.core.ports import TargetMissing
from dpac_engine.io.stores import tails as module
from dpac_engine.io.stores.tails import FilesystemTails

SIZE_BYTES = 64 * 1024
KEY = "tail/one"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A target's folder."""
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies"


def files(root: Path) -> list[str]:
    """Everything that lies at the target."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_tail_is_zeroes_of_its_size_and_takes_what_is_written(root: Path) -> None:
    """Nothing else lies there, whether the file was got ready before or not."""
    store = FilesystemTails(root, "g/one/")
    for key in ("tail/one", "tail/two"):
        tail = store.open_tail(key, SIZE_BYTES)
        assert (root / "g/one" / key).read_bytes() == bytes(SIZE_BYTES)
        tail.write(256, b"frame")
        tail.close()
        assert (root / "g/one" / key).read_bytes()[250:264] == b"\0" * 6 + b"frame" + b"\0" * 3
        store.prepare(SIZE_BYTES)
    store.close()
    assert files(root) == ["g/one/tail/one", "g/one/tail/two"]


def test_what_a_killed_process_got_ready_is_made_anew_and_never_piles_up(root: Path) -> None:
    """Its file may have become a tail: writing zeroes over it would destroy what was acknowledged."""
    FilesystemTails(root, "g/one/").prepare(SIZE_BYTES)
    (spare,) = (root / ".tmp").iterdir()
    (root / "g/one/tail").mkdir(parents=True)
    os.link(spare, root / "g/one/tail/one")
    (root / "g/one/tail/one").write_bytes(b"acknowledged")
    FilesystemTails(root, "g/one/").prepare(SIZE_BYTES)
    assert (root / "g/one/tail/one").read_bytes() == b"acknowledged"
    assert len(list((root / ".tmp").iterdir())) == 1


def test_a_taken_name_is_a_conflict(root: Path) -> None:
    """And leaves the tail as it is."""
    store = FilesystemTails(root, "g/one/")
    store.open_tail(KEY, SIZE_BYTES).write(0, b"mine")
    with pytest.raises(Conflict):
        store.open_tail(KEY, SIZE_BYTES)
    assert files(root) == ["g/one/tail/one"]


def test_a_full_target_is_temporary_and_nothing_is_left_of_the_try(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is taken when the tail is begun: no append meets a full disk later."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(Temporary, match="Free space"):
        FilesystemTails(root, "g/one/").open_tail(KEY, SIZE_BYTES)
    assert files(root) == []


def test_a_target_whose_folder_is_gone_is_told_at_the_next_write(root: Path) -> None:
    """The open file would go on taking bytes that nobody finds: an unmounted disk, a removed folder."""
    store = FilesystemTails(root, "g/one/")
    tail = store.open_tail(KEY, SIZE_BYTES)
    root.rename(root.with_name("away"))
    with pytest.raises(TargetMissing):
        tail.write(0, b"lost")
    with pytest.raises(TargetMissing):
        store.open_tail("tail/two", SIZE_BYTES)
    assert not root.exists()
    root.mkdir()
    with pytest.raises(DpacError):
        tail.write(0, b"lost")
