"""One status of a group out of those of its shards: as good as the worst of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce

from dpac_api.models import Condition, GroupStatus, LegStatus, SlaState, TargetTraffic, WaitHistogram
from dpac_engine.control.group_status import WORST

_SLA_WORST = (SlaState.MEETING, SlaState.HISTORY_NOT_MET, SlaState.RPO_NOT_MET)


def joined(shards: Sequence[GroupStatus]) -> GroupStatus:
    """The group's status. LSNs and bytes are sums: how much was journalled, and how much of it is where."""
    first = shards[0]
    if len(shards) == 1:
        return first
    return first.model_copy(
        update={
            "data_state": max((shard.data_state for shard in shards), key=WORST.index),
            "sla_state": max((shard.sla_state for shard in shards), key=_SLA_WORST.index),
            "protected": all(shard.protected for shard in shards),
            "seeded": all(shard.seeded for shard in shards),
            "checkpoint_sequence": min(shard.checkpoint_sequence for shard in shards),
            "head_lsn": sum(shard.head_lsn for shard in shards),
            "durable_lsn": sum(shard.durable_lsn for shard in shards),
            "spool_bytes": sum(shard.spool_bytes for shard in shards),
            "members": {name: member for shard in shards for name, member in shard.members.items()},
            "legs": {
                name: _leg([shard.legs[name] for shard in shards])
                for name in first.legs
                if all(name in shard.legs for shard in shards)
            },
            "conditions": _conditions(shards),
            "flush_wait": _waits([shard.flush_wait for shard in shards if shard.flush_wait is not None]),
            "shards": [one for shard in shards for one in shard.shards],
            "observed_generation": min(shard.observed_generation for shard in shards),
        }
    )


def _leg(legs: Sequence[LegStatus]) -> LegStatus:
    """A leg is as far as the shard that is furthest behind."""
    newest = [(leg.latest_checkpoint_time, at) for at, leg in enumerate(legs) if leg.latest_checkpoint_time is not None]
    behind = legs[min(newest)[1]] if len(newest) == len(legs) else None
    oldest = [leg.oldest_checkpoint_time for leg in legs if leg.oldest_checkpoint_time is not None]
    locked = [leg.immutable_until for leg in legs if leg.immutable_until is not None]
    traffic = [leg.traffic for leg in legs if leg.traffic is not None]
    return legs[0].model_copy(
        update={
            "data_state": max((leg.data_state for leg in legs), key=WORST.index),
            "lag_seconds": max(leg.lag_seconds for leg in legs),
            "lag_bytes": sum(leg.lag_bytes for leg in legs),
            "seeded_fraction": sum(leg.seeded_fraction for leg in legs) / len(legs),
            "shipped_lsn": sum(leg.shipped_lsn for leg in legs),
            "latest_checkpoint": behind.latest_checkpoint if behind else None,
            "latest_checkpoint_time": behind.latest_checkpoint_time if behind else None,
            "oldest_checkpoint_time": max(oldest) if behind and oldest else None,
            "stored_bytes": sum(leg.stored_bytes for leg in legs),
            "immutable_until": min(locked) if len(locked) == len(legs) else None,
            "traffic": reduce(TargetTraffic.plus, traffic) if traffic else None,
            "escrow": [key for key in legs[0].escrow if all(key in leg.escrow for leg in legs)],
            "message": next((leg.message for leg in legs if leg.message), ""),
        }
    )


def _conditions(shards: Sequence[GroupStatus]) -> list[Condition]:
    """Those of all shards; what several say alike is told once."""
    told: dict[tuple[str, str], Condition] = {}
    for shard in shards:
        for condition in shard.conditions:
            told.setdefault((condition.type, condition.subject), condition)
    return list(told.values())


def _waits(waits: Sequence[WaitHistogram]) -> WaitHistogram | None:
    if not waits:
        return None
    buckets: Counter[str] = Counter()
    for one in waits:
        buckets.update(one.buckets)
    return WaitHistogram(
        count=sum(one.count for one in waits), sum_seconds=sum(one.sum_seconds for one in waits), buckets=dict(buckets)
    )
