"""When a FLUSH, or a write, may be answered: once the journal before it is durable here and on every sync leg that counts."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from dpac_api.models import WaitHistogram
from dpac_engine.control.waits import Waits
from dpac_engine.io.spool import Spool

Done = Callable[[OSError | None], None]


class Pledge(Protocol):
    """A sync leg, as acknowledgements see it."""

    @property
    def gating(self) -> bool:
        """Nothing may be acknowledged that its target does not have."""

    @property
    def in_sync(self) -> bool:
        """Its target has everything that was acknowledged."""

    @property
    def durable_acks(self) -> bool:
        """Every change waits for it, not only those that ask for durability."""

    @property
    def confirmed_lsn(self) -> int:
        """What its target has."""

    def want(self, lsn: int) -> None:
        """Somebody waits for the target to have everything before `lsn`."""


class Gate:
    """Of one group. Everything belongs to its event loop."""

    def __init__(self, spool: Spool, pledges: Mapping[str, Pledge]) -> None:
        self._spool = spool
        self._pledges = pledges
        self._waiting: list[tuple[int, int, Done]] = []
        self._held: list[Done] = []
        self.journal_broken = False
        """What is written now goes to no target until the journal begins anew and all is copied again."""
        self._ticket = itertools.count()
        self._waits = Waits()

    def when_committed(self, lsn: int, done: Done) -> None:
        """Call `done(None)` once everything before `lsn` may be acknowledged, or with the error that broke the journal.

        The targets get theirs while the local disk writes: the wait is for the slower of them.
        """
        began = time.monotonic()

        def settle(error: OSError | None) -> None:
            self._waits.add(time.monotonic() - began)
            done(error)

        def locally(error: OSError | None) -> None:
            if error is None:
                self._when_confirmed(lsn, settle)
            else:
                self.journal_broken = True
                settle(error)

        self._want(lsn)
        self._spool.when_durable(lsn, locally)

    def when_released(self, done: Done) -> None:
        """For what went past a broken journal: call `done(None)` once no leg counts, or all of it was copied again."""
        if self._released:
            done(None)
        else:
            self._held.append(done)

    @property
    def _released(self) -> bool:
        return all(not leg.gating or (leg.in_sync and not self.journal_broken) for leg in self._pledges.values())

    @property
    def durable_acks(self) -> bool:
        """Some leg asks that every change waits."""
        return any(pledge.durable_acks for pledge in self._pledges.values())

    def _when_confirmed(self, lsn: int, done: Done) -> None:
        if self._passes(lsn):
            done(None)
            return
        heapq.heappush(self._waiting, (lsn, next(self._ticket), done))
        self._want(lsn)

    def poke(self) -> None:
        """A leg got on, or counts no more: answer what may be answered now."""
        while self._waiting and self._passes(self._waiting[0][0]):
            heapq.heappop(self._waiting)[2](None)
        if self._held and self._released:
            held, self._held = self._held, []
            for done in held:
                done(None)

    def _want(self, lsn: int) -> None:
        for pledge in self._pledges.values():
            if pledge.gating and pledge.confirmed_lsn < lsn:
                pledge.want(lsn)

    def _passes(self, lsn: int) -> bool:
        return all(not pledge.gating or pledge.confirmed_lsn >= lsn for pledge in self._pledges.values())

    @property
    def waits(self) -> WaitHistogram:
        """How long `when_committed` took."""
        return self._waits.histogram()
