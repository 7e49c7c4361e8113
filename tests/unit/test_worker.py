"""A worker's groups: started, changed, drained, dropped, and one that fails among others that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dpac_api.errors import Conflict, Corruption, DpacError, NotFound, Unreachable
from dpac_api.models import CheckpointRequest
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.worker import Worker
from dpac_engine.io.clock import SystemClock
from tests.processes.backend import assignment, put_assignment
from tests.processes.rig import FileRuntime, NoMounts


class Shop:
    """A worker whose runtimes a test can look at."""

    def __init__(self, groups: Path, index: int = 0) -> None:
        self.groups = groups
        self.runtimes: list[FileRuntime] = []
        self.worker = Worker(index, groups, self._make, NoMounts(), SystemClock(), retry_seconds=(0.01,))

    def _make(self, wanted: WorkerAssignment) -> FileRuntime:
        self.runtimes.append(FileRuntime(wanted, self.groups / wanted.group_uid))
        return self.runtimes[-1]

    @property
    def calls(self) -> list[list[str]]:
        """What each runtime was told, in the order they were made."""
        return [runtime.calls for runtime in self.runtimes]


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds_max: float = 60) -> None:
    """Wait for a condition with a deadline, letting the loop turn."""
    async with asyncio.timeout(seconds_max):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0)


def test_a_worker_starts_its_own_groups_only(tmp_path: Path) -> None:
    """Of all assignments on disk it takes those that carry its number."""

    async def run() -> None:
        put_assignment(tmp_path, assignment("mine", worker=1))
        put_assignment(tmp_path, assignment("other", worker=0))
        shop = Shop(tmp_path, index=1)
        await shop.worker.start()
        assert shop.worker.names() == ["mine/disk"]
        assert shop.worker.find("mine/disk") is not None
        assert shop.worker.find("other/disk") is None

    asyncio.run(run())


def test_a_failed_group_is_shown_and_tried_again(tmp_path: Path) -> None:
    """Its status says Failed with the reason; calls to it raise that; when the reason is gone it starts."""

    async def run() -> None:
        wanted = assignment("shop")
        folder = put_assignment(tmp_path, wanted)
        put_assignment(tmp_path, assignment("good"))
        (folder / "fail").touch()
        shop = Shop(tmp_path)
        await shop.worker.start()
        assert shop.worker.names() == ["good/disk"]
        status = await shop.worker.status(wanted.group_uid)
        assert status.members["disk"].state == "Failed"
        assert [condition.type for condition in status.conditions] == ["GroupFailed"]
        assert "in the way" in status.conditions[0].message
        assert not status.protected
        with pytest.raises(DpacError, match="in the way"):
            await shop.worker.ship(wanted.group_uid)
        (folder / "fail").unlink()
        await eventually(lambda: "shop/disk" in shop.worker.names())
        assert (await shop.worker.status(wanted.group_uid)).protected

    asyncio.run(run())


def test_an_assignment_that_cannot_be_read_is_shown(tmp_path: Path) -> None:
    """A damaged file is that group's failure and nobody else's."""

    async def run() -> None:
        wanted = assignment("shop")
        (put_assignment(tmp_path, wanted) / "assignment.json").write_text("{")
        put_assignment(tmp_path, assignment("good"))
        shop = Shop(tmp_path)
        await shop.worker.start()
        assert shop.worker.names() == ["good/disk"]
        with pytest.raises(Corruption, match=r"assignment\.json"):
            await shop.worker.status(wanted.group_uid)

    asyncio.run(run())


def test_a_slow_group_does_not_hold_up_the_start(tmp_path: Path) -> None:
    """After its time the start goes on without it; meanwhile it is shown as starting."""

    async def run() -> None:
        go = asyncio.Event()

        class Slow(FileRuntime):
            async def start(self) -> None:
                await go.wait()
                await super().start()

        wanted = assignment("shop")
        put_assignment(tmp_path, wanted)
        worker = Worker(
            0, tmp_path, lambda wanted: Slow(wanted, tmp_path / wanted.group_uid), NoMounts(), SystemClock()
        )
        await worker.start(seconds_max=0.05)
        assert (await worker.status(wanted.group_uid)).members["disk"].state == "Starting"
        with pytest.raises(Unreachable, match="being started"):
            await worker.ship(wanted.group_uid)
        go.set()
        await eventually(lambda: bool(worker.names()))

    asyncio.run(run())


def test_apply_starts_then_changes_live(tmp_path: Path) -> None:
    """The first apply starts the group, the next one changes it without a stop."""

    async def run() -> None:
        shop = Shop(tmp_path)
        wanted = assignment("shop")
        with pytest.raises(NotFound):
            await shop.worker.apply(wanted.group_uid)
        put_assignment(tmp_path, wanted)
        await shop.worker.apply(wanted.group_uid)
        put_assignment(tmp_path, assignment("shop", uid=wanted.group_uid, generation=2))
        await shop.worker.apply(wanted.group_uid)
        assert shop.calls == [["start", "apply"]]
        assert (await shop.worker.status(wanted.group_uid)).observed_generation == 2

    asyncio.run(run())


def test_apply_says_what_failed(tmp_path: Path) -> None:
    """Control hears the reason, and its next apply begins anew."""

    async def run() -> None:
        shop = Shop(tmp_path)
        wanted = assignment("shop")
        folder = put_assignment(tmp_path, wanted)
        (folder / "fail").touch()
        with pytest.raises(DpacError, match="in the way"):
            await shop.worker.apply(wanted.group_uid)
        (folder / "fail").unlink()
        await shop.worker.apply(wanted.group_uid)
        assert shop.worker.names() == ["shop/disk"]

    asyncio.run(run())


def test_a_group_of_another_worker_is_given_up(tmp_path: Path) -> None:
    """A group that moved is drained here and the caller is told whose it is."""

    async def run() -> None:
        shop = Shop(tmp_path)
        wanted = assignment("shop")
        put_assignment(tmp_path, wanted)
        await shop.worker.apply(wanted.group_uid)
        put_assignment(tmp_path, assignment("shop", worker=3, uid=wanted.group_uid))
        with pytest.raises(Conflict, match="worker 3"):
            await shop.worker.apply(wanted.group_uid)
        assert shop.calls == [["start", "stop"]]
        with pytest.raises(NotFound):
            await shop.worker.status(wanted.group_uid)

    asyncio.run(run())


def test_a_detached_group_is_drained_and_stays_so(tmp_path: Path) -> None:
    """Detaching stops it; neither another apply nor the next start touches it again."""

    async def run() -> None:
        shop = Shop(tmp_path)
        wanted = assignment("shop")
        put_assignment(tmp_path, wanted)
        await shop.worker.apply(wanted.group_uid)
        put_assignment(tmp_path, assignment("shop", uid=wanted.group_uid, state="detached"))
        await shop.worker.apply(wanted.group_uid)
        await shop.worker.apply(wanted.group_uid)
        assert shop.calls == [["start", "stop"]]
        assert shop.worker.names() == []
        again = Shop(tmp_path)
        await again.worker.start()
        assert again.calls == []

    asyncio.run(run())


def test_a_detach_that_a_crash_interrupted_is_finished(tmp_path: Path) -> None:
    """What the journal alone holds reaches the volumes, even if the worker died while it drained."""

    async def run() -> None:
        shop = Shop(tmp_path)
        wanted = assignment("shop")
        put_assignment(tmp_path, wanted)
        await shop.worker.apply(wanted.group_uid)
        put_assignment(tmp_path, assignment("shop", uid=wanted.group_uid, state="detached"))
        again = Shop(tmp_path)  # the first one was killed
        await again.worker.start()
        assert again.calls == [["start", "stop"]]

    asyncio.run(run())


def test_drop_drains_what_was_not_drained(tmp_path: Path) -> None:
    """A group's folder goes only after its journal reached the volumes; dropping again is no error."""

    async def run() -> None:
        wanted = assignment("shop")
        folder = put_assignment(tmp_path, wanted)
        (folder / "spool").mkdir()
        shop = Shop(tmp_path)
        await shop.worker.drop(wanted.group_uid)
        assert shop.calls == [["start", "drop"]]
        assert not folder.exists()
        await shop.worker.drop(wanted.group_uid)

    asyncio.run(run())


