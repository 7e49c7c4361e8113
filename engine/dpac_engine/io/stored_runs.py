"""Reads what is stored of an image from end to end, a bounded number of runs at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dpac_engine.core.image import StoredRun

READERS = 4
"""Runs that are fetched, decrypted and decompressed at the same time; that works without the interpreter."""

T = TypeVar("T")


def each_run(runs: Iterable[StoredRun], work: Callable[[StoredRun], T]) -> Generator[tuple[StoredRun, T], None, None]:
    """What `work` made of each of the runs, in their order.

    It is called in threads, for several runs at once. The first error of it ends this, once those under way have ended.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="image") as readers:
        ahead: deque[tuple[StoredRun, Future[T]]] = deque()
        try:
            for run in runs:
                ahead.append((run, readers.submit(work, run)))
                if len(ahead) > READERS:
                    oldest, working = ahead.popleft()
                    yield oldest, working.result()
            while ahead:
                oldest, working = ahead.popleft()
                yield oldest, working.result()
        finally:
            for _, working in ahead:
                working.cancel()


def read_whole(run: StoredRun) -> int:
    """Read a run, and so authenticate it; how many bytes it has."""
    return sum(len(data) for _, data in run.content())
