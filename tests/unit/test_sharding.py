"""Groups of several shards: what is refused, where members go, one status of many, and which marks are checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from dpac_api.errors import Conflict, Invalid
from dpac_api.models import DataState, GroupSpec, GroupStatus, LegStatus, SlaState, WaitHistogram
from dpac_engine.control.assignment import group_of, shard_key
from dpac_engine.control.repositories import group_prefix
from dpac_engine.control.sharded_repository import _shared
from dpac_engine.control.sharded_status import joined
from dpac_engine.control.sharding import check_none_empty, check_shards, next_shard, shard_uid_of
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody
from dpac_engine.core.retention import checkpoints_of

UID = "ab" * 16


def spec(members: int = 3, shards: int = 2, **changes: Any) -> GroupSpec:
    """A declaration with volumes `v0`, `v1` and so on."""
    volumes: dict[str, Any] = {f"v{at}": {"kind": "volume", "path": f"/v{at}", "size": "1MiB"} for at in range(members)}
    volumes |= changes.pop("more", {})
    return GroupSpec.model_validate({"members": volumes, "journal": {"shards": shards}, **changes})


def mark(sequence: int, lsn: int = 0, void: tuple[int, int] = (0, 0), member: str = "1") -> Mark:
    """A mark of one of two shards."""
    body = MarkBody(sequence, 1, {member: CutBody("barrier")}, shards=2, void_from=void[0], void_to=void[1])
    return Mark(1, lsn or sequence * 64, sequence, body)


def newest_first(*sequences: int, member: str = "1", lsn: int = 0) -> Iterator[Mark]:
    return iter([mark(sequence, sequence * 64 + lsn, member=member) for sequence in sequences])


@pytest.mark.parametrize(
    ("wanted", "before", "kind", "where"),
    [
        (spec(shards=3), spec(shards=2), Conflict, "spec.journal.shards"),
        (spec(members=9, shards=5), None, Invalid, "spec.journal.shards"),
        (spec(members=1, shards=2), None, Invalid, "spec.journal.shards"),
        (spec(replication={"here": {"mode": "sync", "target": "t"}}), None, Invalid, "spec.replication.here.mode"),
    ],
)
def test_what_several_shards_cannot_have_is_refused(
    wanted: GroupSpec, before: GroupSpec | None, kind: type[Exception], where: str
) -> None:
    """A changed number, too few workers or members, a sync leg: each names its property."""
    with pytest.raises(kind) as caught:
        check_shards(wanted, before, workers=4)
    assert caught.value.property_path == where  # type: ignore[attr-defined]


def test_one_shard_may_have_all_of_it() -> None:
    """A group of one shard is checked for none of that, and directories may be in either."""
    more = {"app": {"kind": "directory", "path": "/app", "blueprint": "sqlite"}}
    check_shards(spec(shards=2, more=more), None, workers=2)
    check_shards(spec(shards=1, more=more, replication={"a": {"mode": "sync", "target": "t"}}), None, workers=1)


def test_each_shard_gets_room_for_a_spool() -> None:
    """Limits that leave a shard too little are refused by the declaration itself."""
    with pytest.raises(ValueError, match="128 MiB for each of the 4 shards"):
        spec(members=4, journal={"shards": 4, "spool_max": "256MiB"})


def test_members_spread_over_the_shards() -> None:
    """A new member goes to the shard with the fewest, and no shard may be left without one."""
    taken: list[int] = []
    for _ in range(5):
        taken.append(next_shard(taken, 3))
    assert taken == [0, 1, 2, 0, 1]
    check_none_empty("g", {0, 1, 2}, 3)
    with pytest.raises(Conflict, match="shard 1"):
        check_none_empty("g", {0, 2}, 3)


def test_a_shard_is_known_by_its_key() -> None:
    """The first shard lies where the group's only one always lay."""
    assert (shard_key(UID, 0), shard_key(UID, 2)) == (UID, f"{UID}.2")
    assert group_of(f"{UID}.12") == (UID, 12)
    assert group_prefix(UID) == f"g/{UID}/"
    assert group_prefix(f"{UID}.2") == f"g/{UID}/shards/2/"
    assert shard_uid_of(UID, 0) == UID
    assert len({shard_uid_of(UID, at) for at in range(4)}) == 4


def test_a_checkpoint_is_one_that_every_shard_has() -> None:
    """Only shared sequences count, with the cuts and the LSNs of all."""
    first, second = newest_first(9, 8, 6, 4, 2), newest_first(10, 8, 7, 6, 2, 1, member="2", lsn=1)
    found = list(_shared([first, second]))
    assert [one.sequence for one in found] == [8, 6, 2]
    assert (found[0].lsn, found[0].other_lsns) == (8 * 64, (8 * 64 + 1,))
    assert set(found[0].body.cuts) == {"1", "2"}
    for shorter in itertools.permutations((newest_first(3, 2), newest_first())):
        assert list(_shared(list(shorter))) == []


def test_thinning_keeps_no_mark_that_another_shard_lacks() -> None:
    """What a later mark calls void is no checkpoint, in whichever segment that mark lies."""
    marks = [mark(1), mark(2), mark(3, void=(2, 3)), mark(4)]
    assert [one.sequence for one in checkpoints_of(marks)] == [1, 3, 4]
    assert [one.sequence for one in checkpoints_of(marks, lambda: [mark(5, void=(4, 5))])] == [1, 3]


def status(**changes: Any) -> GroupStatus:
    """One shard that is well."""
    leg = LegStatus(
        target="t",
        data_state=DataState.CONTINUOUS,
        rpo_seconds=1,
        lag_seconds=0,
        lag_bytes=1,
        seeded_fraction=1,
        shipped_lsn=1,
    )
    return GroupStatus(
        data_state=DataState.CONTINUOUS,
        sla_state=SlaState.MEETING,
        protected=True,
        seeded=True,
        checkpoint_sequence=7,
        head_lsn=8,
        durable_lsn=8,
        spool_bytes=9,
        members={},
        legs={"leg": leg},
        flush_wait=WaitHistogram(count=1, sum_seconds=0.5, buckets={"1": 1}),
        observed_generation=2,
    ).model_copy(update=changes)


def test_a_group_is_as_well_as_the_worst_of_its_shards() -> None:
    """Protected only if all are; states are the worst, amounts are sums; one shard's status is left as it is."""
    alone = status()
    assert joined([alone]) is alone
    behind = status().legs["leg"].model_copy(update={"lag_seconds": 9.0, "data_state": DataState.BACKLOG})
    bad = status(
        protected=False,
        sla_state=SlaState.RPO_NOT_MET,
        data_state=DataState.BACKLOG,
        legs={"leg": behind},
        checkpoint_sequence=5,
    )
    whole = joined([alone, bad])
    assert (whole.protected, whole.sla_state, whole.data_state) == (False, SlaState.RPO_NOT_MET, DataState.BACKLOG)
    assert (whole.checkpoint_sequence, whole.head_lsn, whole.legs["leg"].lag_seconds) == (5, 16, 9.0)
    assert whole.flush_wait == WaitHistogram(count=2, sum_seconds=1.0, buckets={"1": 2})
