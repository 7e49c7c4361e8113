"""The checkpoints of a group of several shards: hold all, mark all, release. Runs where its first shard is served.

It keeps nothing: whoever runs it next learns from the shards' answers where they are. `core/shared_mark.py` decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dpac_api.errors import DpacError, Temporary
from dpac_api.models import Checkpoint, CheckpointRequest
from dpac_engine.control import marking
from dpac_engine.control.assignment import shard_key
from dpac_engine.control.quiescing import check_any
from dpac_engine.control.worker_api import ShardHeld, ShardMark, ShardQuiet
from dpac_engine.core.shared_mark import Held, Hold, Message, PutMark, Release, SharedMark

if TYPE_CHECKING:
    from dpac_engine.control.group import Group

log = logging.getLogger(__name__)

HOLD_SECONDS_MAX = 0.25
"""No writer is held for longer, whatever becomes of the others; twice as long where a checkpoint is tried again."""
AGAIN_SECONDS = 0.1
"""How long writers go on before a checkpoint that was skipped is tried once more."""
SKIPS_TOLD = 3
ASKED_TRIES = 5
"""How often a checkpoint that somebody asked for is tried."""


class Asked(NamedTuple):
    """What somebody asked of a checkpoint."""

    tag: str = ""
    quiet: Mapping[int, str] = {}
    """Shard -> the token of its members' rest; empty: it is not application-consistent."""
    again: bool = False
    """It was tried, and did not come about."""

    @property
    def hold_seconds_max(self) -> float:
        """How long it may take: on a host that is busy, messages do."""
        return HOLD_SECONDS_MAX * (2 if self.again else 1)


class ShardWorker(Protocol):
    """What is asked of the worker of another shard (part of `WorkerApi`)."""

    async def quiesce(self, key: str) -> ShardQuiet:
        """See `WorkerApi.quiesce`."""

    async def unquiesce(self, key: str, token: str) -> None:
        """See `WorkerApi.unquiesce`."""

    async def hold_writes(self, key: str, seconds_max: float) -> ShardHeld:
        """See `WorkerApi.hold_writes`."""

    async def mark_held(self, request: ShardMark) -> Checkpoint:
        """See `WorkerApi.mark_held`."""

    async def release_writes(self, key: str, token: str) -> None:
        """See `WorkerApi.release_writes`."""

    async def secure(self, key: str) -> None:
        """See `WorkerApi.secure`."""


