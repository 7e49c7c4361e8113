"""A directory is fetched from its target before it is written: in few reads, several at a time, and not all at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from dpac_api.errors import Corruption
from dpac_engine.core.entries import CHUNK_BYTES, Entry, EntryType, digest_of, encode_entry
from dpac_engine.core.image import RUN_BYTES, TreeImage
from dpac_engine.core.records import Keyspace, Kind
from dpac_engine.core.segment import RowArray, SegmentWriter
from dpac_engine.core.stream_hashes import StreamHashes
from dpac_engine.io.members import read_ahead
from dpac_engine.io.members.read_ahead import ReadAhead
from dpac_engine.io.members.tree_reading import read_tree
from dpac_engine.io.members.tree_restore import restore_tree
from dpac_engine.io.stored_runs import READERS

WAIT_SECONDS = 60


class Target:
    """A segment that lies far away (an `image.HashedSegment`): who reads, how much at once, and what is damaged there."""

    name = "far"

    def __init__(self, chunks: Sequence[bytes], entries: Sequence[tuple[bytes, Entry]] = ()) -> None:
        writer = SegmentWriter()
        puts = [((Keyspace.CHUNK, digest_of(chunk)), chunk) for chunk in chunks]
        puts += [((Keyspace.ENTRY, path), encode_entry(entry).value) for path, entry in entries]
        for lsn, (key, value) in enumerate(puts):
            writer.add(Kind.PUT, 0, 1, lsn, 0, 0, 0, value, key)
        self._stored = writer.unsealed()
        self.rows: RowArray = self._stored.rows
        self.keys = self._stored.keys
        self.damaged: set[int] = set()
        """Positions."""
        self.reads: list[tuple[int, int]] = []
        self.single_reads: list[tuple[int, int]] = []
        self.together: threading.Barrier | None = None

    def read(self, position: int, length: int) -> bytes:
        """One by one, as a mount reads."""
        self.single_reads.append((position, length))
        return self._checked(position, length)

    def read_once(self, position: int, length: int) -> bytes:
        """Whole runs."""
        self.reads.append((position, length))
        if self.together is not None:
            self.together.wait(WAIT_SECONDS)
        return self._checked(position, length)

    def hashes(self) -> StreamHashes:
        """None."""
        return self._stored.hashes()

    def _checked(self, position: int, length: int) -> bytes:
        if any(position <= at < position + length for at in self.damaged):
            raise Corruption("A block fails its authentication.")
        return self._stored.read(position, length)

    @property
    def image(self) -> TreeImage:
        """The directory."""
        return TreeImage([self], 1, len(self.rows))


def some_chunks(count: int, length: int = CHUNK_BYTES) -> list[bytes]:
    """Chunks that are all different."""
    return [random.Random(number).randbytes(length) for number in range(count)]


def a_file(*chunks: bytes) -> Entry:
    """A file made of chunks, all but the last of them whole."""
    size = sum(map(len, chunks))
    return Entry(EntryType.FILE, 0o600, 0, 0, 0, size=size, chunks=b"".join(map(digest_of, chunks)))


def test_small_files_are_fetched_many_at_once(tmp_path: Path) -> None:
    """2,000 files of 4 KiB come by two reads, not by one each, and are what they were."""
    chunks = some_chunks(2_000, 4096)
    target = Target(chunks, [(b"%04d" % number, a_file(chunk)) for number, chunk in enumerate(chunks)])
    image = target.image
    restore_tree(
        list(image.entries()),
        image.read_chunk,
        tmp_path / "to",
        lambda _: None,
        place=image.chunk_place,
        runs=image.runs,
    )
    assert len(target.reads) == -(-2_000 * 4096 // RUN_BYTES)
    assert len(target.single_reads) == len(chunks), "entries only"
    assert [(tmp_path / f"to/{number:04d}").read_bytes() for number in range(2_000)] == chunks


def test_several_reads_are_under_way_at_the_same_time() -> None:
    """Each of the first reads waits for the others; a reading one after another would wait for ever."""
    chunks = some_chunks(READERS * RUN_BYTES // CHUNK_BYTES)
    target = Target(chunks, [(b"file", a_file(*chunks))])
    target.together = threading.Barrier(READERS)
    image = target.image
    told: list[tuple[int, int]] = []
    read = read_tree(
        image.entries(), image.read_chunk, image.chunk_place, lambda done, goal: told.append((done, goal)), image.runs
    )
    assert read == READERS * RUN_BYTES
    assert told[-1] == (read, read)
    assert len(target.reads) == READERS


def test_what_is_fetched_ahead_is_bounded() -> None:
    """After the first of 400 chunks only some runs were read, and what is held is bounded all the time."""
    chunks = some_chunks(400)
    target = Target(chunks)
    wanted = [(digest_of(chunk), len(chunk)) for chunk in chunks]
    with closing(ReadAhead(target.image.runs, target.image.read_chunk, wanted)) as ahead:
        for number, (digest, _) in enumerate(wanted):
            assert digest_of(ahead.read(digest)) == digest
            fetched = sum(length for _, length in target.reads)
            assert fetched <= number * CHUNK_BYTES + (READERS + 2) * RUN_BYTES
            assert ahead._held_bytes == sum(map(len, ahead._held.values())) <= read_ahead.HELD_BYTES_MAX
    assert not target.single_reads
    assert sum(length for _, length in target.reads) == 400 * CHUNK_BYTES


@pytest.mark.parametrize("between", [3, 2 * read_ahead.HELD_BYTES_MAX // CHUNK_BYTES])
def test_a_chunk_that_is_wanted_again_is_fetched_again_only_if_it_is_not_held_any_more(between: int) -> None:
    """A copy of a file soon after it costs nothing; one far behind it is fetched ahead, too, not one by one."""
    first, *others = chunks = some_chunks(1 + between)
    target = Target(chunks)
    wanted = [(digest_of(chunk), len(chunk)) for chunk in [first, *others, first]]
    with closing(ReadAhead(target.image.runs, target.image.read_chunk, wanted)) as ahead:
        assert [ahead.read(digest) for digest, _ in wanted] == [first, *others, first]
    again = sum(length for position, length in target.reads if position < CHUNK_BYTES)
    assert again <= RUN_BYTES + (CHUNK_BYTES if between > 3 else 0)
    assert sum(length for _, length in target.reads) == (1 + between + (between > 3)) * CHUNK_BYTES
    assert not target.single_reads


def test_the_order_in_which_chunks_are_wanted_is_kept_wherever_they_lie() -> None:
    """Files that were changed long after each other: their chunks are read in any order, each run in its own."""
    chunks = some_chunks(64)
    shuffled = random.Random(7).sample(chunks, len(chunks))
    target = Target(chunks)
    wanted = [(digest_of(chunk), len(chunk)) for chunk in shuffled]
    with closing(ReadAhead(target.image.runs, target.image.read_chunk, wanted)) as ahead:
        assert [ahead.read(digest) for digest, _ in wanted] == shuffled
    assert not target.single_reads


def test_damage_to_what_nobody_wants_does_not_stop_a_restore() -> None:
    """Two chunks are read together with what lies between; if that is damaged they are read one by one."""
    chunks = some_chunks(3, 4096)
    target = Target(chunks)
    target.damaged = {5000}
    wanted = [(digest_of(chunks[at]), 4096) for at in (0, 2)]
    with closing(ReadAhead(target.image.runs, target.image.read_chunk, wanted)) as ahead:
        assert [ahead.read(digest) for digest, _ in wanted] == [chunks[0], chunks[2]]
    assert target.reads == [(0, 3 * 4096)]
    assert target.single_reads == [(0, 4096), (2 * 4096, 4096)]


def test_a_damaged_chunk_ends_a_restore_with_nothing_left_behind(tmp_path: Path) -> None:
    """It is told, and nothing has the name that was asked for."""
    chunks = some_chunks(40)
    target = Target(chunks, [(b"%02d" % number, a_file(chunk)) for number, chunk in enumerate(chunks)])
    target.damaged = {30 * CHUNK_BYTES + 1}
    image = target.image
    with pytest.raises(Corruption, match="authentication"):
        restore_tree(
            list(image.entries()),
            image.read_chunk,
            tmp_path / "to",
            lambda _: None,
            place=image.chunk_place,
            runs=image.runs,
        )
    assert not list(tmp_path.iterdir())


def test_a_chunk_whose_bytes_are_others_is_not_served(tmp_path: Path) -> None:
    """What comes ahead is checked against its hash like everything else."""
    right, wrong = some_chunks(2)
    target = Target([right], [(b"file", a_file(right))])
    image = target.image
    entries = list(image.entries())
    target._stored = target._stored._replace(stream=wrong + target._stored.stream[len(wrong) :])
    with pytest.raises(Corruption, match="does not hold what was written"):
        restore_tree(
            entries, image.read_chunk, tmp_path / "to", lambda _: None, place=image.chunk_place, runs=image.runs
        )
    assert not list(tmp_path.iterdir())
