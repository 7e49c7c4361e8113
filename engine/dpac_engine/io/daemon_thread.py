"""A thread for calls that may never return: a network mount that hangs blocks it, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class DaemonThread:
    """Runs blocking calls one after the other. It keeps neither the event loop nor the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._under_way = 0

    @property
    def busy(self) -> bool:
        """A call has not returned yet, whether or not somebody waits for it still."""
        return self._under_way > 0

    async def run(self, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """What the call returns. Cancelling lets go of it; it goes on."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: BaseException | None) -> None:
            self._under_way -= 1
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]

        def call() -> None:
            result, failure = None, None
            try:
                result = function(*arguments, **named)
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result, failure)

        self._under_way += 1
        self._calls.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._calls,), name=self._name, daemon=True)
            self._thread.start()
        return await outcome

    def post(self, function: Callable[[], object]) -> None:
        """Call it after what was asked for before; nobody is told what comes of it."""

        def call() -> None:
            with contextlib.suppress(Exception):
                function()

        if self._thread is not None:
            self._calls.put(call)

    def stop(self) -> None:
        """End it once what was asked for has returned; does not wait. The next `run` begins another."""
        self._calls.put(None)
        self._calls, self._thread = queue.SimpleQueue(), None


def _work(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
