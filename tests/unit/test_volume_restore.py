"""Volumes are written into files: whole into a new one, by what differs over one that is there; and gone on with."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpac_api.errors import Conflict, Corruption, Temporary
from dpac_engine.control import volume_restore
from dpac_engine.control.restore_journal import RestoreJournal
from dpac_engine.control.volume_restore import Outcome, VolumeRestore
from dpac_engine.core.image import VolumeImage
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.core.stream_hashes import UNIT_BYTES
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.repository import RepositoryWriter
from dpac_engine.io.restored_volume import RestoredVolume
from dpac_engine.io.stored_segment import BlockCache, StoredSegment
from dpac_engine.io.stores.memory import MemoryStore

KEY, UID = bytes(32), "1" * 32
MIB = 2**20
SIZE = 24 * MIB
SEGMENT = 4 * MIB


class Counted(MemoryStore):
    """Counts reads and their bytes."""

    reads = read_bytes = 0

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        found = super().get(key, offset, length)
        self.reads, self.read_bytes = self.reads + 1, self.read_bytes + len(found)
        return found


class Stored:
    """A volume at a target: a seed of five segments with a gap behind them, then small writes; what it reads as is `content`."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.store = Counted()
        self.content = bytearray(SIZE)
        self._writer = RepositoryWriter(self.store, UID, "7" * 32, b"wrapped", lambda _: KEY, SystemClock())
        self._writer.open()
        self._segments: list[StoredSegment] = []
        self._lsn = 1
        for at in range(0, 5 * SEGMENT, SEGMENT):
            self._put(SegmentKind.FILL, [(at + part, chance.randbytes(MIB)) for part in range(0, SEGMENT, MIB)])
        places = chance.sample(range(5 * SEGMENT // 4096), 40)
        self._put(SegmentKind.LOG, [(4096 * place, chance.randbytes(4096)) for place in places])

    def _put(self, kind: SegmentKind, changes: list[tuple[int, bytes]]) -> None:
        rows = SegmentWriter()
        if self._lsn == 1:
            rows.add(Kind.RESIZE, 0, 1, 1, 1, 0, SIZE, b"")
        for offset, data in changes:
            self._lsn += 1
            rows.add(Kind.FILL if kind is SegmentKind.FILL else Kind.WRITE, 0, 1, self._lsn, 1, offset, len(data), data)
            self.content[offset : offset + len(data)] = data
        ref = self._writer.put_segment(
            rows, [], kind=kind, shard_uid="6" * 32, epoch=1, lsn_from=self._lsn, lsn_to=self._lsn + 1, stamps=(1, 1),
            membership_version=1, compression_level=1,
        )  # fmt: skip
        self._segments.append(StoredSegment(self.store, ref, lambda _: KEY, BlockCache()))

    def image(self) -> VolumeImage:
        """The newest state. Its segments are open: what is counted from here on is a restore's."""
        image = VolumeImage(self._segments, 1, self._lsn + 1)
        self.store.reads = self.store.read_bytes = 0
        return image


@pytest.fixture
def stored(seed: int) -> Stored:
    """Another one for each seed."""
    return Stored(seed)


def restored(
    stored: Stored, path: Path, journal: RestoreJournal, *, over: bool = False, stop_at: int = SIZE
) -> Outcome:
    """Write it; the backend stops at `stop_at` bytes."""

    def progress(done: int, total: int) -> None:
        if done > stop_at:
            raise Temporary("The backend is stopping.")

    opened: Callable[[Path, int], RestoredVolume] = RestoredVolume.over if over else RestoredVolume
    with opened(path, SIZE) as file:
        return VolumeRestore(stored.image(), file, journal, progress, over=over).run()


def test_a_new_file_is_written_whole_by_few_reads(stored: Stored, tmp_path: Path) -> None:
    """Nothing is read twice: one read for each 4 MiB of a segment, and a few for what small writes left."""
    outcome = restored(stored, tmp_path / "disk", RestoreJournal(tmp_path / "journal"))
    assert (tmp_path / "disk").read_bytes() == stored.content
    assert outcome == Outcome(5 * SEGMENT, 0)
    assert stored.store.reads <= 6
    assert stored.store.read_bytes < 1.02 * 5 * SEGMENT


def test_one_that_was_cut_short_is_gone_on_with(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that the journal names are neither read nor written; others are, whatever lies there."""
    monkeypatch.setattr(volume_restore, "SYNC_BYTES", SEGMENT)
    path, journal = tmp_path / "disk", tmp_path / "journal"
    with pytest.raises(Temporary):
        restored(stored, path, RestoreJournal(journal), stop_at=3 * SEGMENT)
    noted = RestoreJournal(journal).segments
    assert noted
    outcome = restored(stored, path, RestoreJournal(journal))
    assert path.read_bytes() == stored.content
    assert outcome.written + outcome.kept == 5 * SEGMENT
    assert outcome.kept >= SEGMENT - 40 * 4096
    assert stored.store.read_bytes < outcome.written + MIB


def differing(stored: Stored, seed: int) -> tuple[bytearray, int]:
    """Another state of the volume, of the same size, and how many units of it differ."""
    chance = random.Random(seed + 1)
    other = bytearray(stored.content)
    units = chance.sample(range(SIZE // UNIT_BYTES), 12)
    for unit in units:
        at = unit * UNIT_BYTES + chance.randrange(UNIT_BYTES - 512)
        other[at : at + 512] = chance.randbytes(512)
    return other, len(units)


def test_over_a_disk_only_what_differs_is_fetched_and_written(stored: Stored, seed: int, tmp_path: Path) -> None:
    """What has the same hash stays; what is not stored becomes zeroes; and the requests are few."""
    other, count = differing(stored, seed)
    path = tmp_path / "disk"
    path.write_bytes(other)
    outcome = restored(stored, path, RestoreJournal(tmp_path / "journal"), over=True)
    assert path.read_bytes() == stored.content
    # What shares a unit with one of the 40 small writes cannot be told by its hash.
    assert outcome.written <= (count + 41) * UNIT_BYTES + 40 * 4096
    assert outcome.written + outcome.kept == 5 * SEGMENT
    assert outcome.kept > 0.7 * 5 * SEGMENT
    assert outcome.zeroed == SIZE - 5 * SEGMENT
    # Six for hashes; what is fetched comes in blocks of 256 KiB.
    assert stored.store.reads <= 6 + count + 42
    assert stored.store.read_bytes < (count + 42) * 4 * UNIT_BYTES + MIB


def test_over_the_very_state_nothing_but_hashes_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for each segment, and not one byte is written."""
    monkeypatch.setattr(random.Random, "sample", lambda *_: [])  # no small writes
    stored = Stored(1)
    path = tmp_path / "disk"
    path.write_bytes(stored.content)
    monkeypatch.setattr(RestoredVolume, "write", lambda *_: pytest.fail("it was the same"))
    outcome = restored(stored, path, RestoreJournal(tmp_path / "journal"), over=True)
    assert (outcome.written, outcome.kept) == (0, 5 * SEGMENT)
    assert stored.store.reads == 5
    assert stored.store.read_bytes < 5 * 16_384


def test_over_anything_else_it_is_the_checkpoint_too(stored: Stored, tmp_path: Path) -> None:
    """Over a file of another size that holds something else, or nothing."""
    for name, content in (("larger", os.urandom(SIZE + MIB)), ("smaller", b"x" * 777), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        outcome = restored(stored, path, RestoreJournal(tmp_path / f"{name}.journal"), over=True)
        assert path.read_bytes() == stored.content
        assert outcome.written == 5 * SEGMENT


def test_one_over_a_disk_that_was_cut_short_is_gone_on_with(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its journal or without it."""
    monkeypatch.setattr(volume_restore, "SYNC_BYTES", SEGMENT)
    for keeps_journal in (True, False):
        path, journal = tmp_path / f"disk{keeps_journal}", tmp_path / f"journal{keeps_journal}"
        path.write_bytes(os.urandom(SIZE))
        with pytest.raises(Temporary):
            restored(stored, path, RestoreJournal(journal), over=True, stop_at=3 * SEGMENT)
        if not keeps_journal:
            journal.unlink()
        outcome = restored(stored, path, RestoreJournal(journal), over=True)
        assert path.read_bytes() == stored.content
        assert outcome.kept > SEGMENT


def test_a_file_in_use_is_left_as_it_is(stored: Stored, tmp_path: Path) -> None:
    """Not even its size changes."""
    path = tmp_path / "disk"
    path.write_bytes(b"in use")
    with path.open("rb") as user:
        fcntl.flock(user, fcntl.LOCK_SH)
        with pytest.raises(Conflict, match="in use"):
            restored(stored, path, RestoreJournal(tmp_path / "journal"), over=True)
    assert path.read_bytes() == b"in use"


def test_damage_is_told_not_kept(stored: Stored, tmp_path: Path) -> None:
    """A hash that is damaged is no hash: the index is authentic or refused."""
    path = tmp_path / "disk"
    path.write_bytes(stored.content)
    image = stored.image()
    for name in list(_segments(stored.store)):
        data = bytearray(stored.store.get(name))
        data[-100] ^= 1  # in the index, before the footer
        stored.store.put(name, bytes(data))
    with (
        RestoredVolume.over(path, SIZE) as file,
        pytest.raises(Corruption, match="cannot be read"),
    ):
        VolumeRestore(image, file, RestoreJournal(tmp_path / "journal"), lambda *_: None, over=True).run()


def _segments(store: MemoryStore) -> Iterator[str]:
    yield from store.list("s/")
