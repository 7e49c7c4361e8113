"""The in-memory store: the reference for the contract, and the target of the simulations."""

from __future__ import annotations

from collections.abc import Iterator

from dpac_api.errors import Conflict, NotFound


class MemoryStore:
    """A dictionary that passes the store contract."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        self.objects[key] = bytes(data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        if key in self.objects:
            raise Conflict(f"Object {key} exists already.")
        self.objects[key] = bytes(data)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        if key not in self.objects:
            raise NotFound(f"Object {key} is not in the store.")
        return self.objects[key][offset : None if length is None else offset + length]

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        return len(self.get(key))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        return iter(sorted(key for key in self.objects if key.startswith(prefix) and key > start_after))

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        self.objects.pop(key, None)