def test_drop_keeps_a_journal_that_cannot_be_drained(tmp_path: Path) -> None:
    """Acknowledged writes are not thrown away with a group that does not start."""

    async def run() -> None:
        wanted = assignment("shop")
        folder = put_assignment(tmp_path, wanted)
        (folder / "spool").mkdir()
        (folder / "fail").touch()
        shop = Shop(tmp_path)
        with pytest.raises(OSError, match="in the way"):
            await shop.worker.drop(wanted.group_uid)
        assert (folder / "spool").exists()

    asyncio.run(run())


def test_stop_drains_every_group_and_waits_no_longer_than_told(tmp_path: Path) -> None:
    """One group that hangs or fails keeps no other from draining."""

    async def run() -> None:
        stopped: list[str] = []

        class Ending(FileRuntime):
            async def stop(self) -> None:
                if self.assignment.name == "hangs":
                    await asyncio.Event().wait()
                if self.assignment.name == "fails":
                    raise OSError("no")
                stopped.append(self.assignment.name)

        for name in ("hangs", "fails", "a", "b"):
            put_assignment(tmp_path, assignment(name))
        worker = Worker(
            0, tmp_path, lambda wanted: Ending(wanted, tmp_path / wanted.group_uid), NoMounts(), SystemClock()
        )
        await worker.start()
        await worker.stop(seconds_max=0.1)
        assert sorted(stopped) == ["a", "b"]

    asyncio.run(run())


def test_mounts_that_cannot_be_restored_do_not_stop_the_worker(tmp_path: Path) -> None:
    """Groups are served whatever happens to mounts."""

    class BadMounts(NoMounts):
        async def restore_all(self) -> None:
            raise OSError("no")

    async def run() -> None:
        put_assignment(tmp_path, assignment("shop"))
        worker = Worker(
            0, tmp_path, lambda wanted: FileRuntime(wanted, tmp_path / wanted.group_uid), BadMounts(), SystemClock()
        )
        await worker.start()
        assert worker.names() == ["shop/disk"]

    asyncio.run(run())


def test_calls_about_an_unknown_group_are_not_found(tmp_path: Path) -> None:
    """A worker says that it does not serve a group, which is not the same as being down."""

    async def run() -> None:
        worker = Shop(tmp_path).worker
        for call in (
            worker.status("9" * 32),
            worker.ship("9" * 32),
            worker.checkpoint("9" * 32, CheckpointRequest(request_id="12345678")),
        ):
            with pytest.raises(NotFound, match="does not serve"):
                await call

    asyncio.run(run())
