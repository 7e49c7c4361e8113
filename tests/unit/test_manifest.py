"""Manifests: authenticated, dense, and folded into one state."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core.manifest import (
    FORGET_DROPPED_NS,
    Manifest,
    MarkRange,
    MemberState,
    SegmentRef,
    decode_manifest,
    encode_manifest,
    fold,
    manifest_key_id,
)

GOLDEN = Path(__file__).parents[1] / "data" / "manifest.json"
DATA_KEY, GROUP = bytes(range(32)), "ab" * 16


def ref(name: str) -> SegmentRef:
    """A segment as a manifest names it."""
    marks = MarkRange(1, 2, 10, 20, 2, 1, [("t", 2)])
    return SegmentRef(name, 1, 1, 0, 64, 10, 20, 999, "b3", marks=marks)


def manifest(seq: int, **changes: object) -> Manifest:
    """Manifest `seq`."""
    fields = {
        "format": 1,
        "seq": seq,
        "repository": "cd" * 16,
        "group": GROUP,
        "writer": "ef" * 16,
        "epoch": 1,
        "created": 10**18,
        "key_id": "12" * 16,
        "spec": 1,
        "membership_version": 1,
        "epochs": [(1, 0)],
        "cursor": {"34" * 16: 64},
        "members": {"1": MemberState("56" * 16, "volume", "disk", ready=[(64, None)], founding=True)},
        "add": [ref(f"s/{seq}")],
    }
    return msgspec.convert({**fields, **changes}, Manifest)


def test_what_is_encoded_is_decoded() -> None:
    """With the key's id to be had before the key is."""
    data = encode_manifest(manifest(1), DATA_KEY)
    assert manifest_key_id(data) == "12" * 16
    assert decode_manifest(data, DATA_KEY, GROUP) == manifest(1)


def test_any_flipped_bit_is_corruption() -> None:
    """Every bit of a stored manifest, the format's number among them."""
    data = encode_manifest(manifest(1), DATA_KEY)
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(Corruption):
                decode_manifest(bytes(damaged), DATA_KEY, GROUP)


def test_a_manifest_cut_short_is_corruption() -> None:
    """At every length less than its own."""
    data = encode_manifest(manifest(1), DATA_KEY)
    for length in range(len(data)):
        with pytest.raises(Corruption):
            decode_manifest(data[:length], DATA_KEY, GROUP)


def test_a_later_format_is_unsupported() -> None:
    """An authentic manifest of a format to come asks for a newer build, whatever its fields are."""
    data = encode_manifest(manifest(1, format=2), DATA_KEY)
    with pytest.raises(Unsupported, match="newer dpac"):
        decode_manifest(data, DATA_KEY, GROUP)


def test_another_groups_manifest_is_refused() -> None:
    """Even one sealed with the same key."""
    with pytest.raises(Corruption):
        decode_manifest(encode_manifest(manifest(1), DATA_KEY), DATA_KEY, "00" * 16)


def test_the_golden_manifest_is_read_and_made_again() -> None:
    """Bytes that an earlier build stored mean the same, and are written the same."""
    assert decode_manifest(GOLDEN.read_bytes(), DATA_KEY, GROUP) == manifest(1)
    assert encode_manifest(manifest(1), DATA_KEY) == GOLDEN.read_bytes()


def test_manifests_add_up() -> None:
    """Segments join and leave; what left is remembered with its time."""
    state = fold([manifest(1), manifest(2), manifest(3, add=[ref("s/x")], drop=["s/1", "s/2"], created=10**18 + 5)])
    assert state is not None
    assert list(state.segments) == ["s/x"]
    assert state.dropped == {"s/1": 10**18 + 5, "s/2": 10**18 + 5}


def test_a_missing_manifest_is_corruption() -> None:
    """A gap in the numbers, or a beginning that is none."""
    with pytest.raises(Corruption, match="one is missing"):
        fold([manifest(1), manifest(3)])
    with pytest.raises(Corruption, match="earlier manifests are missing"):
        fold([manifest(2)])


def test_a_complete_manifest_stands_for_all_before_it() -> None:
    """Read alone it gives the same state; what was dropped long ago is forgotten."""
    state = fold([manifest(1), manifest(2, drop=["s/1"])])
    assert state is not None
    complete = state.complete_manifest(manifest(3))
    alone, together = fold([complete]), fold([manifest(3)], state)
    assert alone is not None
    assert together is not None
    assert alone.segments == together.segments
    assert alone.dropped == {"s/1": 10**18}
    later = state.complete_manifest(manifest(3, created=10**18 + FORGET_DROPPED_NS))
    assert later.dropped == []


def test_a_member_is_recoverable_where_it_is_whole() -> None:
    """From its seed on; not between the beginning of a new seed and its end; again after that."""
    member = MemberState("u", "volume", "disk", founding=True).seeded(100)
    member = member.reseeding(200, 1).seeded(300)
    assert [member.covers(lsn) for lsn in (99, 100, 199, 200, 299, 300, 999)] == [0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("lsn", "held"),
    [(50, None), (150, {1}), (250, {1, 2}), (320, None), (450, {1, 2})],
)
def test_checkpoints_hold_the_members_that_are_whole(lsn: int, held: set[int] | None) -> None:
    """None before the founding member is; a later one joins; a gap of one that had joined is a gap of the group."""
    founder = MemberState("a", "volume", "a", ready=[(100, None)], founding=True)
    joiner = MemberState("b", "volume", "b", ready=[(200, 300), (400, None)])
    state = fold([manifest(1, members={"1": founder, "2": joiner})])
    assert state is not None
    assert state.recoverable_members([1, 2], lsn) == held


def test_a_group_whose_founders_left_early_is_recoverable_from_the_next_member_on() -> None:
    """A founder that waits is waited for; once none is left that is to come, the first whole one of the others begins."""
    founder, late = MemberState("a", "volume", "a", founding=True), MemberState("b", "volume", "b").seeded(300)
    left = msgspec.structs.replace(founder, founding=False)

    def begin(*members: MemberState) -> int | None:
        state = fold([manifest(1, members={str(at + 1): member for at, member in enumerate(members)})])
        assert state is not None
        return state.recoverable_from

    assert begin(founder, late) is None
    assert begin(left, late) == 300
    assert begin(founder.seeded(400), late) == 400
    assert begin(left) is None
