"""What a target holds of a group of several shards: a checkpoint is there where every shard has its mark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from dpac_api.errors import Unrecoverable
from dpac_api.models import KeptSpace, TargetSpace
from dpac_engine.control.known_damage import is_hurt
from dpac_engine.control.recovery import MarkFilter, Progress, RangeView
from dpac_engine.core.checkpoints import Mark, matches, select
from dpac_engine.core.damage import Finding, Spare, Verification
from dpac_engine.core.difference import FileChange, RangeChange, changed_files, changed_ranges
from dpac_engine.core.image import Image
from dpac_engine.core.manifest import SHARDS_PREFIX, Hold, MemberState
from dpac_engine.core.sharded_image import ShardedImage

if TYPE_CHECKING:
    from dpac_engine.control.repositories import TargetRepository


class ShardedRepository:
    """The repositories of a group's shards as one (`recovery.Repository`). Objects of the first are named as ever."""

    def __init__(self, shards: Sequence[TargetRepository]) -> None:
        self._shards = shards

    def refresh(self) -> None:
        """See `Repository.refresh`."""
        for shard in self._shards:
            shard.refresh()

    def marks(self, wanted: MarkFilter) -> Iterator[Mark]:
        """See `Repository.marks`. The LSNs of a filter are those of the first shard."""
        others = replace(wanted, lsns=None)
        first, *rest = self._shards
        return _shared([first.marks(wanted), *(shard.marks(others) for shard in rest)])

    def ranges(self) -> Sequence[RangeView]:
        """See `Repository.ranges`. Read from the marks themselves: no manifest tells which of them every shard has."""
        runs: list[RangeView] = []
        before = None
        for mark in reversed(list(self.marks(MarkFilter()))):
            one = RangeView(mark.id, mark.id, mark.stamp_ns, mark.stamp_ns, 1, int(mark.body.app), list(mark.body.tags))
            if before is not None and before + 1 == mark.sequence:
                last = runs[-1]
                one = replace(
                    last,
                    last=one.last,
                    last_stamp_ns=one.last_stamp_ns,
                    count=last.count + 1,
                    app_count=last.app_count + one.app_count,
                    tags=[*last.tags, *one.tags],
                )
                runs[-1] = one
            else:
                runs.append(one)
            before = mark.sequence
        return runs

    def resolve(self, selector: str, damages: Sequence[Finding]) -> tuple[Mark, Mark | None]:
        """See `Repository.resolve`."""
        if selector.startswith("ck-"):
            return self._named(selector), None
        for shard in self._shards:
            shard.check_end(selector)
        if not damages:
            return select(_shared([shard.exact_marks(selector) for shard in self._shards]), selector), None
        passed_over: list[Mark] = []

        def sound() -> Iterator[Mark]:
            for mark in self.marks(MarkFilter()):
                if not is_hurt(damages, mark.sequence):
                    yield mark
                elif matches(selector)(mark):
                    passed_over.append(mark)

        try:
            return select(sound(), selector), passed_over[0] if passed_over else None
        except Unrecoverable:
            if not passed_over:
                raise
            raise Unrecoverable(
                f"Every checkpoint that satisfies {selector!r} needs damaged objects (`dpac verify`). Name one by its id, such as "
                f"{passed_over[0].id}, to get what of it is not damaged."
            ) from None

    def _named(self, checkpoint: str) -> Mark:
        return _joined([shard.resolve(checkpoint, [])[0] for shard in self._shards])

    def space(self, target: str) -> TargetSpace:
        """See `Repository.space`."""
        found = [shard.space(target) for shard in self._shards]
        summed = [name for name in TargetSpace.model_fields if name.endswith("_bytes") and name != "log_bytes"]
        levels = sorted({level for one in found for level in one.log_bytes})
        return found[0].model_copy(
            update={
                **{name: sum(getattr(one, name) for one in found) for name in summed},
                "log_bytes": {level: sum(one.log_bytes.get(level, 0) for one in found) for level in levels},
                "dropped_until": max((one.dropped_until for one in found if one.dropped_until), default=None),
                "estimated": any(one.estimated for one in found),
                "kept": _kept(found),
            }
        )

    def holds(self) -> Sequence[Hold]:
        """See `Repository.holds`: every shard is told of each."""
        return self._shards[0].holds()

    def needs(self, name: str) -> bool:
        """See `Repository.needs`."""
        if not name.startswith(SHARDS_PREFIX):
            return self._shards[0].needs(name)
        number, _, own = name.removeprefix(SHARDS_PREFIX).partition("/")
        return self._shards[int(number)].needs(own)

    def members_at(self, mark: Mark) -> Mapping[int, MemberState]:
        """See `Repository.members_at`."""
        return {ordinal: member for shard, own in self._own(mark) for ordinal, member in shard.members_at(own).items()}

    def _own(self, mark: Mark) -> Iterator[tuple[TargetRepository, Mark]]:
        """Each shard with its mark of the checkpoint."""
        if len(mark.other_lsns) != len(self._shards) - 1:
            mark = self._named(mark.id)
        for shard, lsn in zip(self._shards, (mark.lsn, *mark.other_lsns), strict=True):
            yield shard, msgspec.structs.replace(mark, lsn=lsn, other_lsns=())

    def image(self, mark: Mark) -> ShardedImage:
        """See `Repository.image`."""
        images: dict[int, Image] = {}
        for shard, own in self._own(mark):
            image = shard.image(own)
            images |= dict.fromkeys(shard.members_at(own), image)
        return ShardedImage(images)

    def changed_ranges(self, before: Mark, after: Mark, ordinal: int) -> list[RangeChange]:
        """See `Repository.changed_ranges`."""
        return changed_ranges(self.image(before).of(ordinal), self.image(after).of(ordinal), ordinal)

    def changed_files(self, before: Mark, after: Mark, ordinal: int) -> list[FileChange]:
        """See `Repository.changed_files`."""
        return changed_files(self.image(before).of(ordinal), self.image(after).of(ordinal), ordinal)

    def verify(self, progress: Progress, manifest_before: int = 0) -> Verification:
        """See `Repository.verify`. `manifest_before` is the first shard's; checkpoints are those of the shard that has the fewest."""
        found: list[Verification] = []
        for number, shard in enumerate(self._shards):
            bytes_before = sum(one.bytes_read for one in found)
            told = partial(_told, progress, bytes_before)
            found.append(shard.verify(told, 0 if number else manifest_before))
        newest = [one.newest for one in found if one.newest is not None]
        return Verification(
            objects=sum(one.objects for one in found),
            bytes_read=sum(one.bytes_read for one in found),
            checkpoints=min(one.checkpoints for one in found),
            findings=[
                replace(one, object=_place(number) + one.object)
                for number, verified in enumerate(found)
                for one in verified.findings
            ],
            spares=[
                Spare(_place(number) + one.object, one.reason)
                for number, verified in enumerate(found)
                for one in verified.spares
            ],
            newest=min(newest, key=lambda mark: mark.sequence) if len(newest) == len(found) else None,
            manifest=found[0].manifest,
        )


