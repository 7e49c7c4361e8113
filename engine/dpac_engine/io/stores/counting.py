"""A store that counts what it is asked for: requests by what they are billed as, failures, and bytes both ways."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from dpac_api.errors import Conflict, DpacError, NotFound
from dpac_api.models import TargetTraffic
from dpac_engine.core.ports import Clock, Store

PAGE_KEYS = 1000
"""Keys that one request lists."""


class Meter:
    """Counts since it was made; safe for threads."""

    def __init__(self, clock: Clock) -> None:
        self._since = datetime.fromtimestamp(clock.now_ns() / 1e9, UTC)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Raise counts, by the names of TargetTraffic."""
        with self._lock:
            self._counts.update(counts)

    def read(self) -> TargetTraffic:
        """The counts now."""
        with self._lock:
            return TargetTraffic(since=self._since, **self._counts)


class Meters:
    """The meters of a process: one for each key, which outlives the stores that are opened and closed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._meters: dict[tuple[str, ...], Meter] = {}
        self._lock = threading.Lock()

    def of(self, *key: str) -> Meter:
        """The meter for what the key names."""
        with self._lock:
            return self._meters.setdefault(key, Meter(self._clock))

    def read_all(self, first: str) -> list[TargetTraffic]:
        """The counts of every meter whose key begins with it."""
        with self._lock:
            found = [meter for key, meter in self._meters.items() if key[0] == first]
        return [meter.read() for meter in found]


class CountingStore:
    """`store`, whose calls are counted, tries that fail included: put it inside what retries."""

    def __init__(self, store: Store, meter: Meter, requests_for: Callable[[int], int] = lambda _size_bytes: 1) -> None:
        """`requests_for` tells how many requests moving an object of that size takes."""
        self._store = store
        self._meter = meter
        self._requests_for = requests_for

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        with self._counted(write_requests=self._requests_for(len(data)), sent_bytes=len(data)):
            self._store.put(key, data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        with self._counted(write_requests=self._requests_for(len(data)), sent_bytes=len(data)):
            self._store.create(key, data)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        with self._counted(read_requests=1):
            data = self._store.get(key, offset, length)
        self._meter.add(read_requests=self._requests_for(len(data)) - 1, received_bytes=len(data))
        return data

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        with self._counted(read_requests=1):
            return self._store.size(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        with self._counted(list_requests=1):
            for at, key in enumerate(self._store.list(prefix, start_after)):
                if at and at % PAGE_KEYS == 0:
                    self._meter.add(list_requests=1)
                yield key

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        with self._counted(delete_requests=1):
            self._store.delete(key)

    @contextlib.contextmanager
    def _counted(self, **counts: int) -> Iterator[None]:
        self._meter.add(**counts)
        try:
            yield
        except (NotFound, Conflict):
            raise  # an answer like any other
        except DpacError:
            self._meter.add(failed_requests=1)
            raise
