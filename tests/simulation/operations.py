"""Histories in which persons do more: holds, changed retention, restores in place; every write waits for a sync leg; targets throttle.

Fault model: as in `history.py`; besides, a target answers for a while, to some share of the requests, that it is asked too often, and what
asks it tries again as it does with a bucket.

What must be true, beside that: a checkpoint that was held is listed and right until somebody releases it. What was restored in place is what the
checkpoint says, and the journal, the targets and every later life have it like anything a client wrote.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from dpac_api.errors import DpacError
from dpac_api.models import Checkpoint, CheckpointRequest, LegSpec
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.worker_api import HoldChange, WorkerRewind
from dpac_engine.core.checkpoints import Mark
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.nbd.export import Change
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from dpac_engine.io.stores.retrying import RetryingStore
from tests.simulation import stage, world
from tests.simulation.history import KEY, KEY_ID, UID, History
from tests.simulation.oracle import Device, Wrong

RETRY_SECONDS = 20.0
PATIENCE_SECONDS = 60.0
REWIND_TURNS = 2000


class Operations(History):
    """One such history. `seen` counts what came about, so that a test can tell that it tests anything."""

    def __init__(self, seed: int, defects: stage.Defects) -> None:
        self.seen: Counter[str] = Counter()
        self.retention: dict[str, dict[str, Any]] = {}
        self._held: dict[str, set[str]] = {"near": set(), "far": set()}
        """Target -> checkpoints that it was told to hold, and confirmed."""
        self._numbers = 0
        super().__init__(seed, defects, steps=30)

    def _more_steps(self) -> list[tuple[Callable[[], Any], int]]:
        return [
            (self._hold, 10), (self._release, 2), (self._rewind, 8), (self._change_retention, 2), (self._throttle, 6),
        ]  # fmt: skip

    # ------------------------------------------------------------------ acknowledge=write

    def _make_sync(self) -> None:
        super()._make_sync()
        for leg in self.sync.values():
            leg.setdefault("acknowledge", self.chance.choice(["flush", "write"]))

    def _submit(self, ordinal: int, device: Device, volume: Volume, changes: list[Change]) -> None:
        super()._submit(ordinal, device, volume, changes)
        if volume.durable_acks:
            self._flush_volume(ordinal, device, volume)  # as the server does before it answers
            self.seen["acknowledged when committed"] += 1

    # ------------------------------------------------------------------ targets that throttle

    def _throttle(self) -> None:
        target = self.targets[self.chance.choice(sorted(self.targets))]
        target.throttle = self.chance.choice([0.0, 0.2, 0.6, 0.95])

    def _open_writer(self, assignment: WorkerAssignment, leg: LegSpec, target: Any) -> RepositoryWriter:
        store = RetryingStore(
            self.targets[target.path[1:]],
            RETRY_SECONDS,
            monotonic=lambda: self.world.now_ns / 1e9,
            sleep=self.world.sleep,
        )
        return RepositoryWriter(store, UID, KEY_ID, b"wrapped", lambda _: KEY, world.Clock())

    async def _settle(self) -> None:
        for target in self.targets.values():
            target.throttle = 0.0
        await super()._settle()

    # ------------------------------------------------------------------ holds and retention

    def _listed(self, name: str) -> list[Mark]:
        if name not in self.group.legs or name in self.fenced or self.targets[name].rotten:
            return []
        try:
            return list(self._reader(self.targets[name]).marks())
        except DpacError:
            return []

    async def _hold(self) -> None:
        name = self.chance.choice(self.legs)
        marks = self._listed(name)
        if marks:
            mark = self.chance.choice(marks)
            change = HoldChange(
                checkpoint=mark.id, held=True, lsn=mark.lsn, since_ns=mark.stamp_ns, reason="a person asked"
            )
            await self._change_hold(change)

    async def _release(self) -> None:
        held = sorted({each for marks in self._held.values() for each in marks})
        if held:
            checkpoint = self.chance.choice(held)
            for marks in self._held.values():
                marks.discard(checkpoint)  # it may go from here on, whatever comes of the request
            await self._change_hold(HoldChange(checkpoint=checkpoint, held=False))

    async def _change_hold(self, change: HoldChange) -> None:
        try:
            outcome = await asyncio.wait_for(self.group.change_hold(change), PATIENCE_SECONDS)
        except TimeoutError:
            return
        self.world.note(f"{'held' if change.held else 'released'} {change.checkpoint}: {outcome}")
        if change.held:
            for name in outcome.done:
                self._held[name].add(change.checkpoint)
                self.seen["held"] += 1

    async def _change_retention(self) -> None:
        for name in self.legs:
            counts = {"hourly": self.chance.choice([0, 0, 2]), "keep_good": self.chance.choice([1, 3])}
            self.retention[name] = counts | {"tagged": self.chance.choice(["0s", "10s", "1h"])}
        self.generation += 1
        await self.group.apply(self._assignment())

    def _check_targets(self) -> None:
        super()._check_targets()
        for name, held in self._held.items():
            target = self.targets[name]
            if held and not target.rotten and name not in self.fenced:
                reader = self._reader(target)
                known = {mark.id: mark for mark in reader.marks()}
                for checkpoint in sorted(held):
                    if checkpoint not in known:
                        raise Wrong(f"{checkpoint} is held at {name}, and not there any more")
                    self._check_mark(name, target, reader, known[checkpoint])
                    self.seen["held and right"] += 1

    # ------------------------------------------------------------------ restores in place

    async def _rewind(self) -> None:
        ordinal, device, volume = self._any()
        marks = [mark for name in self.legs for mark in self._listed(name)[:20]]
        if not marks or self.group.journal_error:
            return
        mark = self.chance.choice(marks)
        self._numbers += 1
        member, number = self.group.members[ordinal].name, f"rewind-{self._numbers}"
        request = WorkerRewind(
            operation_id=number, group_uid=UID, ordinal=ordinal, member=member, target=self.legs[0], checkpoint=mark.id
        )
        try:
            await self.group.rewinds.reserve(request)
            made = await self.group.checkpoint(CheckpointRequest(tag=number, request_id=f"safety-{number}"))
            target = await self._target_with(made, mark.id, ordinal)
            if target is not None:
                begun = request.model_copy(update={"target": target, "safety_checkpoint": made.id})
                await self._go_back(begun, mark, device, volume)
        except DpacError as error:
            self.world.note(f"no rewind: {error.message}")
        finally:
            if not self.world.dead:
                await self.group.rewinds.release(number)

    async def _target_with(self, safety: Checkpoint, checkpoint: str, ordinal: int) -> str | None:
        """One that has both, once the first is shipped; None if that takes too long."""
        for _ in range(10):
            for name in self.legs:
                reader = self._reader(self.targets[name]) if self._listed(name) else None
                if reader is None:
                    continue
                found, wanted = (self._found_at(reader, each, ordinal) for each in (safety.id, checkpoint))
                # A sync leg's target lists the end of what it has under the number of the checkpoint to come.
                if found is not None and wanted is not None and found.lsn in safety.lsn.values():
                    return name
            await asyncio.sleep(1.0)
        return None

    @staticmethod
    def _found_at(reader: RepositoryReader, checkpoint: str, ordinal: int) -> Mark | None:
        try:
            found = reader.resolve(checkpoint)
        except DpacError:
            return None
        return found if ordinal in reader.members_at(found) else None

    async def _go_back(self, request: WorkerRewind, mark: Mark, device: Device, volume: Volume) -> None:
        """What it writes is noted as a client's changes are."""
        noted: Any = volume

        def submit(changes: list[Change]) -> None:
            del noted.submit
            try:
                self._submit(request.ordinal, device, volume, changes)
            finally:
                noted.submit = submit

        noted.submit = submit
        try:
            self.group.rewinds.begin(request)
            for _ in range(REWIND_TURNS):
                state = self.group.rewinds.progress(request.operation_id)
                if state.state in ("done", "failed"):
                    break
                await asyncio.sleep(0.05)
        finally:
            del noted.submit
        self.world.note(f"rewind to {mark.id}: {state}")
        if state.state == "failed":
            if not (self.targets[request.target].rotten or volume.error or self.group.journal_error):
                raise Wrong(f"a rewind to {mark.id} failed: {state.error}")
        elif state.state == "running":
            if not self.sync:  # else what it wrote may wait for a target, as long as that is declared
                raise Wrong(f"a rewind to {mark.id} does not end: {state}")
        elif device.content != device.at(mark.lsn) and not device.was(device.content, mark.lsn):
            raise Wrong(f"volume {request.ordinal} is not what it was at {mark.id} after it was brought back to it")
        else:
            self.seen["brought back"] += 1

    # ------------------------------------------------------------------ what the engine is given

    def _declared(self) -> dict[str, Any]:
        declared = super()._declared()
        for name, counts in self.retention.items():
            if name in declared["spec"]["replication"]:
                declared["spec"]["replication"][name]["retention"] = counts
        return declared