def _told(progress: Progress, bytes_before: int, done: int, total: int) -> None:
    progress(bytes_before + done, bytes_before + total)


def _place(shard: int) -> str:
    """Where a shard's objects lie in the group's part of a target."""
    return f"{SHARDS_PREFIX}{shard}/" if shard else ""


def _shared(newest_first: Sequence[Iterator[Mark]]) -> Iterator[Mark]:
    """The checkpoints that every shard has, newest first."""
    heads = [next(marks, None) for marks in newest_first]
    while True:
        found = [head for head in heads if head is not None]
        if len(found) < len(heads):
            return
        oldest = min(head.sequence for head in found)
        if all(head.sequence == oldest for head in found):
            yield _joined(found)
            oldest -= 1
        heads = [
            next(marks, None) if head.sequence > oldest else head
            for head, marks in zip(found, newest_first, strict=True)
        ]


def _joined(marks: Sequence[Mark]) -> Mark:
    """One checkpoint of its marks in each shard."""
    first, *others = marks
    cuts = {ordinal: cut for mark in marks for ordinal, cut in mark.body.cuts.items()}
    body = msgspec.structs.replace(first.body, cuts=cuts)
    return msgspec.structs.replace(first, body=body, other_lsns=tuple(mark.lsn for mark in others))


def _kept(found: Sequence[TargetSpace]) -> list[KeptSpace]:
    """What is kept beyond the history in every shard."""
    by_id = [{kept.checkpoint: kept for kept in one.kept} for one in found]
    return [
        kept.model_copy(
            update={
                "stored_bytes": sum(one[kept.checkpoint].stored_bytes for one in by_id),
                "unique_bytes": _sum_known([one[kept.checkpoint].unique_bytes for one in by_id]),
            }
        )
        for kept in found[0].kept
        if all(kept.checkpoint in one for one in by_id)
    ]


def _sum_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
