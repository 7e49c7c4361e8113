"""Keeps what a repository needs locked: learns when each lock ends, and extends it before that (core/immutability.py)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dpac_api.errors import NotFound
from dpac_engine.core import immutability
from dpac_engine.core.manifest import COMPLETE_EVERY, manifest_key
from dpac_engine.core.ports import ObjectLocks
from dpac_engine.io.repository import RepositoryWriter, spec_key

AT_ONCE = 8
"""Requests under way together."""


class LockUpkeep:
    """The locks of one leg's repository. What it knows of them it has read: a restart reads it again."""

    def __init__(self, immutable_ns: int) -> None:
        self._immutable_ns = immutable_ns
        self._ends: dict[str, int] = {}
        self._asked_ns: int | None = None
        self._founded: tuple[tuple[str, int], list[str]] | None = None
        self.earliest_ns: int | None = None
        """When the first lock ends of all that the newest state needs, as last seen; None: not known yet."""

    def step(self, writer: RepositoryWriter, locks: ObjectLocks, now_ns: int) -> bool:
        """Send some of the requests that are due; False if none is left for now."""
        live = self._live(writer)
        if not live:
            return False
        self._ends = {name: end for name, end in self._ends.items() if name in live}
        unknown = [name for name in live if name not in self._ends][: immutability.BATCH_MAX]
        if unknown:
            self._ends |= _side_by_side(unknown, lambda name: _end_ns(locks, name))
            return True
        since_ns = now_ns - self._asked_ns if self._asked_ns is not None else 0
        due = immutability.due(self._ends, self._immutable_ns, now_ns, max(since_ns, 0))
        until_ns = now_ns + immutability.locked_for_ns(self._immutable_ns)

        def extend(name: str) -> int:
            try:
                locks.extend(name, until_ns)
            except NotFound:
                return 0
            return until_ns

        self._ends |= _side_by_side(due, extend)
        self._asked_ns, self.earliest_ns = now_ns, immutability.earliest(self._ends, live)
        return len(due) == immutability.BATCH_MAX

    def _live(self, writer: RepositoryWriter) -> set[str]:
        """Every object without which the newest state could not be recovered."""
        state = writer.state
        if state is None:
            return set()
        key = (writer.uid, state.last.spec)
        if self._founded is None or self._founded[0] != key:
            names = ["repository.json", *writer.store.list("keys/"), *writer.store.list("escrow/")]
            self._founded = key, [*names, spec_key(state.last.spec)]
        seq = state.last.seq
        manifests = (manifest_key(number) for number in range(max(1, seq - seq % COMPLETE_EVERY), seq + 1))
        return {*state.segments, *manifests, *self._founded[1]}


def _end_ns(locks: ObjectLocks, name: str) -> int:
    try:
        return locks.end_ns(name)
    except NotFound:
        return 0  # what is missing is not locked; that it is missing is for verification to say


def _side_by_side(names: list[str], act: Callable[[str], int]) -> dict[str, int]:
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="locks") as pool:
        return dict(zip(names, pool.map(act, names), strict=True))
