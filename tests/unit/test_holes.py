"""Files with holes: what is written sparsely, by whatever way, reads the same and takes less room."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from dpac_engine.io import restored_volume
from dpac_engine.io.holes import data_ranges, data_runs
from dpac_engine.io.restored_volume import RestoredVolume

KIB64 = 65_536


def test_long_runs_of_zeroes_are_left_out(tmp_path: Path) -> None:
    """At the begin, in the middle and at the end; what is between is written."""
    content = bytes(4 * KIB64) + b"a" * KIB64 + bytes(8 * KIB64) + b"b" + bytes(4 * KIB64)
    assert list(data_runs(content)) == [(4 * KIB64, 5 * KIB64), (13 * KIB64, 14 * KIB64)]
    path, size = tmp_path / "file", KIB64 + len(content)
    with RestoredVolume(path, size) as file:
        file.fill(KIB64, memoryview(content))
    assert path.read_bytes() == bytes(KIB64) + content
    with path.open("rb") as opened:
        assert list(data_ranges(opened.fileno(), 0, size)) == [(5 * KIB64, 6 * KIB64), (14 * KIB64, 15 * KIB64)]


@contextmanager
def not_offered(_: int) -> Iterator[None]:
    """A file system without direct writes."""
    yield None


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_written_sparsely_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, direct: bool
) -> None:
    """Random runs of zeroes and data, cut anywhere, written by several threads at once, past the page cache or not."""
    if not direct:
        monkeypatch.setattr(restored_volume, "opened_direct", not_offered)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(10):
        runs = [chance.choice((bytes, chance.randbytes))(chance.randrange(3 * KIB64)) for _ in range(8)]
        content, path = memoryview(b"".join(runs)), tmp_path / f"{number}"
        # In sectors, as devices are written.
        cuts = sorted({0, len(content), *(chance.randrange(len(content) or 1) // 512 * 512 for _ in range(6))})
        with RestoredVolume(path, len(content)) as file, ThreadPoolExecutor(4) as threads:
            for writing in [threads.submit(file.fill, begin, content[begin:end]) for begin, end in pairwise(cuts)]:
                writing.result()
            file.sync()
        assert path.read_bytes() == content


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Whoever may write beside a restore does not tell it where to write."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        RestoredVolume(tmp_path / "file", 512)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert os.readlink(tmp_path / "file") == str(tmp_path / "precious")
