"""The reconciler: every wish comes true, whatever is interrupted in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from dpac_api.errors import NotFound
from dpac_api.models import GroupSpec, PutGroup, PutTarget
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.catalogue import Catalogue, utc
from dpac_engine.control.catalogue_groups import delete_group, group_row, put_group
from dpac_engine.control.catalogue_schema import GroupRow
from dpac_engine.control.catalogue_targets import put_target
from dpac_engine.control.reconciler import Reconciler
from tests.unit.control_fakes import SITE, WAIT_SECONDS, World


class Bench:
    """A catalogue with a target, and reconcilers that can be thrown away."""

    def __init__(self, root: Path) -> None:
        self.world = World(root)
        self.catalogue = Catalogue.open(self.world.data / "catalogue.sqlite")
        with self.catalogue.write() as session:
            put = PutTarget.model_validate({"request_id": "r" * 8, "spec": self.world.target_spec()})
            put_target(session, "copies", put, data=self.world.data, site_uid=SITE.site_uid, now=self.now())

    def now(self):
        return utc(self.world.clock.now_ns())

    def reconciler(self) -> Reconciler:
        """A new process's reconciler."""
        world = self.world
        return Reconciler(self.catalogue, world.host(), world.workers, world.recovery, world.clock, (0.005,))

    def put(self, **changes: object) -> str:
        spec = GroupSpec.model_validate(self.world.group_spec(**changes))
        with self.catalogue.write() as session:
            return put_group(
                session, "shop", PutGroup(request_id="r" * 8, spec=spec), self.world.host(), self.now()
            ).uid

    def delete(self, on_destroy: str) -> None:
        with self.catalogue.write() as session:
            delete_group(session, "shop", on_destroy, self.now())  # type: ignore[arg-type]

    def assignment(self, uid: str) -> WorkerAssignment:
        text = (self.world.data / "groups" / uid / "assignment.json").read_text()
        return WorkerAssignment.model_validate_json(text)

    def row(self) -> GroupRow:
        with self.catalogue.read() as session:
            return session.scalars(select(GroupRow)).one()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def interrupt_after(reconciler: Reconciler, uid: str, count: int) -> list[str]:
    """Run a pass and stop it dead after `count` steps."""
    taken: list[str] = []
    steps = reconciler.steps(uid)
    async for step in steps:
        taken.append(step)
        if len(taken) == count:
            break
    await steps.aclose()  # type: ignore[attr-defined]
    return taken


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""

    async def poll() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for is told by no event
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), WAIT_SECONDS)


def in_loop(story: Callable[[], Awaitable[None]]) -> None:
    """Run a test's story in an event loop of its own."""
    asyncio.run(story())  # type: ignore[arg-type]


def prepare_active(bench: Bench) -> str:
    return bench.put()


def prepare_changed(bench: Bench) -> str:
    uid = bench.put()
    asyncio.run(bench.reconciler().run(uid))
    return bench.put(journal={"history": "2d"})


def prepare_retained(bench: Bench) -> str:
    uid = bench.put()
    asyncio.run(bench.reconciler().run(uid))
    bench.delete("retain")
    return uid


@pytest.mark.parametrize("prepare", [prepare_active, prepare_changed, prepare_retained])
@pytest.mark.parametrize("interrupted_after", range(1, 4))
def test_a_pass_interrupted_after_any_step_is_finished_by_the_next_process(
    bench: Bench, prepare: Callable[[Bench], str], interrupted_after: int
) -> None:
    """The assignment, the worker and the catalogue agree in the end."""
    uid = prepare(bench)

    async def story() -> None:
        await interrupt_after(bench.reconciler(), uid, interrupted_after)
        await bench.reconciler().run(uid)

    in_loop(story)
    row = bench.row()
    told = bench.assignment(uid)
    assert row.applied_generation == row.generation == told.generation
    assert (told.state == "active") == (row.lifecycle == "active") == (uid in bench.world.worker.serving)
    assert told.spec == GroupSpec.model_validate(row.spec)


@pytest.mark.parametrize("interrupted_after", range(1, 7))
def test_a_purge_interrupted_after_any_step_is_finished_by_the_next_process(
    bench: Bench, interrupted_after: int
) -> None:
    """Nothing of the group is left, and nothing is skipped."""
    uid = bench.put()

    async def story() -> None:
        await bench.reconciler().run(uid)
        bench.delete("purge")
        await interrupt_after(bench.reconciler(), uid, interrupted_after)
        await bench.reconciler().run(uid)

    in_loop(story)
    assert (str(bench.world.root / "copies"), uid) in bench.world.recovery.purged
    assert f"drop {uid}" in bench.world.worker.calls
    assert not (bench.world.data / "groups" / uid).exists()
    with pytest.raises(NotFound), bench.catalogue.read() as session:
        group_row(session, "shop", retained=True)


