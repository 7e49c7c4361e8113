"""Runs operations: each is a plan of named steps, journalled before and after every one of them.

A run that a restart of control interrupted goes on if it can; else it is cleaned up from its journal alone and marked failed.
One that had not begun begins. Operations have threads of their own; the data path is in other processes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dpac_api.errors import DpacError, Temporary
from dpac_api.models import Operation, OperationProgress, OperationStep, Phase
from dpac_engine.control.catalogue import Catalogue, utc
from dpac_engine.control.catalogue_groups import Host
from dpac_engine.control.catalogue_operations import finish_operation, get_operation, note_step, unfinished_operations
from dpac_engine.control.recovery import Recovery, Signer
from dpac_engine.control.timeline import GroupView, Timeline, view_group
from dpac_engine.control.worker_api import WorkerApi
from dpac_engine.core.ports import Clock

T = TypeVar("T")
_log = logging.getLogger(__name__)
THREADS = 2
PROGRESS_SECONDS = 0.5
"""How often a step's progress is journalled."""
WORKER_SECONDS_MAX = 120.0
RESTARTED = "The backend was restarted while this ran; it was cleaned up. Start it again."


class Stopping(Temporary):
    """The backend stops, while a step is under way."""


class Failed(DpacError):
    """The operation did what it should and found something wrong; its report says what."""


