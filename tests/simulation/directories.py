"""Histories of a group whose members are directories, observed or under a blueprint, beside volumes.

Fault model: as in `history.py`; hints of what changed come late or not at all, files are stamped with a coarse clock, and an application
writes while a tree is scanned and read (`trees.py`). The index of what was captured lies on the group's disk, and is full, torn off and
replayed with it.

What must be true, beside what is true of volumes: in a checkpoint every path holds what it held at one moment between its cut's `as_of` and its
mark; a database under its blueprint what was committed then; after a barrier, what was committed when it began or since. Once the faults end,
the newest checkpoint is the directory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from dpac_api.errors import DpacError
from dpac_api.models import CheckpointRequest
from dpac_engine.control.assignment import MemberAssignment
from dpac_engine.control.group import GroupDeps
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image
from dpac_engine.io.members.directory import DirectoryMember
from tests.simulation import host, stage, world
from tests.simulation.history import History
from tests.simulation.oracle import Wrong
from tests.simulation.trees import Ledger, Tree

ORDINAL = 40
"""Of the first directory: volumes are numbered from 1 on."""


class Directories(History):
    """One such history. `seen` counts what came about, so that a test can tell that it tests anything."""

    def __init__(self, seed: int, defects: stage.Defects) -> None:
        super().__init__(seed, defects, steps=25)
        self.seen: Counter[str] = Counter()
        self.trees: dict[int, Tree] = {}
        self._barriers: dict[int, int] = {}
        """Sequence of a mark -> when the barrier before it was asked for."""
        for number in range(self.chance.choice([1, 1, 2])):
            ordinal = ORDINAL + number
            covered = self.chance.random() < 0.5
            self.trees[ordinal] = Tree(f"/host/tree{ordinal}", self.chance, covered=covered)
        self.host.disk.sync_all()

    # ------------------------------------------------------------------ what happens

    def _more_steps(self) -> list[tuple[Any, int]]:
        return [(self._act, 40), (self._barrier, 6), (self._lose_power_in_a_capture, 0 if self._last else 2)]

    async def _act(self) -> None:
        for _ in range(self.chance.randint(1, 6)):
            for seconds in self.chance.choice(sorted(self.trees.items()))[1].act():
                await asyncio.sleep(seconds)

    async def _lose_power_in_a_capture(self) -> None:
        """While what hints told of is read, journalled and indexed."""
        await self._act()
        await asyncio.sleep(self.chance.uniform(0.3, 0.4))
        self._power_goes = True
        raise world.Ended

    async def _barrier(self) -> None:
        covered = [self.group.members[at] for at, tree in self.trees.items() if tree.covered]
        if not covered or not all(member.has_blueprint for member in covered):
            return
        began_ns = self.world.now_ns
        asked = asyncio.create_task(self.group.checkpoint(CheckpointRequest(app=True, request_id="a-barrier")))
        while self.chance.random() < 0.7 and not asked.done():
            await self._act()  # the application goes on while its files are read
        try:
            made = await asyncio.wait_for(asked, 60.0)
        except (DpacError, TimeoutError) as error:
            self.world.note(f"no barrier: {error}")
            return
        self._barriers[int(made.id.rpartition("-")[2])] = began_ns
        self.seen["barrier"] += any(cut.kind == "barrier" for cut in made.cuts.values())

    async def _begun(self) -> None:
        await super()._begun()
        for tree in self.trees.values():
            tree.recover()

    # ------------------------------------------------------------------ what must be true

    def _check_others(self, name: str, mark: Mark, image: Image, ordinals: set[int]) -> None:
        for ordinal in sorted(ordinals):
            cut, tree = mark.body.cuts[str(ordinal)], self.trees[ordinal]
            since_ns = cut.as_of_ns
            if cut.kind == "barrier":
                since_ns = self._barriers.get(mark.sequence, mark.stamp_ns)
            tree.check(image.tree(ordinal), since_ns, mark.stamp_ns, f"{tree.path} in {mark.id} at {name}, {cut.kind}")
            self.seen[cut.kind] += 1

    async def _settle(self) -> None:
        await super()._settle()
        group = self.group
        last_ns = max(tree.changed_ns for tree in self.trees.values())

        def captured() -> bool:
            statuses = [group.members[at].status(seeded=True) for at in self.trees]
            return all(
                status.as_of and status.as_of > datetime.fromtimestamp(last_ns / 1e9, UTC) for status in statuses
            )

        await self._until(captured, "directories are captured as they are now")
        counted = self._counted()
        await self._until(lambda: all(self._has_all(leg) for leg in counted), "legs have the directories")
        mark = group.mark(tags=("trees",))
        if mark is None:
            raise Wrong(f"no mark at the end: {group.journal_error}")

        def stored() -> bool:
            for leg in counted:
                leg.hurry()
            return all(leg.last_mark is not None and leg.last_mark.lsn >= mark.lsn for leg in counted)

        await self._until(stored, "legs have the directories' last checkpoint")
        for leg in counted:
            reader = self._reader(self.targets[leg.name])
            found = reader.resolve("latest")
            if missing := self._ordinals() - set(reader.members_at(found)):
                raise Wrong(f"latest at {leg.name} lacks the members {missing}")
            for ordinal, tree in self.trees.items():
                tree.check(
                    reader.image(found).tree(ordinal), last_ns, found.stamp_ns, f"{tree.path} at the end, {leg.name}"
                )
            self.seen["settled"] += 1

    # ------------------------------------------------------------------ what the engine is given

    def _ordinals(self) -> set[int]:
        return super()._ordinals() | set(self.trees)

    def _deps(self) -> GroupDeps:
        def directory(spec: Any, journal: Any, index_folder: Any) -> Any:
            tree = next(tree for tree in self.trees.values() if tree.path == spec.path)
            blueprint = Ledger() if tree.covered else None
            return DirectoryMember(host.HostPath(spec.path), journal, world.Clock(), index_folder, blueprint)  # type: ignore[arg-type]

        return super()._deps()._replace(directory=directory)

    def _declared(self) -> dict[str, Any]:
        declared = super()._declared()
        for at, tree in self.trees.items():
            # Of the blueprints that can be declared one stands for all: `_deps` says which one is used.
            blueprint = {"blueprint": "sqlite"} if tree.covered else {}
            declared["spec"]["members"][f"tree{at}"] = {"kind": "directory", "path": tree.path} | blueprint
            declared["members"][f"tree{at}"] = MemberAssignment(ordinal=at, uid=f"{at:032x}")
        return declared
