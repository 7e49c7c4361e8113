"""Which of a batch of journalled changes reach a volume's file, and in which order."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from dpac_engine.core.records import Kind
from dpac_engine.io.members import write_behind
from dpac_engine.io.members.write_behind import Pending, bring, needed

DEVICE_BYTES = 64 * 4096


def changes(chance: random.Random, count: int) -> tuple[list[Pending], bytes]:
    """Changes of mixed kinds and sizes, whole blocks mostly, and the stream that their payloads lie in."""
    found: list[Pending] = []
    stream = bytearray(64)
    for number in range(count):
        sectors = chance.choice([8, 8, 8, 8, 8, 1, 3, 16])
        offset = chance.randrange(DEVICE_BYTES // 512 - sectors) * 512
        if sectors == 8 and chance.random() < 0.9:
            offset &= -4096
        kind = chance.choice([Kind.WRITE] * 9 + [Kind.ZERO])
        position = len(stream)
        if kind is Kind.WRITE:
            stream += number.to_bytes(2, "little") * (sectors * 256)
        found.append(Pending(number, int(kind), offset, sectors * 512, position, 0.0))
    return found, bytes(stream)


def test_a_batch_leaves_the_file_as_its_changes_one_after_the_other_would(tmp_path: Path, seed: int) -> None:
    """Whatever is left out or brought forward: overlapping changes end as the latest of them says."""
    chance = random.Random(seed)
    for _ in range(40):
        batch, stream = changes(chance, chance.randint(1, 120))
        expected = bytearray(DEVICE_BYTES)
        for _, kind, offset, length, position, _ in batch:
            data = stream[position : position + length] if kind == Kind.WRITE else bytes(length)
            expected[offset : offset + length] = data
        descriptor = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            os.ftruncate(descriptor, DEVICE_BYTES)
            bring(descriptor, batch, lambda at, length, of=stream: memoryview(of)[at : at + length], DEVICE_BYTES)
            assert os.pread(descriptor, DEVICE_BYTES, 0) == expected
        finally:
            os.close(descriptor)


def test_a_block_that_is_written_again_and_again_reaches_the_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one stretch of whole blocks the newest of each is written, neighbours in one call."""
    batch = [Pending(n, int(Kind.WRITE), (3 - n % 4) * 4096, 4096, 64 + n, 0.0) for n in range(400)]
    assert [change.lsn for change in needed(batch)] == [399, 398, 397, 396]
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(write_behind, "write_all", lambda _, parts, offset: calls.append((len(parts), offset)))
    bring(-1, batch, lambda _, length: memoryview(bytes(length)), DEVICE_BYTES)
    assert calls == [(4, 0)]
