"""A checkpoint over several shards: every interleaving of writers, messages, losses, repeats, time-outs and deaths."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import pytest

from dpac_engine.core.shared_mark import Held, Hold, Message, Order, PutMark, ShardHold, SharedMark

HOLD_SECONDS = 0.25


@dataclass
class Shard:
    """A shard with its journal, as far as it concerns checkpoints."""

    hold: ShardHold = field(default_factory=ShardHold)
    holds: int = 0
    log: list[int] = field(default_factory=list)
    """Numbers written, in order."""
    marks: dict[int, tuple[Order, int]] = field(default_factory=dict)
    """Sequence -> what the mark said, and how long the log was."""

    @property
    def sequence(self) -> int:
        return max(self.marks, default=0)

    @property
    def void_from(self) -> int:
        return min(self.sequence, self.marks[self.sequence][0].void[0]) if self.marks else 0


@dataclass
class World:
    """Shards, one writer that goes from shard to shard, and who coordinates, with what is under way between them."""

    shards: list[Shard]
    attempt: SharedMark
    under_way: list[tuple[str, int, object]] = field(default_factory=list)
    """('to', shard, message) or ('from', shard, answer)."""
    written: int = 0
    writes: int = 3
    losses: int = 0
    repeats: int = 0
    expiries: int = 0
    deaths: int = 0
    attempts: int = 0

    def send(self, messages: list[Message]) -> None:
        self.under_way += [("to", message.shard, message) for message in messages]


def shard_takes(world: World, at: int, message: Message, *, holds: bool = True) -> None:
    """What a shard does with a message; `holds=False` is the mutation that marks without holding back its writers."""
    shard = world.shards[at]
    if isinstance(message, Hold):
        shard.holds += 1
        token = f"{at}.{shard.holds}"
        if shard.hold.take(token, 0.0, HOLD_SECONDS):
            world.under_way.append(("from", at, Held(token, shard.sequence, shard.void_from, 1000 + shard.sequence)))
        else:
            world.under_way.append(("from", at, "it holds for another"))
    elif isinstance(message, PutMark):
        if (shard.hold.admits(message.token, 0.0) or not holds) and message.order.sequence > shard.sequence:
            shard.marks[message.order.sequence] = (message.order, len(shard.log))
            shard.hold.end(message.token)
            world.under_way.append(("from", at, "marked"))
        else:
            world.under_way.append(("from", at, "it had let go"))
    else:
        shard.hold.end(message.token)


def coordinator_takes(world: World, shard: int, answer: object) -> None:
    if isinstance(answer, Held):
        world.send(world.attempt.held(shard, answer))
    elif answer == "marked":
        world.send(world.attempt.marked(shard))
    else:
        world.send(world.attempt.refused(shard, str(answer)))


def steps(world: World, *, holds: bool = True) -> Iterator[tuple[str, Callable[[World], None]]]:
    """Everything that may happen next."""
    at = world.written % len(world.shards)
    if world.written < world.writes and (not world.shards[at].hold.token or not holds):
        yield f"write {at}", write
    for index, (way, shard, what) in enumerate(world.under_way):
        yield f"{way} {shard} {what}", lambda world, index=index: deliver(world, index, holds=holds)
        if world.losses:
            yield f"lose {what}", lambda world, index=index: lose(world, index)
        if world.repeats:
            yield f"repeat {what}", lambda world, index=index: repeat(world, index)
    for number, shard in enumerate(world.shards):
        if world.expiries and shard.hold.token:
            yield f"expire {number}", lambda world, number=number: expire(world, number)
        if world.deaths and shard.hold.token:
            yield f"die {number}", lambda world, number=number: die(world, number)
    if not world.attempt.over:
        yield "time-out", lambda world: world.send(world.attempt.timed_out())
    if world.attempts and (world.attempt.over or world.deaths):
        yield "another attempt", another


def write(world: World) -> None:
    world.shards[world.written % len(world.shards)].log.append(world.written)
    world.written += 1


def deliver(world: World, index: int, *, holds: bool) -> None:
    way, shard, what = world.under_way.pop(index)
    if way == "to":
        shard_takes(world, shard, what, holds=holds)  # type: ignore[arg-type]
    else:
        coordinator_takes(world, shard, what)


def lose(world: World, index: int) -> None:
    world.losses -= 1
    world.under_way.pop(index)


def repeat(world: World, index: int) -> None:
    world.repeats -= 1
    world.under_way.append(world.under_way[index])


def expire(world: World, number: int) -> None:
    world.expiries -= 1
    world.shards[number].hold.end(world.shards[number].hold.token)


def die(world: World, number: int) -> None:
    """A shard's process dies and comes back: what it journalled stays, what it held does not."""
    world.deaths -= 1
    world.shards[number].hold = ShardHold()


def another(world: World) -> None:
    """A new attempt; answers to an earlier one go to nobody, its messages may still arrive."""
    if not world.attempt.over:
        world.deaths -= 1  # who coordinated died
    world.attempts -= 1
    world.under_way = [one for one in world.under_way if one[0] == "to"]
    world.attempt = SharedMark(len(world.shards))
    world.send(world.attempt.begin())


