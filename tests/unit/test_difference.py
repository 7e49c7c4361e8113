"""The difference between checkpoints: whatever differs is in it, and what it says of files is exact."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from dpac_engine.core import manifest, retention
from dpac_engine.core.difference import FileChange, Run, differing_runs
from tests.repositories.small import DISK, ORDERS, SIZE_BYTES, small_repository


def test_any_two_checkpoints_differ_by_exactly_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across a base, merged ranges and logs, in both directions; nothing outside of the ranges differs, and no content is read."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)
    monkeypatch.setattr(manifest, "COMPLETE_EVERY", 4)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    repository = small_repository(tmp_path, seed)
    reader = repository.reader()
    marks = {mark.id: mark for mark in reader.marks()}
    from dpac_engine.core.difference import changed_files, changed_ranges

    for one, two in itertools.product(repository.content, repeat=2):
        before, after = reader.image(marks[one]), reader.image(marks[two])
        was, now = repository.content[one], repository.content[two]
        told = changed_ranges(before, after, DISK)
        same = bytearray(was[0])
        for offset, length in told:
            same[offset : offset + length] = now[0][offset : offset + length]
        assert bytes(same) == now[0]
        assert sum(length for _, length in told) <= SIZE_BYTES // 2 or one == two
        wanted = [
            FileChange(
                path, len(was[1][path]) if path in was[1] else None, len(now[1][path]) if path in now[1] else None
            )
            for path in sorted(was[1].keys() | now[1].keys())
            if was[1].get(path) != now[1].get(path)
        ]
        assert changed_files(before, after, ORDERS) == wanted
        if one == two:
            assert told == []


@pytest.mark.parametrize(
    ("now", "then", "runs"),
    [
        (b"aaaabbbbcc", b"aaaabbbbcc", []),
        (b"aaaabbbbcc", b"aaaaxbbbcc", [Run(4, 8, False)]),
        (b"aaaabbbbcc", b"aaaabbbbcx", [Run(8, 10, False)]),
        (b"aaaabbbbcc", bytes(10), [Run(0, 10, True)]),
        (b"aaaabbbbccccdd", b"aaxa" + bytes(8) + b"dd", [Run(0, 4, False), Run(4, 12, True)]),
        (bytes(8) + b"cccc", b"aaaabbbbcccc", [Run(0, 8, False)]),
    ],
)
def test_two_buffers_differ_in_runs_of_blocks(now: bytes, then: bytes, runs: list[Run]) -> None:
    """Neighbours are joined, zeroes apart from bytes, and a short last block counts."""
    assert differing_runs(now, then, 4) == runs
