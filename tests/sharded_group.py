"""A group of two shards, each a real `Group` on real files, in one process: the second is reached through a `Peer` that can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from dpac_api.errors import Unreachable
from dpac_api.models import Checkpoint, LegSpec, TargetSpec
from dpac_engine.control.assignment import MemberAssignment, WorkerAssignment, shard_key
from dpac_engine.control.group import Group
from dpac_engine.control.repositories import TargetRepository
from dpac_engine.control.sharded_repository import ShardedRepository
from dpac_engine.control.sharding import shard_uid_of
from dpac_engine.control.worker_api import ShardHeld, ShardMark, ShardQuiet
from dpac_engine.io.blueprints.sqlite import SqliteBlueprint
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.members.directory import DirectoryMember
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from tests.unit import test_group as groups
from tests.unit.test_group import KEY, KEY_ID, SHARD, UID, Target

SHARDS = 2


class Peer:
    """The worker of the second shard, as the coordinator calls it."""

    def __init__(self) -> None:
        self.group: Group | None = None
        self.calls: list[str] = []
        self.bounds: list[float] = []
        """For how long the shard was asked to hold at most, each time."""
        self.failing: dict[str, int] = {}
        """Call -> how many of the next ones do not arrive."""
        self.before: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        """Call -> what happens once it was sent and has not arrived."""

    async def _there(self, call: str) -> Group:
        self.calls.append(call)
        if call in self.before:
            await self.before[call]()
        if self.failing.get(call, 0) > 0:
            self.failing[call] -= 1
            raise Unreachable(f"The worker does not answer {call}.")
        if self.group is None:
            raise Unreachable("The worker is away.")
        return self.group

    async def quiesce(self, key: str) -> ShardQuiet:
        return await (await self._there("quiesce")).quiescing.begin()

    async def unquiesce(self, key: str, token: str) -> None:
        (await self._there("unquiesce")).quiescing.end(token)

    async def hold_writes(self, key: str, seconds_max: float) -> ShardHeld:
        self.bounds.append(seconds_max)
        return ShardHeld(**(await self._there("hold_writes")).holding.take(seconds_max)._asdict())

    async def mark_held(self, request: ShardMark) -> Checkpoint:
        group = await self._there("mark_held")
        return group.holding.mark(request.token, request.order(), request.tag, request.quiet)

    async def release_writes(self, key: str, token: str) -> None:
        (await self._there("release_writes")).holding.release(token)

    async def secure(self, key: str) -> None:
        await (await self._there("secure")).secure()


class ShardedSite(groups.Site):
    """A host with such a group; members go to the shards in turn."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.second_target = Target()
        self.peer = Peer()
        self.shards: list[Group] = []
        self.members: dict[str, Any] = {
            name: {"kind": "volume", "path": str(root / f"{name}.raw"), "size": "4MiB"} for name in ("a", "b")
        }

    def of_shard(self, shard: int) -> WorkerAssignment:
        """What the worker of a shard is told."""
        made = self.assignment(spec={"members": self.members})
        journal = made.spec.journal.model_copy(update={"shards": SHARDS})
        members = {
            name: MemberAssignment(ordinal=at + 1, uid=f"{at + 1:032x}", shard=at % SHARDS)
            for at, name in enumerate(self.members)
        }
        return made.model_copy(
            update={
                "shard": shard,
                "worker": shard,
                "shard_uid": shard_uid_of(SHARD, shard),
                "spec": made.spec.model_copy(update={"journal": journal}),
                "members": members,
            }
        )

    def stored(self, key: str) -> Target:
        """Where a shard's copy lies."""
        return self.targets["copies"] if key == UID else self.second_target

    def shard(self, number: int) -> Group:
        """One shard, not started."""

        def open_writer(assignment: WorkerAssignment, leg: LegSpec, target: TargetSpec) -> RepositoryWriter:
            store = self.stored(assignment.key)
            return RepositoryWriter(store, UID, KEY_ID, b"wrapped", lambda _: KEY, SystemClock())

        def directory(spec: Any, journal: Any, folder: Path) -> DirectoryMember:
            blueprint = SqliteBlueprint(busy_seconds_max=60) if spec.blueprint else None
            return DirectoryMember(Path(spec.path), journal, SystemClock(), folder, blueprint)

        def open_reader(key: str, target: TargetSpec) -> RepositoryReader:
            return RepositoryReader(self.stored(key), UID, lambda _: KEY)

        made = super().group()  # for what wiring gives a group
        self.groups.remove(made)
        deps = made._deps._replace(
            open_writer=open_writer, directory=directory, open_reader=open_reader, peers=lambda _: self.peer
        )
        folder = self.root / shard_key("group", number)
        (folder / "members").mkdir(parents=True, exist_ok=True)
        group = Group(self.of_shard(number), folder, deps)
        self.groups.append(group)
        return group

    async def start(self) -> tuple[Group, Group]:
        """Both shards, protected."""
        second, first = self.shard(1), self.shard(0)
        self.peer.group = second
        await second.start()
        await first.start()
        await groups.until(lambda: first.status().protected and second.status().protected)
        self.shards = [first, second]
        return first, second

    def repository(self) -> ShardedRepository:
        """What the targets hold of the group."""
        readers = [RepositoryReader(self.stored(shard_key(UID, shard)), UID, lambda _: KEY) for shard in range(SHARDS)]
        found = ShardedRepository([TargetRepository(reader, lambda _id, _wrapped: None) for reader in readers])
        found.refresh()
        return found


def run(tmp_path: Path, story: Callable[[ShardedSite], Coroutine[Any, Any, None]]) -> None:
    """Run a story at a fresh site, and stop whatever it started."""

    async def told() -> None:
        site = ShardedSite(tmp_path)
        try:
            await story(site)
        finally:
            for group in site.groups:
                if hasattr(group, "spool"):
                    await group.stop()
            site.executor.shutdown()

    asyncio.run(told())