class Progress(Protocol):
    """Takes word of how far a step is."""

    def __call__(self, message: str, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
        """`message` in words; bytes where the step moves bytes, their total where it is known."""


def _untold(message: str, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
    """Nobody listens."""


class Run(Protocol):
    """An operation at work. `clean_up` also runs in a fresh process, knowing the journal only."""

    def plan(self) -> Sequence[str]:
        """The names of its steps, in order."""

    def step(self, name: str) -> str:
        """Take a step; returns what to say of it. Errors end the operation."""

    def clean_up(self) -> None:
        """Remove everything but the outcome; may be called at any time, more than once."""

    def goes_on(self) -> bool:
        """Whether it takes its steps again, and goes on where it was, if a restart of control cuts it short now; knows the
        journal only. Else it is cleaned up and has failed."""

    def interrupted(self) -> str:
        """What to say of it, cleaned up, after a restart of control cut it short; knows the journal only."""

    def result(self) -> dict[str, Any]:
        """The report so far. After every step it is journalled, for the process that takes the run up again."""


@dataclass(frozen=True)
class Stage:
    """What every operation works with."""

    catalogue: Catalogue
    host: Host
    workers: Sequence[WorkerApi]
    recovery: Recovery
    timeline: Timeline
    signer: Signer
    clock: Clock
    greet: Callable[[str], None]
    """Raises Temporary unless an NBD server greets at the URI."""


@dataclass(frozen=True)
class Cast:
    """What one run works with."""

    stage: Stage
    group: GroupView
    operation: Operation
    progress: Progress
    """Says how far the present step is; raises when the backend stops."""
    call: Callable[[Coroutine[Any, Any, Any]], Any]
    """Awaits a worker's answer from the operation's thread."""

    @property
    def worker(self) -> WorkerApi:
        """The group's worker, or that of its first shard."""
        return self.worker_at(self.group.worker)

    def worker_at(self, index: int) -> WorkerApi:
        """A worker by its number. Temporary if there is none."""
        if index >= len(self.stage.workers):
            raise Temporary(f"The group's worker {index} is not running here. Start the backend with more workers.")
        return self.stage.workers[index]


RunMaker = Callable[[Cast], Run]


class Operations:
    """The executor."""

    def __init__(self, stage: Stage, kinds: dict[str, RunMaker]) -> None:
        self._stage = stage
        self._kinds = kinds
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="operation")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Go on with runs that a restart interrupted, or clean up after them; begin those that had not begun."""
        self._loop = asyncio.get_running_loop()
        for operation in await asyncio.to_thread(self._unfinished):
            if operation.phase == Phase.PENDING:
                self.submit(operation.id)
            else:
                self._pool.submit(self._take_up, operation)

    async def stop(self) -> None:
        """Ask the runs to stop at their next progress, and wait until they have cleaned up, or can go on later."""
        self._stopping.set()
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    def submit(self, operation_id: str) -> None:
        """Begin a journalled operation as soon as a thread is free."""
        self._pool.submit(self._perform, operation_id)

    def plan(self, kind: str, group: GroupView, request: Operation) -> Sequence[str]:
        """The steps that an operation would take."""
        return self._kinds[kind](self._cast(group, request)).plan()

    # -------------------------------------------------------------- in the thread

    def _perform(self, operation_id: str) -> None:
        try:
            with self._stage.catalogue.read() as session:
                operation = get_operation(session, operation_id)
                group = view_group(session, operation.group)
        except DpacError as cause:  # the group went between the request and now
            self._finish(operation_id, Phase.FAILED, {}, cause.message)
            return
        journal = _Journal(self._stage, operation, self._stopping)
        run = self._kinds[operation.kind](self._cast(group, operation, journal.progress))
        try:
            error = _perform_steps(run, operation, journal)
        except Stopping:
            _log.info("operation %s goes on when the backend is started again", operation_id)
            return
        self._finish(operation_id, Phase.FAILED if error else Phase.SUCCEEDED, run.result(), error)

    def _take_up(self, operation: Operation) -> None:
        if operation.kind not in self._kinds:  # a checkpoint: the worker takes it, whether control lives or not
            message = "The backend was restarted while this ran. `dpac checkpoints` shows whether it was taken."
        else:
            try:
                with self._stage.catalogue.read() as session:
                    group = view_group(session, operation.group)
                run = self._kinds[operation.kind](self._cast(group, operation))
                if run.goes_on():
                    _log.info("operation %s goes on", operation.id)
                    self._perform(operation.id)
                    return
                message = run.interrupted()
                run.clean_up()
            except Exception as cause:
                _log.exception("cleaning up %s failed", operation.id)
                message = f"The backend was restarted while this ran, and cleaning up failed: {cause}. Start it again."
        self._finish(operation.id, Phase.FAILED, operation.result, message)

    def _cast(self, group: GroupView, operation: Operation, progress: Progress = _untold) -> Cast:
        return Cast(self._stage, group, operation, progress, self._call)

    def _call(self, question: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None, "start() comes first"
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(WORKER_SECONDS_MAX)

    def _finish(self, operation_id: str, phase: Phase, result: dict[str, Any], error: str | None) -> None:
        with self._stage.catalogue.write() as session:
            finish_operation(session, operation_id, phase, result, error, utc(self._stage.clock.now_ns()))
        _log.info("operation %s: %s%s", operation_id, phase, f": {error}" if error else "")

    def _unfinished(self) -> list[Operation]:
        with self._stage.catalogue.read() as session:
            return unfinished_operations(session)


def _perform_steps(run: Run, operation: Operation, journal: _Journal) -> str | None:
    """Take every step of the plan, then clean up; the error's message if one failed.

    Stopping, with nothing cleaned up, if the backend stops and the run goes on at its next start.
    """
    error: str | None = None
    for index, planned in enumerate(operation.steps):
        journal.begin(index, planned.name)
        try:
            journal.end(run.step(planned.name), failed=False, result=run.result())
        except DpacError as cause:
            if isinstance(cause, Stopping) and run.goes_on():
                raise
            error = cause.message
        except Exception as cause:
            _log.exception("operation %s failed at %r", operation.id, planned.name)
            error = f"An internal error: {type(cause).__name__}: {cause}. The backend's log has more."
        if error is not None:
            journal.end(error, failed=True)
            break
    try:
        run.clean_up()
    except Exception as cause:
        _log.exception("cleaning up after operation %s failed", operation.id)
        error = error or f"It was done, but cleaning up failed: {cause}."
    return error


def _progress(done_bytes: int, total_bytes: int | None, seconds: float) -> OperationProgress:
    rate = done_bytes / max(seconds, 1e-3)
    total = None if total_bytes is None else max(total_bytes, done_bytes)
    left = None if total is None or not rate else (total - done_bytes) / rate
    return OperationProgress(
        done_bytes=done_bytes,
        total_bytes=total,
        bytes_per_second=round(rate, 1),
        remaining_seconds=None if left is None else round(left, 1),
    )


class _Journal:
    """Writes one operation's steps to the catalogue."""

    def __init__(self, stage: Stage, operation: Operation, stopping: threading.Event) -> None:
        self._stage = stage
        self._operation = operation
        self._stopping = stopping
        self._index = 0
        self._step = OperationStep(name="", state="pending")
        self._told = 0.0
        self._began = 0.0

    def begin(self, index: int, name: str) -> None:
        """A step begins."""
        self._index = index
        self._began = time.monotonic()
        self._write(OperationStep(name=name, state="running", started=utc(self._stage.clock.now_ns())))

    def progress(self, message: str, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
        """A step goes on."""
        if self._stopping.is_set():
            raise Stopping("The backend is stopping. Start the operation again once it runs.")
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            found = None if done_bytes is None else _progress(done_bytes, total_bytes, time.monotonic() - self._began)
            self._write(self._step.model_copy(update={"message": message, "progress": found}))

    def end(self, message: str, *, failed: bool, result: dict[str, Any] | None = None) -> None:
        """A step ends."""
        update = {
            "state": "failed" if failed else "done",
            "message": message,
            "progress": None,
            "finished": utc(self._stage.clock.now_ns()),
        }
        self._write(self._step.model_copy(update=update), result)

    def _write(self, step: OperationStep, result: dict[str, Any] | None = None) -> None:
        self._step = step
        self._told = time.monotonic()
        with self._stage.catalogue.write() as session:
            note_step(session, self._operation.id, self._index, step, result)
