"""The groups and mounts of one worker: starts them, changes them, ends them, and knows their exports."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from dpac_api.errors import Conflict, Corruption, DpacError, NotFound, Unreachable
from dpac_api.models import Checkpoint, CheckpointRequest, GroupStatus, Mount
from dpac_engine.control import absent_group
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.runtime import Runtime
from dpac_engine.control.worker_api import (
    HoldChange,
    HoldOutcome,
    MountStates,
    RewindProgress,
    ShardHeld,
    ShardMark,
    ShardQuiet,
    WorkerMount,
    WorkerRewind,
)
from dpac_engine.core.ports import Clock
from dpac_engine.io.files import replace_file
from dpac_engine.io.nbd.export import Export

_log = logging.getLogger(__name__)

START_SECONDS_MAX = 10.0
"""How long the first start of all groups may hold back the clients of those that are up."""
STOP_SECONDS_MAX = 20.0
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
STARTS_MAX = 3
"""A group at whose start the worker died so often is held back, so that the others are served."""
HELD_BACK_SECONDS = 600.0
"""How long, before it is tried once more."""


class MountTable(Protocol):
    """The mounts of one worker (`control/mounts.py`)."""

    async def open(self, request: WorkerMount) -> Mount:
        """See `WorkerApi.mount`."""

    async def close(self, mount_id: str) -> None:
        """See `WorkerApi.unmount`."""

    async def restore_all(self) -> None:
        """Open again what was open when the worker ended."""

    async def stop(self) -> None:
        """Take mounted directories away."""

    def exports(self) -> Mapping[str, Export]:
        """Export name (`mount-ID/MEMBER`) -> device."""

    def states(self) -> MountStates:
        """See `WorkerApi.mount_states`."""


@dataclass
class _Group:
    """A group that this worker was told about."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    assignment: WorkerAssignment | None = None
    runtime: Runtime | None = None
    """Set while it runs."""
    failure: DpacError | None = None
    since_ns: int = 0
    retry: asyncio.Task[None] | None = None


