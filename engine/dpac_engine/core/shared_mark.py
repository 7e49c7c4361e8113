"""One checkpoint over several shards, as state machines: hold all, mark all, release; or none of it counts.

A write that was acknowledged before another one was sent must be in every checkpoint that has the other. Within a shard its
order gives that. Over shards there must be a moment at which all of them hold, and each must get its mark before it lets
the next write in: then whatever is behind the mark of one shard was sent after that moment, and whatever is before the
mark of any was sent before it. So a shard is released by its mark. It is released without one when its bound has passed,
whatever became of who asked for it: then its token is void, and a mark that comes late is refused. A checkpoint counts where
every shard has its mark; who coordinates keeps nothing, and may die at any moment.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Held(NamedTuple):
    """A shard holds: its answer."""

    token: str
    """Of this hold and no other; a mark must bear it."""
    sequence: int
    """Of the newest mark in the shard."""
    void_from: int
    """Where the void range begins that this mark told of; its own sequence if it told of none."""
    stamp_ns: int
    """The shard's hybrid time."""
    news: bool = True
    """It has changed since its newest mark, or a target of it waits for one."""


class Order(NamedTuple):
    """What every shard's mark of one checkpoint says alike."""

    sequence: int
    stamp_ns: int
    void: tuple[int, int]
    """Half-open range of the sequences before it that not every shard has: they are no checkpoints."""
    news: bool = True
    """Some shard has news: every shard ships this mark, else what is new is in no checkpoint at the targets."""


class Hold(NamedTuple):
    """Ask a shard to hold."""

    shard: int


class PutMark(NamedTuple):
    """Ask a shard that holds for its mark, which releases it."""

    shard: int
    token: str
    order: Order


class Release(NamedTuple):
    """Tell a shard that no mark comes."""

    shard: int
    token: str


Message = Hold | PutMark | Release


class Phase(StrEnum):
    """How far it is."""

    HOLDING = "Holding"
    MARKING = "Marking"
    TAKEN = "Taken"
    SKIPPED = "Skipped"


class SharedMark:
    """One attempt at a checkpoint. Whoever runs it sends the messages that it returns, and tells it what comes back."""

    def __init__(self, shards: int) -> None:
        self.phase = Phase.HOLDING
        self.reason = ""
        """Why it was skipped."""
        self.order: Order | None = None
        self._held: dict[int, Held] = {}
        self._waiting = set(range(shards))
        """Shards whose answer in this phase is not here."""

    @property
    def over(self) -> bool:
        """Nothing more is to be waited for."""
        return self.phase in (Phase.TAKEN, Phase.SKIPPED)

    def begin(self) -> list[Message]:
        """The first messages. Shard 0 lies where this runs, and holds last: nothing has to travel before it may be marked."""
        self._waiting.discard(0)
        return [Hold(shard) for shard in sorted(self._waiting)]

    def held(self, shard: int, answer: Held) -> list[Message]:
        """A shard holds."""
        if self.over:
            return [Release(shard, answer.token)]
        if shard in self._held:
            return []  # it held twice, and lets go of this hold by itself: a mark bears the token of the first
        self._held[shard] = answer
        self._waiting.discard(shard)
        if self._waiting:
            return []
        if 0 not in self._held:
            self._waiting = {0}
            return [Hold(0)]
        self.phase, self._waiting = Phase.MARKING, set(self._held)
        self.order = order = _order(list(self._held.values()))
        return [PutMark(at, self._held[at].token, order) for at in sorted(self._held)]

    def marked(self, shard: int) -> list[Message]:
        """A shard has its mark, and has let its writers go."""
        if self.phase is Phase.MARKING:
            self._waiting.discard(shard)
            if not self._waiting:
                self.phase = Phase.TAKEN
        return []

    def refused(self, shard: int, why: str) -> list[Message]:
        """A shard cannot hold, or had let go before its mark came, or is away."""
        return [] if self.over else self._skip(f"shard {shard}: {why}")

    def timed_out(self) -> list[Message]:
        """It takes longer than a hold may last."""
        if self.over:
            return []
        what = "hold" if self.phase is Phase.HOLDING else "mark"
        missing = ", ".join(str(shard) for shard in sorted(self._waiting))
        return self._skip(f"shard {missing} did not {what} in time")

    def _skip(self, reason: str) -> list[Message]:
        self.phase, self.reason = Phase.SKIPPED, reason
        return [Release(shard, answer.token) for shard, answer in sorted(self._held.items())]


def _order(answers: list[Held]) -> Order:
    shared = min(answer.sequence for answer in answers)
    newest = max(answer.sequence for answer in answers)
    # What a mark told that not every shard has, not every shard knows.
    begins = [answer.void_from for answer in answers if answer.sequence > shared]
    stamp_ns = max(answer.stamp_ns for answer in answers)
    news = any(answer.news for answer in answers)
    return Order(newest + 1, stamp_ns, (min([shared + 1, *begins]), newest + 1), news)


class ShardHold:
    """A shard's side: whether it holds, for whom, and until when. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self.token = ""
        """Of the hold; empty: it does not hold."""
        self._until = 0.0

    def take(self, token: str, now: float, seconds_max: float) -> bool:
        """Hold from now on; False if it does already. `token` was never used before."""
        if self.token:
            return False
        self.token, self._until = token, now + seconds_max
        return True

    def admits(self, token: str, now: float) -> bool:
        """A mark that bears the token may be made: the shard has held ever since it gave it."""
        return bool(token) and token == self.token and now < self._until

    def end(self, token: str) -> bool:
        """Hold no longer; False if it did not, or for another."""
        if not token or token != self.token:
            return False
        self.token = ""
        return True
