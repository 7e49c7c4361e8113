"""Makes true what the catalogue wants: tells workers, and finishes purges.

Level-triggered: each pass looks at what is wanted and at what was confirmed, and takes the steps between. A pass
that dies after any step is simply begun again, by this process or the next one.

    active, retained   write assignment.json -> worker.apply -> note the generation as applied
    purging            the same (detached) -> worker.drop -> purge each target -> delete files -> forget the rows
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy import select

from dpac_api.errors import Corruption, DpacError, NotFound, Unreachable
from dpac_api.models import TargetSpec
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.catalogue import Catalogue, utc
from dpac_engine.control.catalogue_groups import (
    Host,
    assignment,
    expired,
    forget_group,
    purge_expired,
    where_recovery_points_lie,
)
from dpac_engine.control.catalogue_schema import GroupRow
from dpac_engine.control.catalogue_targets import collect_retired
from dpac_engine.control.recovery import Recovery
from dpac_engine.control.worker_api import WorkerApi
from dpac_engine.core.ports import Clock
from dpac_engine.io.files import make_folder, replace_file

_log = logging.getLogger(__name__)
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SWEEP_SECONDS = 30.0
"""How often expired groups are looked for."""
PARALLEL = 16


class Reconciler:
    """Converges every group of the site; one pass per group at a time."""

    def __init__(
        self,
        catalogue: Catalogue,
        host: Host,
        workers: Sequence[WorkerApi],
        recovery: Recovery,
        clock: Clock,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._catalogue = catalogue
        self._host = host
        self._workers = workers
        self._recovery = recovery
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, asyncio.Event] = {}
        self._attempts: dict[str, list[asyncio.Future[None]]] = {}
        self._slots = asyncio.Semaphore(PARALLEL)
        self._sweeper: asyncio.Task[None] | None = None
        self.problems: dict[str, tuple[DpacError, datetime]] = {}
        """Group uid -> why the last attempt failed, and when."""

    async def start(self) -> None:
        """Take up everything unfinished, then watch for what expires."""
        for uid in await asyncio.to_thread(self._unfinished):
            self.nudge(uid)
        self._sweeper = asyncio.create_task(self._sweep(), name="reconciler sweep")

    async def stop(self) -> None:
        """Stop where it stands; the next start goes on from there."""
        tasks = [*self._tasks.values(), *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def nudge(self, uid: str) -> asyncio.Future[None]:
        """Say that the group's wanted state changed. The future ends with the next attempt, whatever it brings."""
        attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attempts.setdefault(uid, []).append(attempt)
        self._wanted.setdefault(uid, asyncio.Event()).set()
        task = self._tasks.get(uid)
        if task is None or task.done():
            self._tasks[uid] = asyncio.create_task(self._converge(uid), name=f"reconcile {uid}")
        return attempt

    async def attempt(self, uid: str, timeout_seconds: float) -> None:
        """Nudge, and wait for one attempt, but no longer than that."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.nudge(uid), timeout_seconds)

    # -------------------------------------------------------------- one group

    async def _converge(self, uid: str) -> None:
        """Attempts until one that saw the newest wish succeeds."""
        wanted = self._wanted[uid]
        failures = 0
        while wanted.is_set():
            wanted.clear()
            waiting = self._attempts.pop(uid, [])
            try:
                async with self._slots:
                    await self.run(uid)
                self.problems.pop(uid, None)
                failures = 0
            except Exception as cause:  # whatever it is, the group must be tried again
                self._note(uid, cause)
                delay = self._retry_seconds[min(failures, len(self._retry_seconds) - 1)]
                failures += 1
            finally:
                for attempt in waiting:
                    if not attempt.done():
                        attempt.set_result(None)
            if uid in self.problems:
                with suppress(TimeoutError):
                    await asyncio.wait_for(wanted.wait(), delay)
                wanted.set()
        del self._wanted[uid], self._tasks[uid]

    def _note(self, uid: str, cause: Exception) -> None:
        error = (
            cause if isinstance(cause, DpacError) else DpacError(f"An internal error: {type(cause).__name__}: {cause}")
        )
        before, since = self.problems.get(uid, (None, utc(self._clock.now_ns())))
        if before is None or before.message != error.message:
            _log.warning(
                "group %s does not converge: %s", uid, error.message, exc_info=not isinstance(cause, DpacError)
            )
        self.problems[uid] = (error, since)

    async def run(self, uid: str) -> None:
        """One pass over a group, all its steps."""
        async for _ in self.steps(uid):
            pass

    async def steps(self, uid: str) -> AsyncIterator[str]:
        """The steps of a pass, each done when its name comes out; a test stops between any two of them."""
        wish = await asyncio.to_thread(self._wish, uid)
        if wish is None:
            return
        lifecycle, applied, shards = wish
        told = False
        for desired in shards:
            if await asyncio.to_thread(self._write_assignment, desired):
                yield "write assignment"
            elif applied == desired.generation and lifecycle != "purging":
                continue
            await self._worker(desired.worker).apply(desired.key)
            told = True
            yield "apply"
        if lifecycle == "purging":
            async for step in self._purge(uid, shards):
                yield step
        elif told:
            await asyncio.to_thread(self._note_applied, uid, shards[0].generation)
            yield "note applied"

    async def _purge(self, uid: str, shards: Sequence[WorkerAssignment]) -> AsyncIterator[str]:
        for shard in shards:
            with suppress(NotFound):
                await self._worker(shard.worker).drop(shard.key)
            yield "drop"
        for target, spec in (await asyncio.to_thread(self._places, uid)).items():
            await asyncio.to_thread(self._recovery.purge, spec, uid)
            yield f"purge {target}"
        for shard in shards:
            await asyncio.to_thread(shutil.rmtree, self._folder(shard.key), ignore_errors=True)
        yield "delete files"
        await asyncio.to_thread(self._forget, uid)
        yield "forget"

    # -------------------------------------------------------------- steps that block

    def _unfinished(self) -> list[str]:
        """Groups to look at after a start: all but the retained ones that the worker knows as detached."""
        with self._catalogue.read() as session:
            rows = session.scalars(select(GroupRow))
            return [row.uid for row in rows if row.lifecycle != "retained" or row.applied_generation != row.generation]

    def _wish(self, uid: str) -> tuple[str, int, list[WorkerAssignment]] | None:
        with self._catalogue.read() as session:
            row = session.get(GroupRow, uid)
            if row is None:
                return None
            first = assignment(session, row, self._host)
            others = [assignment(session, row, self._host, shard) for shard in range(1, first.shards)]
            return row.lifecycle, row.applied_generation, [first, *others]

    def _worker(self, index: int) -> WorkerApi:
        if index >= len(self._workers):
            raise Unreachable(
                f"The group belongs to worker {index}, but this backend runs {len(self._workers)}. "
                f"Start it with --workers {index + 1} or more."
            )
        return self._workers[index]

    def _write_assignment(self, desired: WorkerAssignment) -> bool:
        """Replace assignment.json, atomically and durably; False if it says that already."""
        folder = self._folder(desired.key)
        path = folder / "assignment.json"
        text = desired.model_dump_json(indent=1)
        if path.exists() and path.read_text() == text:
            return False
        make_folder(folder)
        replace_file(path, text.encode())
        return True

    def _note_applied(self, uid: str, generation: int) -> None:
        with self._catalogue.write() as session:
            row = session.get(GroupRow, uid)
            if row is not None:
                row.applied_generation = max(row.applied_generation, generation)

    def _places(self, uid: str) -> dict[str, TargetSpec]:
        with self._catalogue.read() as session:
            row = session.get(GroupRow, uid)
            return {} if row is None else where_recovery_points_lie(session, row)

    def _forget(self, uid: str) -> None:
        with self._catalogue.write() as session:
            forget_group(session, uid)
            session.flush()
            collect_retired(session)

    def _folder(self, key: str) -> Path:
        return self._host.data / "groups" / key

    # -------------------------------------------------------------- expiry

    async def _sweep(self) -> None:
        while True:
            try:
                for uid in await asyncio.to_thread(self._expire):
                    self.nudge(uid)
            except Exception:
                _log.exception("looking for expired groups failed; trying again in %.0f s", SWEEP_SECONDS)
            await asyncio.sleep(SWEEP_SECONDS)

    def _expire(self) -> list[str]:
        now = utc(self._clock.now_ns())
        with self._catalogue.read() as session:
            due = {row.uid: where_recovery_points_lie(session, row) for row in expired(session, now)}
        spared = [uid for uid, places in due.items() if any(self._may_hold(uid, spec) for spec in places.values())]
        with self._catalogue.write() as session:
            return purge_expired(session, now, spared)

    def _may_hold(self, uid: str, target: TargetSpec) -> bool:
        """Whether a checkpoint of the group is held at the target, or it cannot be told now: the next sweep asks again."""
        repository = self._recovery.open(target, uid)
        try:
            repository.refresh()
        except (NotFound, Corruption):
            return False
        except DpacError as error:
            _log.info("whether group %s holds anything cannot be told: %s", uid, error.message)
            return True
        return any(hold.is_active(self._clock.now_ns()) for hold in repository.holds())