class Coordinator:
    """Of one group; belongs to the event loop of its first shard."""

    def __init__(self, group: Group, peers: Callable[[int], ShardWorker]) -> None:
        """`peers` gives the worker of an index."""
        self._group = group
        assignment = group.assignment
        self._workers = {shard: peers(assignment.worker + shard) for shard in range(1, assignment.shards)}
        self._turn = asyncio.Lock()
        self._releasing: set[asyncio.Task[Held | Checkpoint | None]] = set()
        self.skipped = 0
        """Checkpoints that were not taken since this process began."""
        self.reason = ""
        """Why the last one was not; empty: it was."""
        self._missed = 0

    @property
    def skipping(self) -> bool:
        """Several were skipped in a row: one alone is no news."""
        return self._missed >= SKIPS_TOLD

    async def run(self) -> None:
        """Take a checkpoint every second, for ever."""
        due = asyncio.get_running_loop().time()
        while True:
            due = await marking.next_due(due)
            try:
                await self.tick()
            except Exception:
                log.exception("group %s could not be marked", self._group.assignment.name)

    async def tick(self) -> None:
        """Take this second's. One that is skipped is tried once more, and may take longer, so that the next is not two
        seconds after the last; once several were skipped in a row it is not, for writers are held each time."""
        taken = await self._attempt(Asked())
        if taken is None and not self.skipping:
            await asyncio.sleep(AGAIN_SECONDS)
            taken = await self._attempt(Asked(again=True))
        if taken is None:
            self.skipped += 1
        self._missed = 0 if taken is not None else self._missed + 1

    async def checkpoint(self, request: CheckpointRequest) -> Checkpoint:
        """Take one that somebody asked for; returns once every shard has it durably. Temporary if it cannot be taken."""
        tag = request.tag or ""
        if request.app:
            async with self._at_rest() as quiet:
                taken = await self._take(Asked(tag, quiet))
        else:
            taken = await self._take(Asked(tag))
        await asyncio.gather(*(self._secure(shard) for shard in self._shards))
        return taken

    async def _take(self, asked: Asked) -> Checkpoint:
        for left in reversed(range(ASKED_TRIES)):
            taken = await self._attempt(asked)
            if taken is not None:
                return taken
            self.skipped, asked = self.skipped + 1, asked._replace(again=True)
            if left:
                await asyncio.sleep(marking.MARK_SECONDS / 2)
        raise Temporary(f"No checkpoint could be taken: {self.reason}. Try again; `dpac status` tells what is wrong.")

    @property
    def _shards(self) -> range:
        return range(self._group.assignment.shards)

    @asynccontextmanager
    async def _at_rest(self) -> AsyncIterator[dict[int, str]]:
        """The members of all shards that have a blueprint are quiesced, all at once. Invalid if there is none."""
        async with self._group.quiescing.turn:
            answers = await asyncio.gather(*(self._quiesce(shard) for shard in self._shards), return_exceptions=True)
            quiet = {at: answer.token for at, answer in enumerate(answers) if isinstance(answer, ShardQuiet)}
            try:
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                names = [name for answer in answers if isinstance(answer, ShardQuiet) for name in answer.members]
                check_any(self._group.assignment.name, names)
                yield quiet
            finally:
                ends = (self._unquiesce(shard, token) for shard, token in quiet.items())
                await asyncio.gather(*ends, return_exceptions=True)  # who did not hear it goes on by its bound

    async def _quiesce(self, shard: int) -> ShardQuiet:
        if shard == 0:
            return await self._group.quiescing.begin()
        return await self._workers[shard].quiesce(self._key(shard))

    async def _unquiesce(self, shard: int, token: str) -> None:
        if shard == 0:
            self._group.quiescing.end(token)
        else:
            await self._workers[shard].unquiesce(self._key(shard), token)

    async def _secure(self, shard: int) -> None:
        if shard == 0:
            await self._group.secure()
        else:
            await self._workers[shard].secure(self._key(shard))

    # ------------------------------------------------------------------ one attempt

    async def _attempt(self, asked: Asked) -> Checkpoint | None:
        async with self._turn:
            attempt, marks = SharedMark(self._group.assignment.shards), dict[int, Checkpoint]()
            await self._drive(attempt, marks, asked)
            self._note(attempt)
            return None if attempt.reason else _joined(marks)

    async def _drive(self, attempt: SharedMark, marks: dict[int, Checkpoint], asked: Asked) -> None:
        """Do what the attempt says and tell it what came of it, until it is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + asked.hold_seconds_max
        calls: dict[asyncio.Task[Held | Checkpoint | None], int] = {}
        messages = attempt.begin()
        while not attempt.over:
            for message in messages:
                calls[asyncio.create_task(self._ask(message, asked))] = message.shard
            done, _ = await asyncio.wait(
                calls, timeout=max(deadline - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED
            )
            messages = [] if done else attempt.timed_out()
            for task in done:
                messages += _told(attempt, calls.pop(task), task, marks)
        for task, shard in calls.items():
            task.add_done_callback(partial(self._late, attempt, shard))
        self._let_go(messages)

    async def _ask(self, message: Message, asked: Asked) -> Held | Checkpoint | None:
        shard, holding = message.shard, self._group.holding
        key, worker = self._key(shard), self._workers.get(shard)
        match message:
            case Hold():
                if worker is None:
                    return holding.take(asked.hold_seconds_max)
                return (await worker.hold_writes(key, asked.hold_seconds_max)).as_held()
            case PutMark(_, token, order):
                quiet = asked.quiet.get(shard, "")
                if worker is None:
                    return holding.mark(token, order, asked.tag, quiet)
                return await worker.mark_held(ShardMark.of(key, token, order, asked.tag, quiet))
            case Release(_, token):
                if worker is None:
                    holding.release(token)
                else:
                    await worker.release_writes(key, token)
        return None

    def _late(self, attempt: SharedMark, shard: int, task: asyncio.Task[Held | Checkpoint | None]) -> None:
        """An answer after the end: whoever holds for nothing is told."""
        self._let_go(_told(attempt, shard, task, {}))

    def _let_go(self, messages: list[Message]) -> None:
        for message in messages:
            task = asyncio.create_task(self._ask(message, Asked()))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its bound releases it then

    def _key(self, shard: int) -> str:
        return shard_key(self._group.assignment.group_uid, shard)

    def _note(self, attempt: SharedMark) -> None:
        if attempt.reason and attempt.reason != self.reason:
            log.warning("a checkpoint of group %s is skipped: %s", self._group.assignment.name, attempt.reason)
        self.reason = attempt.reason


def _told(
    attempt: SharedMark, shard: int, task: asyncio.Task[Held | Checkpoint | None], marks: dict[int, Checkpoint]
) -> list[Message]:
    """Tell the attempt what a shard answered."""
    if task.cancelled():
        return []
    error = task.exception()
    if isinstance(error, DpacError):
        return attempt.refused(shard, error.message)
    if error is not None:
        raise error
    answer = task.result()
    if isinstance(answer, Held):
        return attempt.held(shard, answer)
    if isinstance(answer, Checkpoint):
        marks[shard] = answer
        return attempt.marked(shard)
    return []


def _joined(marks: dict[int, Checkpoint]) -> Checkpoint:
    """One checkpoint of the marks of all shards."""
    lsn = {uid: at for mark in marks.values() for uid, at in mark.lsn.items()}
    cuts = {name: cut for mark in marks.values() for name, cut in mark.cuts.items()}
    return marks[0].model_copy(update={"lsn": lsn, "cuts": cuts})