def test_nothing_is_purged_at_a_target_before_the_worker_has_dropped_the_group(bench: Bench) -> None:
    """Else it would ship into what is being deleted."""
    uid = bench.put()

    async def story() -> None:
        await bench.reconciler().run(uid)
        bench.delete("purge")
        bench.world.worker.down = True
        with pytest.raises(Exception, match="does not answer"):
            await bench.reconciler().run(uid)

    in_loop(story)
    assert bench.world.recovery.purged == []


def test_a_group_that_is_as_wanted_costs_its_worker_nothing(bench: Bench) -> None:
    """Looking again is free."""
    uid = bench.put()

    async def story() -> None:
        await bench.reconciler().run(uid)
        bench.world.worker.calls.clear()
        await bench.reconciler().run(uid)

    in_loop(story)
    assert bench.world.worker.calls == []


def test_a_lost_assignment_is_written_again(bench: Bench) -> None:
    """Levels, not edges: what is there is compared, not what happened."""
    uid = bench.put()

    async def story() -> None:
        await bench.reconciler().run(uid)
        (bench.world.data / "groups" / uid / "assignment.json").unlink()
        await bench.reconciler().run(uid)

    in_loop(story)
    assert bench.assignment(uid).state == "active"


def test_a_worker_that_is_down_is_tried_until_it_is_back(bench: Bench) -> None:
    """With the reason told meanwhile, and taken back after."""
    uid = bench.put()

    async def story() -> None:
        reconciler = bench.reconciler()
        bench.world.worker.down = True
        await reconciler.attempt(uid, WAIT_SECONDS)
        assert "does not answer" in reconciler.problems[uid][0].message
        bench.world.worker.down = False
        await until(lambda: uid in bench.world.worker.serving and not reconciler.problems)
        await reconciler.stop()

    in_loop(story)


def test_a_start_takes_up_what_was_left(bench: Bench) -> None:
    """The process that accepted the wish may be gone."""
    uid = bench.put()

    async def story() -> None:
        reconciler = bench.reconciler()
        await reconciler.start()
        await until(lambda: uid in bench.world.worker.serving)
        await reconciler.stop()

    in_loop(story)


def test_a_wish_that_changes_during_an_attempt_gets_an_attempt_of_its_own(bench: Bench) -> None:
    """The last wish wins, though it came while the worker was busy with the one before."""
    uid = bench.put()

    async def story() -> None:
        reconciler = bench.reconciler()
        bench.world.worker.hold_calls = asyncio.Event()
        first = reconciler.nudge(uid)
        await until(lambda: f"apply {uid}" in bench.world.worker.calls)
        bench.put(journal={"history": "2d"})
        second = reconciler.nudge(uid)
        bench.world.worker.hold_calls.set()
        await asyncio.gather(first, second)
        await reconciler.stop()

    in_loop(story)
    assert bench.world.worker.serving[uid].spec.journal.history == "2d"


def test_an_expired_group_is_purged_by_itself(bench: Bench) -> None:
    """Once its deadline has passed, and not before."""
    uid = bench.put()
    bench.delete("expire")

    async def story() -> None:
        early = bench.reconciler()
        await early.start()
        await until(lambda: bench.row().applied_generation == bench.row().generation)
        await early.stop()
        assert bench.world.recovery.purged == []
        bench.world.clock.advance(timedelta(days=31).total_seconds())
        late = bench.reconciler()
        await late.start()
        await until(lambda: bool(bench.world.recovery.purged))
        await until(lambda: not (bench.world.data / "groups" / uid).exists())
        await late.stop()

    in_loop(story)


def test_a_group_of_a_worker_that_is_not_started_says_so(bench: Bench) -> None:
    """Fewer workers than before: the group waits, with the remedy in its problem."""
    uid = bench.put()
    bench.world.workers.clear()

    async def story() -> None:
        reconciler = bench.reconciler()
        await reconciler.attempt(uid, WAIT_SECONDS)
        assert "--workers 1" in reconciler.problems[uid][0].message
        await reconciler.stop()

    in_loop(story)
