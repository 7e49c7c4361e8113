"""A store inside a store: every key below a prefix, so that one target holds many groups."""

from __future__ import annotations

from collections.abc import Iterator

from dpac_engine.core.ports import Store


class PrefixedStore:
    """`store` with `prefix` (which ends in `/`) before every key."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        self._store.put(self._prefix + key, data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        self._store.create(self._prefix + key, data)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        return self._store.get(self._prefix + key, offset, length)

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        return self._store.size(self._prefix + key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        after = self._prefix + start_after if start_after else ""
        for key in self._store.list(self._prefix + prefix, after):
            yield key[len(self._prefix) :]

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        self._store.delete(self._prefix + key)
