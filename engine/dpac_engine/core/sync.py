"""A sync leg's pledge, as a state machine: when the application waits for the target, and when it may go on alone.

The pledge has to be on record, durably, in the state it is acted on: `in sync` before the target counts, `lost` before
anything is acknowledged without it; unless the journal is broken and its disk takes no record: then the application goes on. Whoever runs the machine does the effects and tells it what came of them; of several
records the last one asked for stands, and only of that one it is told.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Literal, NamedTuple

OnLoss = Literal["async", "stop"]


class Phase(StrEnum):
    """Where the leg is."""

    JOINING = "Joining"  # never in sync yet: nothing waits for it
    ENTERING = (
        "Entering"  # everything waits already; the target is being brought to where that began, and it is recorded
    )
    IN_SYNC = "InSync"
    WAITING = "Waiting"  # the target failed, or the worker has just started: it has `timeout` to come back
    RECORDING = "Recording"  # it did not: the loss is being recorded
    ALONE = "Alone"  # the loss is on record: nothing waits, the target is caught up with
    HELD = "Held"  # it did not come back, and `on_loss` is `stop`
    FENCED = "Fenced"  # another primary writes at the target: whatever waits is never answered by this one


GATING = frozenset({Phase.ENTERING, Phase.IN_SYNC, Phase.WAITING, Phase.RECORDING, Phase.HELD, Phase.FENCED})
"""In these nothing is acknowledged that the target does not have."""


class Event(Enum):
    """What happened."""

    CLOSE = "the tail is almost at the journal's head"
    ATTACHED = "the tail has everything that was acknowledged before the application began to wait for it"
    IN_SYNC_RECORDED = "that it is in sync is on record"
    LOSS_RECORDED = "that it is lost is on record"
    LOSS_UNRECORDABLE = "the disk of a broken journal does not take that record either"
    ASKED = "something waits for the target, and nothing did before"
    ANSWERED = "nothing waits for the target any more"
    FAILED = "the target refused"
    TIMED_OUT = "the timer ran out"
    FENCED = "another primary writes at the target"
    PAUSED = "somebody paused the leg"
    JOURNAL_FAILED = "the journal broke: there is nothing to send any more"
    POLICY_ASYNC = "the declaration says on_loss=async now"
    POLICY_STOP = "the declaration says on_loss=stop now"


class Effect(Enum):
    """What to do."""

    START_TIMER = "start the timer, unless it runs"
    STOP_TIMER = "stop it"
    RECORD_IN_SYNC = "record that it is in sync, durably, then say IN_SYNC_RECORDED"
    RECORD_LOSS = "record that it is lost, durably, then say LOSS_RECORDED"
    ABANDON = "write no more to this tail, whatever becomes of what is under way"
    RELEASE = "look again what may be acknowledged"


class State(NamedTuple):
    """Where it is, and what the declaration says."""

    phase: Phase
    on_loss: OnLoss

    @property
    def gating(self) -> bool:
        """Acknowledgements wait for the target."""
        return self.phase in GATING


Step = tuple[State, tuple[Effect, ...]]


def first(recorded: Literal["in sync", "lost"] | None, on_loss: OnLoss) -> Step:
    """Where a leg begins in a new life of its worker, by what is on record."""
    if recorded is None:
        return State(Phase.JOINING, on_loss), ()
    if recorded == "lost":
        return State(Phase.ALONE, on_loss), ()
    return State(Phase.WAITING, on_loss), (Effect.START_TIMER,)


def step(state: State, event: Event) -> Step:
    """The state after an event, and what to do."""
    match event:
        case Event.POLICY_ASYNC | Event.POLICY_STOP:
            return _policy(state, "async" if event is Event.POLICY_ASYNC else "stop")
        case Event.FENCED:
            if not state.gating or state.phase is Phase.FENCED:
                return state, ()
            return _to(state, Phase.FENCED, Effect.STOP_TIMER, Effect.ABANDON)
        case Event.JOURNAL_FAILED | Event.PAUSED:
            return _given_up(state)
        case _:
            move = _MOVES.get((state.phase, event))
            if move is None:
                return state, ()
            phase, effects = move
            return _lost(state, effects) if phase is None else _to(state, phase, *effects)


def _to(state: State, phase: Phase, *effects: Effect) -> Step:
    return state._replace(phase=phase), effects


def _lost(state: State, effects: tuple[Effect, ...]) -> Step:
    if state.on_loss == "stop":
        return _to(state, Phase.HELD, *effects)
    return _to(state, Phase.RECORDING, *effects, Effect.RECORD_LOSS)


def _policy(state: State, on_loss: OnLoss) -> Step:
    changed = state._replace(on_loss=on_loss)
    if state.phase is Phase.HELD and on_loss == "async":
        return _lost(changed, ())
    return changed, ()


def _given_up(state: State) -> Step:
    # Nothing more will be sent. The application must go on; only who asked to be stopped is. The loss is recorded first:
    # the next life's record must not say that the target has what was acknowledged meanwhile.
    if not state.gating or state.phase in (Phase.FENCED, Phase.HELD):
        return state, ()
    return _lost(state, (Effect.STOP_TIMER, Effect.ABANDON))


_MOVES: dict[tuple[Phase, Event], tuple[Phase | None, tuple[Effect, ...]]] = {
    # (phase, event): (next phase, effects); None as phase: the leg is lost, `on_loss` says what that means
    (Phase.JOINING, Event.CLOSE): (Phase.ENTERING, ()),
    (Phase.ALONE, Event.CLOSE): (Phase.ENTERING, ()),
    (Phase.ENTERING, Event.ATTACHED): (Phase.ENTERING, (Effect.RECORD_IN_SYNC,)),
    (Phase.ENTERING, Event.IN_SYNC_RECORDED): (Phase.IN_SYNC, (Effect.RELEASE,)),
    (Phase.ENTERING, Event.ASKED): (Phase.ENTERING, (Effect.START_TIMER,)),
    (Phase.ENTERING, Event.ANSWERED): (Phase.ENTERING, (Effect.STOP_TIMER,)),
    (Phase.ENTERING, Event.FAILED): (Phase.WAITING, (Effect.ABANDON, Effect.START_TIMER)),
    (Phase.ENTERING, Event.TIMED_OUT): (None, (Effect.ABANDON,)),
    (Phase.IN_SYNC, Event.ASKED): (Phase.IN_SYNC, (Effect.START_TIMER,)),
    (Phase.IN_SYNC, Event.ANSWERED): (Phase.IN_SYNC, (Effect.STOP_TIMER,)),
    (Phase.IN_SYNC, Event.FAILED): (Phase.WAITING, (Effect.ABANDON, Effect.START_TIMER)),
    (Phase.IN_SYNC, Event.TIMED_OUT): (None, (Effect.ABANDON,)),
    (Phase.WAITING, Event.ATTACHED): (Phase.ENTERING, (Effect.STOP_TIMER, Effect.RECORD_IN_SYNC)),
    (Phase.WAITING, Event.TIMED_OUT): (None, ()),
    (Phase.RECORDING, Event.LOSS_RECORDED): (Phase.ALONE, (Effect.RELEASE,)),
    (Phase.RECORDING, Event.LOSS_UNRECORDABLE): (Phase.ALONE, (Effect.RELEASE,)),
    (Phase.RECORDING, Event.ATTACHED): (Phase.ENTERING, (Effect.RECORD_IN_SYNC,)),
    (Phase.HELD, Event.ATTACHED): (Phase.ENTERING, (Effect.RECORD_IN_SYNC,)),
}
