"""How requests are read from the receive buffer and answered, without a socket."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpac_engine.io.nbd import replies
from dpac_engine.io.nbd.export import ChangeKind, Extent
from dpac_engine.io.nbd.protocol import ProtocolViolation
from dpac_engine.io.nbd.receiving import BUFFER_BYTES, BUFFER_RETAINED_BYTES, ReceiveBuffer
from dpac_engine.io.nbd.requests import RequestParser, Round
from tests.nbd.client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    request,
    write,
)

SIZE = 2**20
EPERM, EINVAL, ENOSPC, EOVERFLOW = 1, 22, 28, 75
MIB = 2**20


def parse(
    raw: bytes, *, read_only: bool = False, size: int = SIZE, durable: bool = False, plain: bool = False
) -> Round:
    """One round of a client with structured replies and block status, unless `plain`."""
    parser = RequestParser(structured=not plain, block_status=not plain, durable_acks=durable)
    return parser.parse(memoryview(raw), 0, len(raw), size, read_only)


def cookie(number: int) -> bytes:
    """A cookie as it lies on the wire."""
    return struct.pack(">Q", number)


def test_changes_become_one_batch_in_order() -> None:
    """Writes, zeroes and trims of a buffer are gathered with their data; FUA ones are answered later."""
    raw = (
        write(1, 512, b"a" * 512)
        + request(TRIM, 2, 1024, 512)
        + request(WRITE_ZEROES, 3, 2048, 1024)
        + request(WRITE_ZEROES, 4, 4096, 512, NO_HOLE)
        + write(5, 0, b"b" * 512, FUA)
    )
    found = parse(raw)
    assert [(change.kind, change.offset, change.length) for change in found.changes] == [
        (ChangeKind.WRITE, 512, 512),
        (ChangeKind.TRIM, 1024, 512),
        (ChangeKind.TRIM, 2048, 1024),
        (ChangeKind.ZERO, 4096, 512),
        (ChangeKind.WRITE, 0, 512),
    ]
    assert bytes(found.changes[0].data or b"") == b"a" * 512
    assert found.acked == [cookie(1), cookie(2), cookie(3), cookie(4)]
    assert found.durable == [cookie(5)]
    assert found.next == len(raw)


def test_with_durable_acks_every_change_waits() -> None:
    """No change is answered before it is durable."""
    found = parse(write(1, 0, bytes(512)) + request(TRIM, 2, 0, 512), durable=True)
    assert (found.acked, found.durable) == ([], [cookie(1), cookie(2)])


def test_queries_and_flushes_are_told_apart() -> None:
    """READ and BLOCK_STATUS are queries; FLUSH is its own list; FUA on them means nothing."""
    raw = request(READ, 1, 0, 512, DF | FUA) + request(FLUSH, 2, flags=FUA) + request(BLOCK_STATUS, 3, 0, 512, REQ_ONE)
    found = parse(raw)
    assert [query.cookie for query in found.queries] == [cookie(1), cookie(3)]
    assert found.flushes == [cookie(2)]
    assert not found.refusals


def test_nothing_is_read_behind_a_disconnect() -> None:
    """DISC ends the round."""
    found = parse(write(1, 0, bytes(512)) + request(DISC, 2) + write(3, 0, bytes(512)))
    assert found.disconnect
    assert found.acked == [cookie(1)]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (request(READ, 9, 1, 512), EINVAL),
        (request(READ, 9, 0, 100), EINVAL),
        (request(READ, 9, 0, 0), EINVAL),
        (request(READ, 9, SIZE, 512), EINVAL),
        (request(READ, 9, 2**64 - 512, 1024), EINVAL),
        (request(READ, 9, 0, 512, NO_HOLE), EINVAL),
        (write(9, 100, bytes(512)), EINVAL),
        (write(9, 0, bytes(100)), EINVAL),
        (write(9, 0, b""), EINVAL),
        (write(9, SIZE - 512, bytes(1024)), ENOSPC),
        (write(9, 0, bytes(512), DF), EINVAL),
        (request(TRIM, 9, SIZE, 512), EINVAL),
        (request(TRIM, 9, 0, 2**32 - 512), EINVAL),
        (request(WRITE_ZEROES, 9, SIZE, 512), ENOSPC),
        (request(WRITE_ZEROES, 9, 0, 512, FAST_ZERO), EINVAL),
        (request(FLUSH, 9, 0, 512), EINVAL),
        (request(BLOCK_STATUS, 9, SIZE, 512), EINVAL),
        (request(CACHE, 9, 0, 512), EINVAL),
        (request(8, 9, 0, 512), EINVAL),
        (request(0xFFFF, 9, 0, 512), EINVAL),
    ],
)
def test_a_wrong_request_is_refused_and_the_next_understood(raw: bytes, error: int) -> None:
    """Refused requests never reach the export and do not disturb their neighbours."""
    found = parse(raw + write(10, 0, bytes(512)))
    assert [(refusal.cookie, refusal.error) for refusal in found.refusals] == [(cookie(9), error)]
    assert found.refusals[0].message
    assert found.acked == [cookie(10)]
    assert not found.queries
    assert not found.flushes


def test_a_read_over_the_payload_limit_is_refused() -> None:
    """EOVERFLOW where the client knows structured replies, else EINVAL."""
    raw = request(READ, 9, 0, 32 * MIB + 512)
    assert parse(raw, size=2**40).refusals[0].error == EOVERFLOW
    assert parse(raw, size=2**40, plain=True).refusals[0].error == EINVAL


def test_features_that_were_not_negotiated_are_refused() -> None:
    """DF and BLOCK_STATUS need what the handshake agreed on."""
    found = parse(request(READ, 1, 0, 512, DF) + request(BLOCK_STATUS, 2, 0, 512), plain=True)
    assert [refusal.error for refusal in found.refusals] == [EINVAL, EINVAL]


@pytest.mark.parametrize("raw", [write(9, 0, bytes(512)), request(TRIM, 9, 0, 512), request(WRITE_ZEROES, 9, 0, 512)])
def test_a_read_only_export_refuses_changes(raw: bytes) -> None:
    """EPERM for each kind of change; reads go on."""
    found = parse(raw + request(READ, 10, 0, 512), read_only=True)
    assert [refusal.error for refusal in found.refusals] == [EPERM]
    assert len(found.queries) == 1
    assert not found.changes


def test_large_trims_need_no_payload_and_are_taken() -> None:
    """The payload limit does not bind commands without payload."""
    assert parse(request(TRIM, 1, 0, 2**32 - 512), size=2**40).changes[0].length == 2**32 - 512


def test_a_bad_magic_is_a_violation() -> None:
    """After it the stream cannot be understood."""
    with pytest.raises(ProtocolViolation):
        parse(write(1, 0, bytes(512)) + b"\0" * 28)


def test_an_oversized_write_is_swallowed_and_refused() -> None:
    """Its payload is dropped as it comes, in whatever pieces; the answer follows the last of it."""
    length = 32 * MIB + 512
    parser = RequestParser(structured=True, block_status=False, durable_acks=False)
    first = memoryview(request(WRITE, 1, 0, length) + bytes(1000))
    found = parser.parse(first, 0, len(first), SIZE, False)
    assert found.next == len(first)
    assert not found.refusals
    left = length - 1000
    chunk = memoryview(bytes(MIB))
    while left > MIB:
        found = parser.parse(chunk, 0, MIB, SIZE, False)
        assert (found.next, found.refusals) == (MIB, [])
        left -= MIB
    last = memoryview(bytes(left) + write(2, 0, bytes(512)))
    found = parser.parse(last, 0, len(last), SIZE, False)
    assert [(refusal.cookie, refusal.error) for refusal in found.refusals] == [(cookie(1), EINVAL)]
    assert found.acked == [cookie(2)]


REQUESTS = st.one_of(
    st.builds(
        lambda sectors, at, flags: write(1, at * 512, bytes([at]) * sectors * 512, flags),
        st.integers(0, 300),
        st.integers(0, 255),
        st.sampled_from([0, FUA]),
    ),
    st.builds(
        request,
        st.sampled_from([READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99]),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**11).map(lambda sector: sector * 512),
        st.integers(0, 2**11).map(lambda sector: sector * 512),
        st.integers(0, 31),
    ),
)


def _told(found: Round) -> list[object]:
    changes = [(kind, offset, length, bytes(data or b"")) for kind, offset, length, data in found.changes]
    return [changes, found.acked, found.durable, found.flushes, found.queries, found.refusals]


@given(st.lists(REQUESTS, max_size=12), st.randoms(use_true_random=False))
def test_requests_come_out_whole_however_bytes_arrive(messages: list[bytes], chance: random.Random) -> None:
    """Through the receive buffer, filled in random pieces, exactly what was sent comes out, in order."""
    raw = b"".join(messages)
    whole = _told(parse(raw))
    buffer, parser = ReceiveBuffer(), RequestParser(structured=True, block_status=True, durable_acks=False)
    seen: list[list[object]] = [[], [], [], [], [], []]
    at = 0
    while at < len(raw):
        room = buffer.writable()
        count = min(len(room), len(raw) - at, chance.choice([1, 28, 100, 5000, 300_000]))
        room[:count] = raw[at : at + count]
        at += count
        buffer.received(count)
        found = parser.parse(buffer.view, buffer.start, buffer.end, SIZE, False)
        for mine, new in zip(seen, _told(found), strict=True):
            mine.extend(new)  # type: ignore[call-overload]
        buffer.consume(found.next, found.wanted)
    assert seen == whole
    assert len(buffer) == 0


def test_large_payloads_are_received_in_place() -> None:
    """After the first, megabyte writes fill the same memory from its start: their payload is never moved."""
    buffer, parser = ReceiveBuffer(), RequestParser(structured=True, block_status=False, durable_acks=False)
    raw = write(1, 0, bytes(MIB)) * 6
    places = []
    at = 0
    while at < len(raw):
        room = buffer.writable()
        count = min(len(room), len(raw) - at, 200_000)
        room[:count] = raw[at : at + count]
        at += count
        buffer.received(count)
        found = parser.parse(buffer.view, buffer.start, buffer.end, SIZE, False)
        places += [(id(buffer.view), buffer.start) for _ in found.changes]
        buffer.consume(found.next, found.wanted)
    assert len(places) == 6
    assert len(set(places)) == 1
    assert places[0][1] == 0


def test_memory_of_a_giant_request_is_given_back() -> None:
    """The buffer grows for the largest request and shrinks once it is served."""
    buffer = ReceiveBuffer()
    buffer.writable()[:28] = request(WRITE, 1, 0, 32 * MIB)
    buffer.received(28)
    buffer.consume(0, 28 + 32 * MIB)
    assert len(buffer.writable()) == 32 * MIB
    assert len(buffer.view) > BUFFER_RETAINED_BYTES
    buffer.received(32 * MIB)
    buffer.consume(buffer.end)
    assert len(buffer.writable()) == BUFFER_BYTES


def test_success_is_told_in_one_string() -> None:
    """Simple replies back to back, nothing for nobody."""
    assert replies.done([cookie(1), cookie(2)]) == b"".join(struct.pack(">IIQ", 0x67446698, 0, n) for n in (1, 2))
    assert replies.done([]) == b""


def _status(raw: bytes) -> list[tuple[int, int]]:
    _magic, flags, kind, _cookie, length, context = struct.unpack_from(">IHHQII", raw)
    assert (flags, kind, context, length) == (1, 5, 1, len(raw) - 20)
    return [struct.unpack_from(">II", raw, at) for at in range(24, len(raw), 8)]


def test_status_joins_equal_neighbours_and_stops_in_time() -> None:
    """Runs are maximal; no extent begins past the end of what was asked."""
    extents = [Extent(512, False, False)] * 3 + [
        Extent(1024, True, True),
        Extent(512, False, True),
        Extent(512, True, True),
    ]
    assert _status(replies.block_status(cookie(1), 3072, extents, one=False)) == [(1536, 0), (1024, 3), (512, 2)]
    assert _status(replies.block_status(cookie(1), 1000, extents, one=True)) == [(1000, 0)]


def test_status_of_more_than_a_reply_can_say_is_cut() -> None:
    """Lengths have 32 bits, and a reply a bounded number of extents."""
    huge = _status(replies.block_status(cookie(1), 2**32 - 512, [Extent(2**40, True, True)], one=False))
    assert huge == [(2**32 - 512, 3)]
    many = [Extent(512, bool(n % 2), False) for n in range(200_000)]
    assert len(_status(replies.block_status(cookie(1), 2**31, many, one=False))) == replies.EXTENTS_MAX
    with pytest.raises(ValueError, match="no byte"):
        replies.block_status(cookie(1), 512, [], one=False)