def explore(world: World, *, holds: bool = True) -> tuple[int, int]:
    """Go through every world that can be reached; (worlds, those with a checkpoint). Fails at a cut that never was."""
    seen: set[Hashable] = {key(world)}
    worlds = [world]
    taken = 0
    while worlds:
        here = worlds.pop()
        taken += judge(here)
        for _, step in steps(here, holds=holds):
            following = clone(here)
            step(following)
            found = key(following)
            if found not in seen:
                seen.add(found)
                worlds.append(following)
    return len(seen), taken


def clone(world: World) -> World:
    """A copy that shares only what never changes."""
    new = copy.copy(world)
    new.under_way = list(world.under_way)
    new.attempt = copy.copy(world.attempt)
    new.attempt._held, new.attempt._waiting = dict(world.attempt._held), set(world.attempt._waiting)
    new.shards = [copy.copy(shard) for shard in world.shards]
    for shard in new.shards:
        shard.hold, shard.log, shard.marks = copy.copy(shard.hold), list(shard.log), dict(shard.marks)
    return new


def key(world: World) -> Hashable:
    """What makes two worlds the same one."""
    attempt = world.attempt
    return (
        *((shard.hold.token, shard.holds, len(shard.log), tuple(shard.marks.items())) for shard in world.shards),
        (attempt.phase, attempt.order, tuple(sorted(attempt._held.items())), frozenset(attempt._waiting)),
        tuple(sorted(f"{way}{shard}{type(what).__name__}{what}" for way, shard, what in world.under_way)),
        (world.written, world.losses, world.repeats, world.expiries, world.deaths, world.attempts),
    )


def judge(world: World) -> bool:
    """Every checkpoint that all shards have is a moment that was; whether there is one."""
    complete = set.intersection(*(set(shard.marks) for shard in world.shards))
    for sequence in complete:
        cut = {number for shard in world.shards for number in shard.log[: shard.marks[sequence][1]]}
        assert cut == set(range(len(cut))), f"checkpoint {sequence} holds {sorted(cut)}: no moment was like that"
        assert len({shard.marks[sequence][0] for shard in world.shards}) == 1, "the marks of one checkpoint differ"
    for shard in world.shards:
        for order, _ in shard.marks.values():
            assert not complete & set(range(*order.void)), "a checkpoint that every shard has was called void"
            known = {at for at in shard.marks if at < order.sequence}
            assert known - complete <= set(range(*order.void)) | voided(shard), "a mark that not all have is not void"
    return bool(complete)


def voided(shard: Shard) -> set[int]:
    return {at for order, _ in shard.marks.values() for at in range(*order.void)}


def world_of(shards: int, **budget: int) -> World:
    """The world before anything happened."""
    world = World([Shard() for _ in range(shards)], SharedMark(shards), **budget)
    world.send(world.attempt.begin())
    return world


@pytest.mark.parametrize(
    ("shards", "budget"),
    [
        (2, {"losses": 1, "expiries": 1}),
        (2, {"repeats": 1, "writes": 2}),
        (3, {"writes": 3}),
    ],
)
def test_whatever_happens_a_checkpoint_is_a_moment_that_was(shards: int, budget: dict[str, int]) -> None:
    """In every order of events, a checkpoint that all shards have holds a write only with all that came before it."""
    worlds, taken = explore(world_of(shards, **budget))
    print(f"{worlds} worlds, {taken} of them with a checkpoint")
    assert worlds > 100
    assert taken > 10


@pytest.mark.soak
@pytest.mark.parametrize(
    ("shards", "budget"),
    [
        (2, {"attempts": 1, "writes": 1}),
        (2, {"losses": 1, "expiries": 1, "attempts": 1, "writes": 2}),
        (2, {"repeats": 1, "expiries": 1, "writes": 3}),
        (3, {"expiries": 1, "writes": 4}),
    ],
)
def test_whatever_happens_for_longer(shards: int, budget: dict[str, int]) -> None:
    """The same with more that may happen: some minutes."""
    worlds, taken = explore(world_of(shards, **budget))
    print(f"{worlds} worlds, {taken} of them with a checkpoint")


def test_a_long_history_of_many_attempts_has_only_moments_that_were(seed: int) -> None:
    """Random histories with losses, repeats, time-outs and deaths over many attempts: every checkpoint is a moment."""
    chance = random.Random(seed)
    complete = 0
    for _ in range(100):
        budget = {"losses": 3, "repeats": 3, "expiries": 3, "deaths": 2, "attempts": 8, "writes": 40}
        world = world_of(chance.choice((2, 3, 4)), **budget)
        while following := list(steps(world)):
            good = [step for step in following if step[0].startswith(("write", "to", "from"))]
            chance.choice(good if good and chance.random() < 0.9 else following)[1](world)
            judge(world)
        complete += len(set.intersection(*(set(shard.marks) for shard in world.shards)))
    print(f"{complete} checkpoints")
    assert complete > 100


@pytest.mark.parametrize("shards", [2, 3])
def test_a_mark_without_a_hold_is_found_out(shards: int) -> None:
    """The search is one that finds: shards that mark without holding back their writers make a cut that never was."""
    with pytest.raises(AssertionError, match="no moment was like that"):
        explore(world_of(shards, writes=4), holds=False)
