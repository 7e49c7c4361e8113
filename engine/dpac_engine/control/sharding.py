"""Groups of several shards: which member lies in which, where each is served, and what such a group may not have yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from uuid import UUID, uuid5

from dpac_api.errors import Conflict, Invalid
from dpac_api.models import GroupSpec


def shard_uid_of(first_shard_uid: str, shard: int) -> str:
    """The uid of a group's shard, given that of its first."""
    return uuid5(UUID(first_shard_uid), str(shard)).hex if shard else first_shard_uid


def next_shard(taken: Iterable[int], shards: int) -> int:
    """The shard of a new member: the one with the fewest."""
    counts = Counter(taken)
    return min(range(shards), key=lambda shard: (counts[shard], shard))


def check_shards(spec: GroupSpec, before: GroupSpec | None, workers: int) -> None:
    """Refuse a number of shards that cannot be served, or that what is declared cannot have."""
    shards, where = spec.journal.shards, "spec.journal.shards"
    if before is not None and shards != before.journal.shards:
        raise Conflict(
            f"The group has {before.journal.shards} shard(s), fixed when it was created, and {shards} were declared. Leave it, or "
            "declare another group.",
            property_path=where,
        )
    if shards == 1:
        return
    if shards > workers:
        raise Invalid(
            f"{shards} shards need as many workers, and this backend runs {workers}. Ask for fewer, or start it with --workers {shards}.",
            property_path=where,
        )
    if shards > len(spec.members):
        raise Invalid(
            f"The group has {len(spec.members)} member(s) for {shards} shards. Ask for no more shards than members.",
            property_path=where,
        )
    for name, leg in spec.replication.items():
        if leg.mode == "sync":
            raise Invalid(
                f'The leg {name!r} is sync, which a group of several shards cannot have. Use mode "async", or one shard.',
                property_path=f"spec.replication.{name}.mode",
            )


def check_none_empty(group: str, used: set[int], shards: int) -> None:
    """Conflict if a shard were left without a member: nothing of it could be in a checkpoint."""
    empty = sorted(set(range(shards)) - used)
    if empty:
        raise Conflict(
            f"The group {group!r} would have no member left in shard {empty[0]}, and a member keeps its shard for life. Nothing was "
            "changed. Declare another member beside, which comes to that shard, or another group.",
            property_path="spec.members",
        )
