"""The sync machine: the law that nothing is acknowledged alone before its loss is on record, in every state there is."""

from __future__ import annotations

from typing import Literal

import pytest

from dpac_engine.core import sync
from dpac_engine.core.sync import Effect, Event, OnLoss, Phase, State

Recorded = Literal["in sync", "lost"] | None
World = tuple[State, Recorded, Effect | None]
"""The machine, what is on record, and the record that is under way: the last one asked for stands."""
_RECORDS = (Effect.RECORD_IN_SYNC, Effect.RECORD_LOSS)


def _after(world: World, event: Event) -> World | None:
    """The world after an event; None if it cannot happen there."""
    state, recorded, under_way = world
    if event is Event.IN_SYNC_RECORDED:
        if under_way is not Effect.RECORD_IN_SYNC:
            return None
        recorded, under_way = "in sync", None
    if event is Event.LOSS_RECORDED:
        if under_way is not Effect.RECORD_LOSS:
            return None
        recorded, under_way = "lost", None
    if event is Event.LOSS_UNRECORDABLE and under_way is not Effect.RECORD_LOSS:
        return None
    new, effects = sync.step(state, event)
    return new, recorded, next((effect for effect in effects if effect in _RECORDS), under_way)


def _worlds() -> dict[World, list[tuple[Event, World]]]:
    """Every world that can come about, and where each event leads from it."""
    found: dict[World, list[tuple[Event, World]]] = {}
    records: tuple[Recorded, ...] = (None, "in sync", "lost")
    waiting: list[World] = [
        (sync.first(recorded, on_loss)[0], recorded, None)
        for recorded in records
        for on_loss in ("async", "stop")  # type: ignore[misc]
    ]
    while waiting:
        world = waiting.pop()
        if world in found:
            continue
        found[world] = [(event, after) for event in Event if (after := _after(world, event)) is not None]
        waiting += [after for _, after in found[world]]
    return found


WORLDS = _worlds()


def test_every_phase_can_come_about() -> None:
    """No phase is there for nothing."""
    assert {world[0].phase for world in WORLDS} == set(Phase)


def test_nothing_is_acknowledged_alone_while_the_record_says_in_sync() -> None:
    """A leg that was in sync gates until the loss is on record, whatever happens in whatever order; a broken disk excepted."""
    for world, steps in WORLDS.items():
        for event, (state, recorded, under_way) in steps:
            if world[0].gating and not state.gating and event is not Event.LOSS_UNRECORDABLE:
                assert event is Event.LOSS_RECORDED, (world, event)
                assert recorded == "lost"
                assert under_way is None


def test_it_counts_as_in_sync_only_once_that_is_on_record() -> None:
    """Else a crash right then would begin a life that acknowledges alone."""
    for world, steps in WORLDS.items():
        for event, (state, _, _) in steps:
            if state.phase is Phase.IN_SYNC and world[0].phase is not Phase.IN_SYNC:
                assert event is Event.IN_SYNC_RECORDED
                assert world[0].phase is Phase.ENTERING


def test_stop_is_kept_until_the_target_is_back_or_the_declaration_changes() -> None:
    """With on_loss=stop no event but a new declaration lets anything be acknowledged alone."""
    for world, steps in WORLDS.items():
        for _event, (state, _, under_way) in steps:
            stopping = world[0].on_loss == state.on_loss == "stop"
            if stopping and world[0].gating and Effect.RECORD_LOSS not in (under_way, world[2]):
                assert state.gating, world


def test_a_fenced_leg_never_lets_go() -> None:
    """Another primary writes there: this one must not acknowledge, whatever its declaration becomes."""
    for world, steps in WORLDS.items():
        if world[0].phase is Phase.FENCED:
            assert {after[0].phase for _, after in steps} == {Phase.FENCED}


def test_a_timer_runs_whenever_the_target_is_waited_for_under_async() -> None:
    """What enters a wait starts one, and a life that begins with the record 'in sync' does."""
    assert Effect.START_TIMER in sync.first("in sync", "async")[1]
    for state in {world[0] for world in WORLDS}:
        for event in Event:
            after, effects = sync.step(state, event)
            if after.phase is Phase.WAITING and state.phase is not Phase.WAITING:
                assert Effect.START_TIMER in effects
            if event is Event.ASKED and state.phase in (Phase.ENTERING, Phase.IN_SYNC):
                assert Effect.START_TIMER in effects


def test_a_tail_that_failed_is_never_written_again() -> None:
    """Leaving the phases in which one is written gives it up, so that a late answer changes nothing."""
    counting = (Phase.ENTERING, Phase.IN_SYNC)
    for state in {world[0] for world in WORLDS}:
        for event in Event:
            after, effects = sync.step(state, event)
            if state.phase in counting and after.phase not in counting:
                assert Effect.ABANDON in effects, (state, event)


def test_from_every_world_but_a_fenced_one_it_comes_back() -> None:
    """A target that answers leads back to in sync, by CLOSE, ATTACHED and the records alone."""
    for state, recorded, under_way in WORLDS:
        if state.phase is Phase.FENCED:
            continue
        world: World = (state, recorded, under_way)
        for event in (Event.LOSS_RECORDED, Event.CLOSE, Event.ATTACHED, Event.IN_SYNC_RECORDED):
            world = _after(world, event) or world
        assert world[0].phase is Phase.IN_SYNC, (state, recorded, under_way)


@pytest.mark.parametrize("on_loss", ["async", "stop"])
@pytest.mark.parametrize(
    ("story", "phases"),
    [
        (("CLOSE", "ATTACHED", "IN_SYNC_RECORDED"), {"async": "InSync", "stop": "InSync"}),
        (("CLOSE", "TIMED_OUT"), {"async": "Recording", "stop": "Held"}),
        (("CLOSE", "FAILED", "TIMED_OUT", "LOSS_RECORDED"), {"async": "Alone", "stop": "Held"}),
        (("CLOSE", "FAILED", "TIMED_OUT", "POLICY_ASYNC", "LOSS_RECORDED"), {"async": "Alone", "stop": "Alone"}),
        (("CLOSE", "FAILED", "ATTACHED", "IN_SYNC_RECORDED"), {"async": "InSync", "stop": "InSync"}),
        (("CLOSE", "FENCED", "POLICY_ASYNC", "TIMED_OUT"), {"async": "Fenced", "stop": "Fenced"}),
        (("CLOSE", "JOURNAL_FAILED"), {"async": "Recording", "stop": "Held"}),
        (("CLOSE", "JOURNAL_FAILED", "LOSS_RECORDED"), {"async": "Alone", "stop": "Held"}),
        (("CLOSE", "JOURNAL_FAILED", "LOSS_UNRECORDABLE"), {"async": "Alone", "stop": "Held"}),
        (("FENCED",), {"async": "Joining", "stop": "Joining"}),
    ],
)
def test_stories(on_loss: OnLoss, story: tuple[str, ...], phases: dict[str, str]) -> None:
    """The ways of a leg that joins, as a person would tell them."""
    state, _ = sync.first(None, on_loss)
    for name in story:
        state, _ = sync.step(state, Event[name])
    assert state.phase == phases[on_loss]
