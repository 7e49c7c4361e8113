"""Threads in which exports may block. Each export has its own few, so that one that hangs delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from dpac_engine.io.nbd.export import Export

THREADS_MAX = 4
"""Threads of one export."""

Answer = TypeVar("Answer")


class Readers:
    """The threads of one export; they start when first needed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.clients = 0
        self._loop = loop
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="nbd-read")

    def run(self, job: Callable[[], Answer], done: Callable[[Answer], None]) -> None:
        """Run `job`, which must not raise, in a thread, and give `done` its answer on the event loop."""
        self._threads.submit(self._work, job, done)

    def _work(self, job: Callable[[], Answer], done: Callable[[Answer], None]) -> None:
        answer = job()
        with suppress(RuntimeError):  # the event loop ended while this thread was blocked: nobody waits
            self._loop.call_soon_threadsafe(done, answer)

    def end(self) -> None:
        """Let the threads go once their present jobs are over."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class ReaderPools:
    """The readers of every export that has clients."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._by_export: dict[int, Readers] = {}

    def lease(self, export: Export) -> Readers:
        """The export's readers, for one more client."""
        readers = self._by_export.get(id(export))
        if readers is None:
            readers = self._by_export[id(export)] = Readers(self._loop)
        readers.clients += 1
        return readers

    def release(self, export: Export) -> None:
        """One client less."""
        readers = self._by_export[id(export)]
        readers.clients -= 1
        if not readers.clients:
            del self._by_export[id(export)]
            readers.end()
