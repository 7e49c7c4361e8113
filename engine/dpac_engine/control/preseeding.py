"""Pre-seeding: a raw image of a volume becomes the starting point of a leg whose target has nothing of the group yet.

The image's blocks are stored as a seed's are, at LSN 0, before every record, and the manifests say that they are no content of the
member: nothing is ever recovered from them alone. A leg that finds them compares, as it does with a copy that was carried there, and
sends what differs; so nothing depends on whether the image was any good. Every piece is committed: who is killed goes on there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpac_api.errors import Conflict, Invalid
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.seeding import Piece, Seeding, SeedStream
from dpac_engine.core.manifest import PRESEEDED, MemberState, RepositoryState, SegmentRef
from dpac_engine.core.ports import Clock
from dpac_engine.core.segment import SegmentKind
from dpac_engine.io.raw_image import RawImage
from dpac_engine.io.repository import RepositoryWriter, SpecObject


@dataclass(frozen=True)
class Preseeded:
    """What became of it."""

    image_bytes: int
    resumed_bytes: int
    """Of the image, what an earlier run had brought."""
    stored_bytes: int
    """At the target now, compressed."""


class Preseeding:
    """One image on its way to one target."""

    def __init__(
        self,
        writer: RepositoryWriter,
        shard: WorkerAssignment,
        member: str,
        image: RawImage,
        clock: Clock,
        progress: Callable[[int], None],
    ) -> None:
        """`progress` takes how much of the image is at the target."""
        self._writer = writer
        self._shard = shard
        self._ordinal = shard.members[member].ordinal
        self._image = image
        self._clock = clock
        self._progress = progress

    async def run(self) -> Preseeded:
        """Bring what of the image is not at the target yet. Conflict if a leg has begun to write there."""
        state = await asyncio.to_thread(self._writer.open)
        member = self._begin(state)
        position = member.seed_position or 0
        seeding = Seeding(self._ordinal, self._image, position, PRESEEDED, lambda: 0, self._clock.now_ns)
        stream = SeedStream("preseed", seeding, self._put)
        try:
            ready = False
            while not ready:
                await stream.read_on()
                arrived = await stream.arrived()
                ready = arrived[-1][0].ready_lsn is not None
                at = None if ready else arrived[-1][0].position
                state = await asyncio.to_thread(self._commit, at, [ref for _, refs in arrived for ref in refs])
                self._progress(self._image.size_bytes if at is None else at)
        finally:
            await stream.abandon()
        assert state is not None
        return Preseeded(self._image.size_bytes, position, state.stored_bytes)

    def _begin(self, state: RepositoryState | None) -> MemberState:
        """The member as it is at the target. Conflict if there is more than what other images brought."""
        if state is None:
            return self._members()[self._ordinal]
        told = any(
            member.content != PRESEEDED and (member.ready or member.seed_position is not None)
            for member in state.members.values()
        )
        if told or any(state.cursor.values()):
            raise Conflict(
                f"The target has copies of the group {self._shard.name} already, that a leg wrote or that were carried there: there is nothing "
                "to begin with. Nothing was changed. Once such a leg is back it sends what differs by itself."
            )
        member = state.members.get(self._ordinal)
        if member is None:
            raise Invalid(
                "The group has other members than when the first image was brought. Declare the leg: what is there is compared, and the rest sent."
            )
        if member.content == PRESEEDED and member.seed_position is None:
            raise Conflict(f"The target has an image of {member.name} already. Declare the leg: what differs is sent.")
        return member

    def _members(self) -> dict[int, MemberState]:
        state, spec = self._writer.state, self._shard.spec
        if state is not None:
            return dict(state.members)
        return {
            member.ordinal: MemberState(member.uid, spec.members[name].kind, name, founding=True)
            for name, member in self._shard.own_members.items()
        }

    def _put(self, piece: Piece) -> Sequence[SegmentRef]:
        if not len(piece.rows):
            return ()
        now, leg = self._clock.now_ns(), next(iter(self._shard.spec.replication.values()), None)
        return (
            self._writer.put_segment(
                piece.rows,
                [],
                kind=SegmentKind.FILL,
                shard_uid=self._shard.shard_uid,
                epoch=self._shard.epoch,
                lsn_from=0,
                lsn_to=1,
                stamps=(now, now),
                membership_version=self._shard.membership_version,
                compression_level=leg.compression_level if leg else 3,
            ),
        )

    def _commit(self, position: int | None, add: Sequence[SegmentRef]) -> RepositoryState:
        shard, members = self._shard, self._members()
        if self._writer.state is None:
            self._writer.put_escrow(shard.spec.encryption.escrow)
            spec = shard.spec.model_dump(mode="json")
            told = SpecObject(shard.name, shard.site_uid, shard.generation, spec, shard.identity())
            self._writer.put_spec(shard.generation, told)
        members[self._ordinal] = members[self._ordinal].preseeded(position)
        return self._writer.commit(
            epoch=shard.epoch,
            epochs=[(shard.epoch, 0)],
            cursor={shard.shard_uid: 0},
            members=members,
            membership_version=shard.membership_version,
            spec=shard.generation,
            log_from=0,
            add=add,
        )
