"""A store that tries again: a throttled or broken request is repeated before anybody hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from dpac_api.errors import Temporary
from dpac_engine.core.ports import Store, TargetMissing

FIRST_SECONDS = 0.1
PAUSE_SECONDS_MAX = 5.0

Answer = TypeVar("Answer")


class RetryingStore:
    """`store`, each of whose calls is tried again while it fails with `Temporary`, with growing random pauses.

    No pause begins that would end later than `total_seconds` after the call began; then the last error is the call's.
    `TargetMissing` waits for a person and is not tried again. A create that is tried again after its answer was lost
    can be a Conflict with itself: that is passed on, and settled by whoever knows what it wrote.
    """

    def __init__(
        self,
        store: Store,
        total_seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._total_seconds = total_seconds
        self._monotonic = monotonic
        self._sleep = sleep

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        self._again(lambda: self._store.put(key, data))

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        self._again(lambda: self._store.create(key, data))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        return self._again(lambda: self._store.get(key, offset, length))

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        return self._again(lambda: self._store.size(key))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`: a listing that breaks goes on after the last key it gave."""
        keys, after = iter(self._store.list(prefix, start_after)), start_after

        def step() -> str | None:
            nonlocal keys
            try:
                return next(keys, None)
            except Temporary:
                keys = iter(self._store.list(prefix, after))  # a generator that raised is spent
                raise

        while (key := self._again(step)) is not None:
            after = key
            yield key

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        self._again(lambda: self._store.delete(key))

    def _again(self, act: Callable[[], Answer]) -> Answer:
        deadline = self._monotonic() + self._total_seconds

        def too_late(state: RetryCallState) -> bool:
            return self._monotonic() + state.upcoming_sleep > deadline

        tries = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, Temporary) and not isinstance(error, TargetMissing)
            ),
            wait=wait_random_exponential(multiplier=FIRST_SECONDS, max=PAUSE_SECONDS_MAX),
            stop=too_late,
            sleep=self._sleep,
            reraise=True,
        )
        return tries(act)
