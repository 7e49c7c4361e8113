"""Tails: frames, their golden bytes, what a torn one and a damaged one are, and what several tails tell together.

Fault model: the last frame may lack any of its sectors, and the file may end early; any bit of a whole frame may flip; a
whole sector may become zero in a frame that others follow.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core import tail
from dpac_engine.core.records import Flags, Kind, encode_header, stored_bytes
from dpac_engine.core.tail import Frame, Log, TailDecoder, TailEncoder, TailHeader, decode_tail_header, records_of

GOLDEN = Path(__file__).parents[1] / "data" / "tail.bin"
KEY = b"k" * 32
HEADER = TailHeader(
    group_uid=b"G" * 16,
    shard_uid=b"S" * 16,
    tail_id=b"T" * 32,
    key_id=b"K" * 16,
    repository_uid=b"R" * 16,
    epoch=3,
    lsn_from=0x1000,
    incarnation=5,
    opened_lsn=0x800,
)
SIZE_BYTES = 64 * 1024


def record(lsn: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A write as it lies in the spool."""
    head = encode_header(Kind.WRITE, flags, 5, 1, lsn, 0, len(payload), 10**18, 7, 3, payload)
    return (head + payload).ljust(stored_bytes(len(payload)), b"\0")


def frames_of(*payloads: bytes, header: TailHeader = HEADER) -> list[tuple[int, int, bytes]]:
    """A frame for each payload, one record long."""
    found, lsn = [], header.lsn_from
    for payload in payloads:
        found.append((lsn, lsn + stored_bytes(len(payload)), record(lsn, payload)))
        lsn = found[-1][1]
    return found


def encoded(frames: list[tuple[int, int, bytes]], header: TailHeader = HEADER) -> tuple[bytearray, list[int]]:
    """A tail's file, and where each of its frames begins."""
    data, encoder, starts = bytearray(header.encode()), TailEncoder(header, KEY), []
    for frame in frames:
        starts.append(len(data))
        data += encoder.frame(*frame)
    starts.append(len(data))
    return data.ljust(SIZE_BYTES, b"\0"), starts


def read(data: bytes) -> tuple[list[Frame], Corruption | None]:
    """What a tail's file tells."""
    decoder = TailDecoder(HEADER, KEY)
    frames = decoder.feed(bytes(data[tail.HEADER_BYTES :]))
    return frames, decoder.damage


