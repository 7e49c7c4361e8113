"""Files with holes: what is written sparsely reads the same and takes less room."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from dpac_engine.io.files import WRITE_BACK_BYTES, written_back
from dpac_engine.io.holes import data_ranges, write_sparse

KIB64 = 65_536


def test_long_runs_of_zeroes_are_left_out() -> None:
    """At the begin, in the middle and at the end; what is between is written."""
    content = bytes(4 * KIB64) + b"a" * KIB64 + bytes(8 * KIB64) + b"b" + bytes(4 * KIB64)
    descriptor = os.memfd_create("sparse")
    os.truncate(descriptor, KIB64 + len(content))
    write_sparse(descriptor, content, KIB64)
    assert os.pread(descriptor, len(content) + KIB64, 0) == bytes(KIB64) + content
    assert list(data_ranges(descriptor, 0, KIB64 + len(content))) == [(5 * KIB64, 6 * KIB64), (14 * KIB64, 15 * KIB64)]
    os.close(descriptor)


def test_what_is_written_sparsely_reads_the_same(tmp_path: Path) -> None:
    """Random runs of zeroes and data, at random offsets."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(20):
        runs = [chance.choice((bytes, chance.randbytes))(chance.randrange(3 * KIB64)) for _ in range(8)]
        content, offset = b"".join(runs), chance.randrange(KIB64)
        with (tmp_path / f"{number}").open("xb") as file:
            os.truncate(file.fileno(), offset + len(content))
            write_sparse(file.fileno(), content, offset)
        assert (tmp_path / f"{number}").read_bytes() == bytes(offset) + content


def test_a_long_write_is_synced_beside_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last bytes at the end."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda _: synced.append("beside"))
    monkeypatch.setattr(os, "fsync", lambda _: synced.append("at the end"))
    with (tmp_path / "file").open("xb") as file, written_back(file.fileno()) as wrote:
        wrote(WRITE_BACK_BYTES)
        wrote(1)
    assert synced == ["beside", "at the end"]


def test_an_error_of_a_sync_beside_is_the_writer_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once; a later sync finds nothing."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with (
        (tmp_path / "file").open("xb") as file,
        pytest.raises(OSError, match="Input/output"),
        written_back(file.fileno()) as wrote,
    ):
        wrote(WRITE_BACK_BYTES)
