"""A target as a network shows it: slow, away, done without an answer, asked without being done, done late or twice; and what lies there
rots, goes, or is written to another's place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from dpac_api.errors import Conflict, NotFound, Temporary
from dpac_engine.io.stores.memory import MemoryStore
from tests.simulation.world import World

T = TypeVar("T")
LATENCY_NS = 80_000_000


class Target:
    """A `core.ports.Store` with faults, in front of objects that outlive every process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.content = MemoryStore()
        self.away = False
        self.slow = 1
        """How many times as long as usual a request takes."""
        self.loss = 0.0
        """The share of requests, and of answers, that never arrive. Of what changes something, some comes late, some twice."""
        self.throttle = 0.0
        """The share of requests that are answered at once: ask again, slower."""
        self._late: list[tuple[int, Callable[[], object]]] = []
        """(when, what is done then): requests still on their way, whoever sent them is long gone."""
        self.rotten: set[str] = set()
        """Objects that are not as they were stored."""

    def request(self, ask: Callable[[], T], *, changes: bool = False) -> T:
        """Ask the target; `changes`: it may be done late, or twice. Temporary where no answer comes."""
        world = self._world
        world.pause(LATENCY_NS * self.slow)
        self.deliver(world.now_ns)
        if self.throttle and world.chance.random() < self.throttle:
            raise Temporary("The target answers SlowDown: it is asked too often. Wait.")
        if self.away or self._chances():
            if changes and self._is_strayed():
                self._stray(ask)
            raise Temporary("The target does not answer. Wait.")
        answer = ask()
        if changes and self._chances() and self._is_strayed():
            self._stray(ask)  # and done now
        world.pause(LATENCY_NS * self.slow)
        if self._chances():
            raise Temporary("The target's answer was lost. Wait.")
        return answer

    def _chances(self) -> bool:
        return bool(self.loss) and self._world.chance.random() < self.loss

    def _is_strayed(self) -> bool:
        return self._world.chance.random() < 0.5

    def _stray(self, ask: Callable[[], object]) -> None:
        delay_ns = int(self._world.chance.choice([0.01, 0.5, 3.0, 30.0]) * 1e9)
        self._late.append((self._world.now_ns + delay_ns, ask))

    def deliver(self, now_ns: int | None = None) -> None:
        """Do what was on its way, all of it or what arrives by then; nobody hears what came of it."""
        due = sorted((each for each in self._late if now_ns is None or each[0] <= now_ns), key=lambda each: each[0])
        self._late = [each for each in self._late if each not in due]
        for at_ns, ask in due:
            self._world.note(f"a request arrives that was due at {at_ns}")
            with contextlib.suppress(Conflict, NotFound):
                ask()

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        content = bytes(data)
        self.request(lambda: self._put(key, content), changes=True)

    def _put(self, key: str, data: bytes | memoryview) -> None:
        self.content.put(key, data)
        self.rotten.discard(key)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        content = bytes(data)
        self.request(lambda: self.content.create(key, content), changes=True)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        return self.request(lambda: self.content.get(key, offset, length))

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        return self.request(lambda: self.content.size(key))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        return iter(self.request(lambda: [*self.content.list(prefix, start_after)]))

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        self.request(lambda: self.content.delete(key), changes=True)

    def rot(self) -> None:
        """An object is not what it was: a bit flips, it is cut short, gone, or another one lies in its place."""
        chance, objects = self._world.chance, self.content.objects
        names = sorted(key for key in objects if key.startswith("s/")) if chance.random() < 0.7 else sorted(objects)
        if not names:
            return
        name = chance.choice(names)
        data, how = bytearray(objects[name]), chance.choice(["bit", "bit", "cut", "gone", "other"])
        if how == "bit" and data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif how == "cut":
            del data[chance.randrange(len(data) + 1) :]
        elif how == "other":
            data = bytearray(objects[chance.choice(names)])
        if bytes(data) != objects[name]:
            objects[name] = bytes(data)
        if how == "gone":
            del objects[name]
        self.rotten.add(name)
        self._world.note(f"rot in {name}: {how}")