def noise(count: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(count)


FRAMES = frames_of(noise(100), noise(3000, 2), b"", noise(900, 3))


def test_what_is_appended_is_read_back_piece_by_piece() -> None:
    """A reader that looks while frames come gets each of them once."""
    data, starts = encoded(FRAMES)
    decoder, found = TailDecoder(HEADER, KEY), []
    for end in [*starts, SIZE_BYTES]:
        seen = bytes(data[:end]).ljust(SIZE_BYTES, b"\0")
        found += decoder.feed(seen[decoder.position :])
    assert [tuple(frame) for frame in found] == FRAMES
    assert decoder.damage is None


def test_a_header_says_what_it_was_given() -> None:
    """Encoded and read again; damage and newer formats are told apart, and a file without a header yet is none."""
    assert decode_tail_header(HEADER.encode()) == HEADER
    assert decode_tail_header(bytes(4096)) is None
    damaged = bytearray(HEADER.encode())
    damaged[40] ^= 1
    with pytest.raises(Corruption):
        decode_tail_header(bytes(damaged))


def test_a_newer_format_is_refused() -> None:
    """With a correct checksum, but another version."""
    import xxhash

    body = bytearray(HEADER.encode()[:-8])
    body[8] = 2
    with pytest.raises(Unsupported):
        decode_tail_header(bytes(body) + xxhash.xxh3_64_intdigest(bytes(body)).to_bytes(8, "little"))


def test_a_torn_last_frame_is_left_out_whatever_of_it_is_there(seed: int) -> None:
    """Any of its sectors may be missing, in any combination but none: what came before is read, and nothing is damaged."""
    chance = random.Random(seed)
    data, starts = encoded(FRAMES[:2])
    begin, end = starts[1], starts[2]
    sectors = range(begin // 512, (end - 1) // 512 + 1)
    for _ in range(50):
        torn = bytearray(data)
        for sector in chance.sample(sectors, chance.randint(1, len(sectors))):
            first, last = max(begin, sector * 512), min(end, (sector + 1) * 512)
            torn[first:last] = bytes(last - first)
        frames, damage = read(torn)
        assert ([tuple(frame) for frame in frames], damage) == (FRAMES[:1], None), f"seed {seed}"


def test_a_file_that_ends_early_is_torn() -> None:
    """Cut anywhere in its last frame."""
    data, starts = encoded(FRAMES[:2])
    for end in range(starts[1], starts[2], 64):
        assert [tuple(frame) for frame in read(data[:end])[0]] == FRAMES[:1]
        assert read(data[:end])[1] is None


def test_a_flipped_bit_anywhere_in_the_frames_is_damage(seed: int) -> None:
    """Also in the last frame: a tear leaves a sector empty, a flip does not."""
    chance = random.Random(seed)
    data, starts = encoded(FRAMES)
    for _ in range(200):
        at = chance.randrange(starts[0], starts[-1])
        damaged = bytearray(data)
        damaged[at] ^= 1 << chance.randrange(8)
        number = max(index for index, start in enumerate(starts) if start <= at)
        frames, damage = read(damaged)
        assert damage is not None or [tuple(f) for f in frames] == FRAMES, f"seed {seed}, byte {at}"
        assert damage is None or [tuple(f) for f in frames] == FRAMES[:number], f"seed {seed}, byte {at}"


def test_a_frame_that_is_gone_before_others_is_damage() -> None:
    """Zeroes where a whole frame was, head and all: those behind it prove that it was there."""
    data, starts = encoded(FRAMES)
    data[starts[1] : starts[2]] = bytes(starts[2] - starts[1])
    frames, damage = read(data)
    assert [tuple(frame) for frame in frames] == FRAMES[:1]
    assert damage is not None
    assert "frame 2 behind it is there" in damage.message


def test_another_tails_frame_is_not_taken_for_its_own() -> None:
    """A frame of another id does not match, however whole it is."""
    data, starts = encoded(FRAMES[:1])
    other, _ = encoded(FRAMES[:1], TailHeader(**{**HEADER.__dict__, "tail_id": b"t" * 32}))
    data[starts[0] : starts[1]] = other[starts[0] : starts[1]]
    frames, damage = read(data)
    assert frames == []
    assert damage is not None


def test_the_golden_tail_is_read_and_made_again() -> None:
    """Bytes that an earlier build wrote are what they were."""
    frames = frames_of(noise(100), noise(200, 2))
    assert encoded(frames)[0][:4096] == GOLDEN.read_bytes()
    assert [tuple(frame) for frame in read(GOLDEN.read_bytes())[0]] == frames


def _lsns(log: Log) -> list[int]:
    log.finish()
    return [header.lsn for header, _ in log.records]


def _frames(header: TailHeader, count: int) -> list[Frame]:
    return [Frame(*frame) for frame in frames_of(*[b""] * count, header=header)]


def _header(lsn_from: int, incarnation: int = 5, opened_lsn: int = 0, epoch: int = 3) -> TailHeader:
    return TailHeader(b"G" * 16, b"S" * 16, b"T" * 32, b"K" * 16, b"R" * 16, epoch, lsn_from, incarnation, opened_lsn)


def test_the_log_goes_on_behind_the_cursor() -> None:
    """What manifests have already is left out; tails that follow one another, or overlap, are one."""
    log = Log(128)
    log.add(_header(0), _frames(_header(0), 4), None)
    log.add(_header(192), _frames(_header(192), 3), None)
    assert _lsns(log) == [128, 192, 256, 320]


def test_a_gap_ends_it() -> None:
    """Nothing behind a hole is told."""
    log = Log(0)
    log.add(_header(0), _frames(_header(0), 2), None)
    log.add(_header(192), _frames(_header(192), 2), None)
    assert _lsns(log) == [0, 64]


def test_a_later_epoch_ends_a_stale_primarys_tail() -> None:
    """What it appended behind the point where the next epoch began is not told."""
    log = Log(0)
    log.add(_header(0), _frames(_header(0), 5), 192)
    assert _lsns(log) == [0, 64, 128]


def test_a_later_life_ends_what_was_never_acknowledged() -> None:
    """A power cut may leave more at the target than here: the next life wrote something else at those LSNs."""
    log = Log(0)
    log.add(_header(0, incarnation=1), _frames(_header(0), 5), None)
    later = _header(64, incarnation=2, opened_lsn=128)
    log.add(later, _frames(later, 1), None)
    assert _lsns(log) == [0, 64]
    log = Log(0)
    log.add(_header(0, incarnation=1), _frames(_header(0), 5), None)
    log.add(later, _frames(later, 4), None)
    assert _lsns(log) == [0, 64, 128, 192, 256]


def test_a_run_cut_short_is_left_out() -> None:
    """All of it: it is indivisible."""
    plain = record(0) + record(64, flags=Flags.RUN_CONTINUES) + record(128, flags=Flags.RUN_CONTINUES)
    log = Log(0)
    log.add(_header(0), [Frame(0, 192, plain)], None)
    assert _lsns(log) == [0]
    assert log.end == 64


def test_a_frame_that_holds_no_records_is_refused() -> None:
    """Authentic, but not what a writer makes."""
    with pytest.raises(Corruption):
        list(records_of(Frame(0, 128, bytes(128))))