class Worker:
    """One worker (a `WorkerApi`, and the `Exports` of its NBD server). Belongs to one event loop."""

    def __init__(
        self,
        index: int,
        groups: Path,
        make_runtime: Callable[[WorkerAssignment], Runtime],
        mounts: MountTable,
        clock: Clock,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._index = index
        self._folder = groups
        self._make_runtime = make_runtime
        self._mounts = mounts
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._groups: dict[str, _Group] = {}
        self._beginning: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ exports

    def names(self) -> Sequence[str]:
        """See `Exports.names`."""
        return sorted(name for exports in self._export_tables() for name in exports)

    def find(self, name: str) -> Export | None:
        """See `Exports.find`."""
        return next((exports[name] for exports in self._export_tables() if name in exports), None)

    def _export_tables(self) -> Iterator[Mapping[str, Export]]:
        for group in self._groups.values():
            if group.runtime is not None:
                yield group.runtime.exports()
        yield self._mounts.exports()

    # ------------------------------------------------------------ start and end

    async def start(self, seconds_max: float = START_SECONDS_MAX) -> None:
        """Start every group of this worker and restore its mounts. What fails, or takes longer than `seconds_max`, goes
        on behind; it holds up nothing else."""
        uids = sorted(path.parent.name for path in self._folder.glob("*/assignment.json"))
        suspects = sorted((starts, uid) for uid in uids if (starts := _interrupted_starts(self._folder / uid)))
        for uid in uids:
            if (_interrupted_starts(self._folder / uid), uid) not in suspects:
                self._begin(self._first_start(uid), f"start {uid}")
        if suspects:
            self._begin(self._start_suspects([uid for _, uid in suspects]), "start what was interrupted")
        self._begin(self._restore_mounts(), "restore mounts")
        _, late = await asyncio.wait(self._beginning, timeout=seconds_max)
        for task in late:
            _log.warning("%s takes longer than %.0f s; it goes on behind", task.get_name(), seconds_max)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _first_start(self, uid: str) -> None:
        try:
            if self._read(uid).worker != self._index:
                return
        except DpacError:
            pass  # whose it is cannot be told: it is shown as failed
        await self._converge_again(uid)

    async def _start_suspects(self, uids: Sequence[str]) -> None:
        """One after the other: if the worker dies again, it is known at whose start."""
        for uid in uids:
            await self._first_start(uid)

    async def _restore_mounts(self) -> None:
        try:
            await self._mounts.restore_all()
        except Exception:  # one of many parts of a worker that must not end with it
            _log.exception("restoring the mounts failed")

    async def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Drain and detach every group, side by side. What is not drained by then is replayed at the next start."""
        for task in [*self._beginning, *(group.retry for group in self._groups.values() if group.retry)]:
            task.cancel()
        stops = [
            asyncio.create_task(group.runtime.stop(), name=f"stopping group {uid}")
            for uid, group in self._groups.items()
            if group.runtime is not None
        ]
        stops.append(asyncio.create_task(self._mounts.stop(), name="stopping the mounts"))
        done, late = await asyncio.wait(stops, timeout=seconds_max)
        for task in late:
            _log.error(
                "%s took more than %.0f s; the journal is replayed at the next start", task.get_name(), seconds_max
            )
        for task in done:
            if (error := task.exception()) is not None:
                _log.error("%s failed: %s", task.get_name(), error, exc_info=error)

    # ------------------------------------------------------------ WorkerApi

    async def apply(self, group_uid: str) -> None:
        """See `WorkerApi.apply`."""
        group = self._groups.setdefault(group_uid, _Group())
        self._cancel_retry(group)
        _forget_starts(self._folder / group_uid)  # it was declared anew, which may have mended it
        await self._converge(group_uid, group)

    async def drop(self, group_uid: str) -> None:
        """See `WorkerApi.drop`."""
        group = self._groups.setdefault(group_uid, _Group())
        self._cancel_retry(group)
        async with group.turn:
            folder = self._folder / group_uid
            if group.runtime is None and not await asyncio.to_thread(_drained, folder):
                # What the journal acknowledged must reach the volumes before the journal goes.
                await self._attach(group, await asyncio.to_thread(self._read, group_uid))
            if group.runtime is not None:
                await group.runtime.drop()
            await asyncio.to_thread(shutil.rmtree, folder, True)
            self._groups.pop(group_uid, None)

    async def status(self, group_uid: str) -> GroupStatus:
        """See `WorkerApi.status`."""
        group = self._groups.get(group_uid)
        if group is not None and group.runtime is not None:
            return group.runtime.status()
        if group is None or group.assignment is None:
            if group is not None and group.failure is not None:
                raise group.failure
            raise NotFound(f"Worker {self._index} does not serve group {group_uid}.")
        return absent_group.status(group.assignment, group.failure, group.since_ns)

    async def checkpoint(self, group_uid: str, request: CheckpointRequest) -> Checkpoint:
        """See `WorkerApi.checkpoint`."""
        return await self._running(group_uid).checkpoint(request)

    async def ship(self, group_uid: str) -> None:
        """See `WorkerApi.ship`."""
        await self._running(group_uid).ship()

    async def reserve(self, request: WorkerRewind) -> None:
        """See `WorkerApi.reserve`."""
        await self._running(request.group_uid).rewinds.reserve(request)

    async def rewind(self, request: WorkerRewind) -> None:
        """See `WorkerApi.rewind`."""
        self._running(request.group_uid).rewinds.begin(request)

    async def rewind_progress(self, group_uid: str, operation_id: str) -> RewindProgress:
        """See `WorkerApi.rewind_progress`."""
        return self._running(group_uid).rewinds.progress(operation_id)

    async def release(self, group_uid: str, operation_id: str) -> None:
        """See `WorkerApi.release`."""
        await self._running(group_uid).rewinds.release(operation_id)

    async def change_hold(self, group_uid: str, change: HoldChange) -> HoldOutcome:
        """See `WorkerApi.change_hold`."""
        return await self._running(group_uid).change_hold(change)

    async def quiesce(self, key: str) -> ShardQuiet:
        """See `WorkerApi.quiesce`."""
        return await self._running(key).quiescing.begin()

    async def unquiesce(self, key: str, token: str) -> None:
        """See `WorkerApi.unquiesce`."""
        self._running(key).quiescing.end(token)

    async def order(self, group_uid: str, order: LegOrder) -> None:
        """See `WorkerApi.order`."""
        await self._running(group_uid).order(order)

    async def hold_writes(self, key: str, seconds_max: float) -> ShardHeld:
        """See `WorkerApi.hold_writes`."""
        return ShardHeld(**self._running(key).holding.take(seconds_max)._asdict())

    async def mark_held(self, request: ShardMark) -> Checkpoint:
        """See `WorkerApi.mark_held`."""
        return self._running(request.key).holding.mark(request.token, request.order(), request.tag, request.quiet)

    async def release_writes(self, key: str, token: str) -> None:
        """See `WorkerApi.release_writes`."""
        self._running(key).holding.release(token)

    async def secure(self, key: str) -> None:
        """See `WorkerApi.secure`."""
        await self._running(key).secure()

    async def mount(self, request: WorkerMount) -> Mount:
        """See `WorkerApi.mount`."""
        return await self._mounts.open(request)

    async def unmount(self, mount_id: str) -> None:
        """See `WorkerApi.unmount`."""
        await self._mounts.close(mount_id)

    async def mount_states(self) -> MountStates:
        """See `WorkerApi.mount_states`."""
        return self._mounts.states()

    def _running(self, uid: str) -> Runtime:
        group = self._groups.get(uid)
        if group is None:
            raise NotFound(f"Worker {self._index} does not serve group {uid}.")
        if group.runtime is None:
            raise group.failure or Unreachable(f"Group {uid} is being started. Try again in a moment.")
        return group.runtime

    # ------------------------------------------------------------ one group

    async def _converge(self, uid: str, group: _Group) -> None:
        """Make true what assignment.json says now; remembers a failure, and raises it."""
        async with group.turn:
            try:
                assignment = await asyncio.to_thread(self._read, uid)
                if assignment.worker != self._index:
                    await self._release(uid, group)
                    raise Conflict(
                        f"Group {assignment.name} belongs to worker {assignment.worker}, not {self._index}. Ask that one."
                    )
                group.assignment = assignment
                if assignment.state == "detached":
                    await self._detach(uid, group, assignment)
                elif group.runtime is not None:
                    await group.runtime.apply(assignment)
                else:
                    await self._attach(group, assignment)
            except Exception as cause:
                error = cause if isinstance(cause, DpacError) else _internal(cause)
                if group.failure is None or group.failure.message != error.message:
                    _log.error("group %s: %s", uid, error.message, exc_info=error is not cause)
                    group.failure, group.since_ns = error, self._clock.now_ns()
                raise error from cause
            group.failure = None

    async def _attach(self, group: _Group, assignment: WorkerAssignment) -> None:
        folder = self._folder / assignment.key
        group.assignment, group.since_ns = assignment, self._clock.now_ns()
        await asyncio.to_thread(_note_start, folder, assignment.name)
        try:
            await asyncio.to_thread((folder / "drained").unlink, True)
            runtime = self._make_runtime(assignment)
            await runtime.start()
        finally:
            _forget_starts(folder)
        group.runtime = runtime

    async def _detach(self, uid: str, group: _Group, assignment: WorkerAssignment) -> None:
        """Drain the group, even if a crash came between: its journal may hold what the volumes do not."""
        folder = self._folder / uid
        if group.runtime is None and not await asyncio.to_thread(_drained, folder):
            await self._attach(group, assignment)
        if group.runtime is not None:
            await group.runtime.stop()
            group.runtime = None
            await asyncio.to_thread(replace_file, folder / "drained", b"")
        self._groups.pop(uid, None)

    async def _release(self, uid: str, group: _Group) -> None:
        if group.runtime is not None:
            await group.runtime.stop()
            group.runtime = None
        self._groups.pop(uid, None)

    # ------------------------------------------------------------ trying again

    async def _converge_again(self, uid: str) -> None:
        """Converge; if that fails, keep trying behind."""
        group = self._groups.setdefault(uid, _Group())
        try:
            await self._converge(uid, group)
        except DpacError:
            group.retry = asyncio.create_task(self._retry(uid, group), name=f"retry {uid}")

    async def _retry(self, uid: str, group: _Group) -> None:
        attempt = 0
        while group.failure is not None and self._groups.get(uid) is group:
            await asyncio.sleep(self._retry_seconds[min(attempt, len(self._retry_seconds) - 1)])
            attempt += 1
            try:
                await self._converge(uid, group)
            except DpacError:
                continue  # remembered, and shown by status

    def _cancel_retry(self, group: _Group) -> None:
        """Control tries itself from here on."""
        if group.retry is not None:
            group.retry.cancel()
            group.retry = None

    def _read(self, uid: str) -> WorkerAssignment:
        path = self._folder / uid / "assignment.json"
        try:
            return WorkerAssignment.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"Worker {self._index} was told nothing about group {uid}.") from None
        except (OSError, ValidationError) as error:
            raise Corruption(f"{path} cannot be read: {error}. Control writes it again when it restarts.") from error


def _interrupted_starts(folder: Path) -> int:
    """How often the worker died while it started the group of this folder."""
    try:
        return int((folder / "starting").read_text() or 1)
    except (OSError, ValueError):
        return 0


def _note_start(folder: Path, name: str) -> None:
    """Note that the group is being started. DpacError if that has ended the worker too often, until some time has passed."""
    starts, marker = _interrupted_starts(folder), folder / "starting"
    if starts >= STARTS_MAX and time.time() - marker.stat().st_mtime < HELD_BACK_SECONDS:
        raise DpacError(
            f"Group {name} is held back: the worker died {starts} times while it started it. The worker's log may say why. It is "
            f"tried again {HELD_BACK_SECONDS / 60:.0f} min after the last time, and at once when it is declared anew."
        )
    with suppress(OSError):  # without room for a note it is started all the same
        marker.write_text(str(starts + 1))


def _forget_starts(folder: Path) -> None:
    with suppress(OSError):
        (folder / "starting").unlink(missing_ok=True)


def _drained(folder: Path) -> bool:
    """Whether no change lies in the journal alone."""
    return (folder / "drained").exists() or not (folder / "spool").exists()


def _internal(cause: Exception) -> DpacError:
    return DpacError(f"An internal error: {type(cause).__name__}: {cause}. The worker's log has more.")
