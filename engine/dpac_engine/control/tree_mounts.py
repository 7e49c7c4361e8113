"""A worker's mounted directories: asks the process that serves them, and starts it again, with all its mounts, when it dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from dpac_api.errors import DpacError, Temporary, Unreachable, from_wire
from dpac_engine.control.tree_orders import Call, Said, TreeOrder, TreeState
from dpac_engine.core.restarts import Restarts

log = logging.getLogger(__name__)

CALL_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
LINE_BYTES_MAX = 2**20
AGAIN_SECONDS = 2.0


class FuseUnavailable(Exception):
    """No directory can be mounted on this host; says why."""


class TreeMounts:
    """The mounted directories of one worker. Everything belongs to its event loop."""

    def __init__(self, command: Sequence[str]) -> None:
        """`command` starts the process."""
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.Lock()
        self._orders: dict[tuple[str, str], TreeOrder] = {}
        self._states: dict[tuple[str, str], TreeState] = {}
        self._whole: dict[tuple[str, str], asyncio.Event] = {}
        self._answers: dict[int, asyncio.Future[Said]] = {}
        self._numbers = itertools.count(1)
        self._restarts = Restarts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def mount(self, order: TreeOrder) -> None:
        """Mount a directory; it is mounted again whenever the process was started again. FuseUnavailable, or what keeps
        the checkpoint from being read."""
        key = order.mount_id, order.member
        self._states[key], self._whole[key] = _mounted(order), asyncio.Event()
        try:
            await self._ask("mount", order.mount_id, order)
        except BaseException:
            del self._states[key], self._whole[key]
            raise
        self._orders[key] = order

    async def unmount(self, mount_id: str) -> None:
        """Take the directories of a mount away. Temporary if that cannot be done."""
        mine = [key for key in self._orders if key[0] == mount_id]
        for key in mine:
            del self._orders[key]
        try:
            if mine:
                await self._ask("unmount", mount_id)
        finally:
            for key in mine:
                self._states.pop(key, None)
                self._whole.pop(key, None)

    def states(self, mount_id: str) -> list[TreeState]:
        """How the directories of a mount are."""
        return [state for key, state in self._states.items() if key[0] == mount_id]

    async def copied(self, mount_id: str) -> None:
        """Returns when every directory of the mount needs its target no more."""
        for event in [event for key, event in self._whole.items() if key[0] == mount_id]:
            await event.wait()

    async def stop(self) -> None:
        """End the process; it takes its mounts away."""
        self._stopping = True
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await process.wait()
            except TimeoutError:
                log.error("the process of the mounted directories did not end and is killed")
                with suppress(ProcessLookupError):
                    process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ the process

    async def _ask(self, verb: str, mount_id: str, order: TreeOrder | None = None) -> None:
        process = await self._running()
        assert process.stdin is not None
        call = Call.model_validate({"number": next(self._numbers), "verb": verb, "mount_id": mount_id, "order": order})
        answer = self._answers[call.number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CALL_SECONDS_MAX):
                process.stdin.write(call.model_dump_json().encode() + b"\n")
                said = await answer
        except TimeoutError:
            raise Temporary(
                f"The {verb} of {mount_id} took more than {CALL_SECONDS_MAX:.0f} s: its target may hang. Try again."
            ) from None
        finally:
            del self._answers[call.number]
        if said.unavailable:
            raise FuseUnavailable(said.unavailable)
        if said.error is not None:
            raise from_wire(500, said.error)

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._started:
            if self._process is None:
                pipe = asyncio.subprocess.PIPE
                began = time.monotonic()
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=pipe, stdout=pipe, limit=LINE_BYTES_MAX
                )
                log.info("process %d serves mounted directories", self._process.pid)
                task = asyncio.create_task(self._watch(self._process, began), name="mounted directories")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return self._process

    async def _watch(self, process: asyncio.subprocess.Process, began: float) -> None:
        """Hear what it says; when it has ended, start it again with all that was mounted."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._hear(Said.model_validate_json(line))
        status = await process.wait()
        self._process = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(
                    Unreachable("The process that serves mounted directories ended. Try again: it is started anew.")
                )
        if self._stopping:
            return
        delay = self._restarts.died(time.monotonic(), began)
        log.error("the process that serves mounted directories ended with status %d; it is started again", status)
        for key, state in self._states.items():
            self._states[key] = state.model_copy(
                update={"problem": "The process that serves it ended. It is mounted again in a moment."}
            )
        await asyncio.sleep(delay)
        await self._mount_again()

    async def _mount_again(self) -> None:
        """Whatever is mounted; what cannot be, as its target is away, is tried again."""
        waiting = list(self._orders.values())
        while waiting:
            for order in list(waiting):
                if (order.mount_id, order.member) not in self._orders:
                    waiting.remove(order)
                    continue
                try:
                    await self._ask("mount", order.mount_id, order)
                    waiting.remove(order)
                except Unreachable:
                    return  # it ended again, and whoever watched it then does the same
                except (DpacError, FuseUnavailable) as error:
                    message = error.message if isinstance(error, DpacError) else str(error)
                    log.error("mount %s/%s is not there: %s", order.mount_id, order.member, message)
                    self._note(_mounted(order, message))
            await asyncio.sleep(AGAIN_SECONDS if waiting else 0)

    def _hear(self, said: Said) -> None:
        if said.state is not None:
            self._note(said.state)
        answer = self._answers.get(said.answers) if said.answers is not None else None
        if answer is not None and not answer.done():
            answer.set_result(said)

    def _note(self, state: TreeState) -> None:
        key = state.mount_id, state.member
        if key in self._states:
            self._states[key] = state
            if state.whole:
                self._whole[key].set()


def _mounted(order: TreeOrder, problem: str = "") -> TreeState:
    return TreeState(
        mount_id=order.mount_id, member=order.member, fraction=0.0 if order.hydrate else None, problem=problem
    )
