"""Seeds on their way: pieces are put side by side, arrive in order, and only so many are held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from dpac_api.errors import Temporary
from dpac_engine.control.seeding import PIECE_BYTES, PIECES_UNDER_WAY, READ_BYTES, Piece, Seeding, SeedStream
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.records import KeyChange, Keyspace, Kind


class Disk:
    """A volume of several pieces; what was read of it is counted. Every other MiB is allocated zeroes."""

    def __init__(self, pieces: int) -> None:
        self.size_bytes = 2 * pieces * PIECE_BYTES
        self.read = self.searches = 0

    async def allocated(self, offset: int, length: int) -> list[tuple[int, int]]:
        self.searches += 1
        return [(offset, length)]

    async def read_for_seed(self, offset: int, length: int) -> tuple[int, bytes]:
        self.read += length
        return 64, bytes(length) if offset // READ_BYTES % 2 else b"x" * length


def seeding(disk: Disk) -> Seeding:
    """A seed of it, from its beginning."""
    return Seeding(1, disk, 0, 0, lambda: 64, lambda: 1)


def ref(piece: Piece) -> SegmentRef:
    """Names a stored piece by how far it goes."""
    return SegmentRef(f"{piece.position}", 2, 1, 0, 1, 1, 1, 1, "")


def test_pieces_are_put_side_by_side_and_arrive_in_order() -> None:
    """The first waits until others are being put too; what arrives is the whole volume, in order, ready at its end."""
    another = threading.Event()

    def put(piece: Piece) -> Sequence[SegmentRef]:
        if piece.begins:
            assert another.wait(30)
        another.set()
        return [ref(piece)]

    async def whole() -> list[tuple[Piece, Sequence[SegmentRef]]]:
        stream, found = SeedStream("seed", seeding(Disk(5)), put), []
        while not found or found[-1][0].ready_lsn is None:
            await stream.read_on()
            found += await stream.arrived()
        return found

    found = asyncio.run(whole())
    positions = [piece.position for piece, _ in found]
    assert positions == sorted(positions)
    assert positions[-1] == Disk(5).size_bytes
    assert [refs[0].name for _, refs in found] == [str(position) for position in positions]
    assert [piece.begins for piece, _ in found] == [True] + [False] * (len(found) - 1)


def test_zeroes_are_not_sent() -> None:
    """Not even those that are allocated."""

    async def first_piece() -> Piece:
        return await seeding(Disk(1)).next_piece()

    piece = asyncio.run(first_piece())
    assert piece.rows.plain_bytes == PIECE_BYTES
    assert piece.position >= 2 * PIECE_BYTES - READ_BYTES
    assert len(piece.rows) == 2 + PIECE_BYTES // READ_BYTES  # reset, resize, and fills of what is not zero


def test_what_a_directory_journals_while_it_is_copied_stands_over_the_copy() -> None:
    """Entries are of one moment and read later: the log may have newer ones by then, and a deletion must not be undone."""
    head = 64

    class Tree:
        async def snapshot_changes(self) -> AsyncIterator[list[KeyChange]]:
            nonlocal head
            yield [KeyChange(Keyspace.CHUNK, b"digest", b"content")]
            head = 640  # what was just read as an entry is deleted, and that is in the log at 128
            yield [KeyChange(Keyspace.ENTRY, b"name", b"old")]

    async def only_piece() -> Piece:
        return await Seeding(1, Tree(), 0, 0, lambda: head, lambda: 1).next_piece()

    piece = asyncio.run(only_piece())
    rows = piece.rows.unsealed().rows
    assert (piece.from_lsn, piece.to_lsn, piece.ready_lsn) == (64, 641, 640)
    assert rows["kind"].tolist() == [Kind.RESET, Kind.PUT, Kind.PUT]
    assert rows["lsn"].tolist() == [64, 64, 64]


def test_a_target_that_is_slow_holds_the_reading_up() -> None:
    """Only so many pieces are held in memory."""
    go_on = threading.Event()

    def put(piece: Piece) -> Sequence[SegmentRef]:
        assert go_on.wait(30)
        return [ref(piece)]

    async def read_ahead() -> int:
        disk = Disk(8)
        stream = SeedStream("seed", seeding(disk), put)
        for _ in range(3):
            await stream.read_on()
        go_on.set()
        await stream.abandon()
        return disk.read

    assert asyncio.run(read_ahead()) <= PIECES_UNDER_WAY * 2 * PIECE_BYTES


def test_a_target_that_fails_is_told_and_the_rest_is_waited_for() -> None:
    """No thread goes on putting behind the back of whoever begins again."""
    putting = [0]
    lock = threading.Lock()

    def put(piece: Piece) -> Sequence[SegmentRef]:
        with lock:
            putting[0] += 1
        try:
            if piece.begins:
                raise Temporary("The disk is full. Make room.")
            return [ref(piece)]
        finally:
            with lock:
                putting[0] -= 1

    async def fail() -> None:
        stream = SeedStream("seed", seeding(Disk(5)), put)
        await stream.read_on()
        with pytest.raises(Temporary, match="Make room"):
            await stream.arrived()
        await stream.abandon()
        assert putting == [0]

    asyncio.run(fail())


def test_fills_carry_what_was_read() -> None:
    """Offset, length and LSN of each fill are those of the read."""

    async def first_piece() -> Piece:
        return await seeding(Disk(1)).next_piece()

    rows = asyncio.run(first_piece()).rows
    kinds = [row[0] for row in rows._rows]
    assert kinds[:2] == [Kind.RESET, Kind.RESIZE]
    assert [row[6] for row in rows._rows[2:]] == [2 * READ_BYTES * at for at in range(len(kinds) - 2)]


def test_holes_are_searched_for_once() -> None:
    """Not again for each piece: a gigabyte has many extents."""

    async def whole(disk: Disk) -> None:
        seed = seeding(disk)
        while (await seed.next_piece()).ready_lsn is None:
            pass

    disk = Disk(4)
    asyncio.run(whole(disk))
    assert disk.read == disk.size_bytes
    assert disk.searches == 1
