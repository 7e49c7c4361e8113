"""Calls from control to a worker over a real unix socket: every method, every error, and no worker at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpac_api import errors
from dpac_api.errors import DpacError, Invalid, NotFound, TimedOut, Unreachable
from dpac_api.models import Checkpoint, CheckpointRequest, DataState, GroupStatus, Mount, SlaState
from dpac_engine.control.http_server import HttpServer
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.sockets import listen_unix
from dpac_engine.control.worker_api import (
    HoldChange,
    HoldOutcome,
    MountState,
    MountStates,
    RewindProgress,
    ShardHeld,
    ShardMark,
    ShardQuiet,
    WorkerMount,
    WorkerRewind,
)
from dpac_engine.control.worker_client import WorkerClient
from dpac_engine.control.worker_rpc import METHODS, rpc_app
from dpac_engine.core.shared_mark import Held, Order

UID = "1" * 32
SHARD = f"{UID}.1"
SHARD_QUIET = ShardQuiet(token="q", members=["app"])
LEG_ORDER = LegOrder(verb="Pause", leg="copies", by="ops", reason="disks", since_ns=7)
SHARD_HELD = ShardHeld(token="t", sequence=7, void_from=6, stamp_ns=9, news=False)
ORDER = Order(8, 10, (7, 8), False)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
STATUS = GroupStatus(
    data_state=DataState.BACKLOG,
    sla_state=SlaState.MEETING,
    protected=True,
    seeded=True,
    checkpoint_sequence=7,
    head_lsn=8,
    durable_lsn=8,
    spool_bytes=9,
    members={},
    legs={},
    observed_generation=2,
)
CHECKPOINT = Checkpoint(id="ck-1-7", time=NOW, lsn={UID: 8}, membership_version=1, consistency="app", tags=["a"])
MOUNT = Mount(id="m1", group="shop", checkpoint="ck-1-7", checkpoint_time=NOW, members={"disk": "nbd:x"}, created=NOW)
CHECKPOINT_REQUEST = CheckpointRequest(request_id="12345678", tag="a", app=True)
MOUNT_REQUEST = WorkerMount(mount_id="m1", group_uid=UID, target="copies", checkpoint="ck-1-7", members=["disk"])
REWIND = WorkerRewind(
    operation_id="op-1", group_uid=UID, ordinal=1, member="disk", target="copies", checkpoint="ck-1-7"
)
REWOUND = RewindProgress(state="running", done_bytes=5, total_bytes=7, bytes_written=3)
MOUNTS = MountStates(mounts=[MountState(mount_id="m1", hydrated_fraction=0.25, problem="slow")])


HOLD_CHANGE = HoldChange(checkpoint="ck-1-4", held=True, lsn=256, since_ns=1, until_ns=2, reason="audit")
HELD = HoldOutcome(done=["a"], lacking=["b"], failed={"c": "away"})


class RecordingWorker:
    """A worker that notes its calls and answers, or fails, as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failure: BaseException | None = None
        self.gate: asyncio.Event | None = None

    async def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def apply(self, group_uid: str) -> None:
        await self._called("apply", group_uid)

    async def drop(self, group_uid: str) -> None:
        await self._called("drop", group_uid)

    async def status(self, group_uid: str) -> GroupStatus:
        await self._called("status", group_uid)
        return STATUS

    async def checkpoint(self, group_uid: str, request: CheckpointRequest) -> Checkpoint:
        await self._called("checkpoint", group_uid, request)
        return CHECKPOINT

    async def ship(self, group_uid: str) -> None:
        await self._called("ship", group_uid)

    async def reserve(self, request: WorkerRewind) -> None:
        await self._called("reserve", request)

    async def rewind(self, request: WorkerRewind) -> None:
        await self._called("rewind", request)

    async def rewind_progress(self, group_uid: str, operation_id: str) -> RewindProgress:
        await self._called("rewind_progress", group_uid, operation_id)
        return REWOUND

    async def release(self, group_uid: str, operation_id: str) -> None:
        await self._called("release", group_uid, operation_id)

    async def change_hold(self, group_uid: str, change: HoldChange) -> HoldOutcome:
        await self._called("change_hold", group_uid, change)
        return HELD

    async def quiesce(self, key: str) -> ShardQuiet:
        await self._called("quiesce", key)
        return SHARD_QUIET

    async def unquiesce(self, key: str, token: str) -> None:
        await self._called("unquiesce", key, token)

    async def order(self, group_uid: str, order: LegOrder) -> None:
        await self._called("order", group_uid, order)

    async def hold_writes(self, key: str, seconds_max: float) -> ShardHeld:
        await self._called("hold_writes", key, seconds_max)
        return SHARD_HELD

    async def mark_held(self, request: ShardMark) -> Checkpoint:
        await self._called("mark_held", request)
        return CHECKPOINT

    async def release_writes(self, key: str, token: str) -> None:
        await self._called("release_writes", key, token)

    async def secure(self, key: str) -> None:
        await self._called("secure", key)

    async def mount(self, request: WorkerMount) -> Mount:
        await self._called("mount", request)
        return MOUNT

    async def unmount(self, mount_id: str) -> None:
        await self._called("unmount", mount_id)

    async def mount_states(self) -> MountStates:
        await self._called("mount_states")
        return MOUNTS


def served(folder: Path, test: Callable[[RecordingWorker, WorkerClient], Awaitable[None]], **client: Any) -> None:
    """Run a test against a worker's socket."""

    async def run() -> None:
        worker = RecordingWorker()
        path = folder / "worker-0.rpc"
        server = HttpServer(rpc_app(worker), listen_unix(path))
        await server.start()
        caller = WorkerClient(path, **client)
        try:
            await test(worker, caller)
        finally:
            await caller.close()
            await server.stop()

    asyncio.run(run())


def test_every_method_arrives_and_its_answer_returns(tmp_path: Path) -> None:
    """Arguments and answers cross the socket unchanged."""

    async def test(worker: RecordingWorker, client: WorkerClient) -> None:
        await client.apply(UID)
        await client.drop(UID)
        assert await client.status(UID) == STATUS
        assert await client.checkpoint(UID, CHECKPOINT_REQUEST) == CHECKPOINT
        await client.ship(UID)
        assert await client.change_hold(UID, HOLD_CHANGE) == HELD
        assert await client.mount(MOUNT_REQUEST) == MOUNT
        await client.unmount("m1")
        await client.reserve(REWIND)
        await client.rewind(REWIND)
        assert await client.rewind_progress(UID, "op-1") == REWOUND
        await client.release(UID, "op-1")
        assert await client.mount_states() == MOUNTS
        assert await client.quiesce(SHARD) == SHARD_QUIET
        await client.order(UID, LEG_ORDER)
        assert await client.hold_writes(SHARD, 0.5) == SHARD_HELD
        assert SHARD_HELD.as_held() == Held("t", 7, 6, 9, False)
        assert await client.mark_held(ShardMark.of(SHARD, "t", ORDER, "a", "q")) == CHECKPOINT
        await client.release_writes(SHARD, "t")
        await client.unquiesce(SHARD, "q")
        await client.secure(SHARD)
        assert worker.calls == [
            ("apply", UID),
            ("drop", UID),
            ("status", UID),
            ("checkpoint", UID, CHECKPOINT_REQUEST),
            ("ship", UID),
            ("change_hold", UID, HOLD_CHANGE),
            ("mount", MOUNT_REQUEST),
            ("unmount", "m1"),
            ("reserve", REWIND),
            ("rewind", REWIND),
            ("rewind_progress", UID, "op-1"),
            ("release", UID, "op-1"),
            ("mount_states",),
            ("quiesce", SHARD),
            ("order", UID, LEG_ORDER),
            ("hold_writes", SHARD, 0.5),
            ("mark_held", ShardMark.of(SHARD, "t", ORDER, "a", "q")),
            ("release_writes", SHARD, "t"),
            ("unquiesce", SHARD, "q"),
            ("secure", SHARD),
        ]
        assert worker.calls[-4][1].order() == ORDER
        assert {call[0] for call in worker.calls} == set(METHODS)

    served(tmp_path, test)


@pytest.mark.parametrize("kind", sorted(errors._tree(DpacError).values(), key=lambda kind: kind.code))
def test_every_error_of_the_tree_crosses_the_socket(tmp_path: Path, kind: type[DpacError]) -> None:
    """Class, message and property path are the same on the other side."""

    async def test(worker: RecordingWorker, client: WorkerClient) -> None:
        worker.failure = kind("what to do next", property_path="members.disk")
        with pytest.raises(DpacError) as raised:
            await client.status(UID)
        assert type(raised.value) is kind
        assert raised.value.message == "what to do next"
        assert raised.value.property_path == "members.disk"

    served(tmp_path, test)


def test_a_bug_in_the_worker_is_an_error_and_not_its_end(tmp_path: Path) -> None:
    """Control hears what broke; the worker answers the next call."""

    async def test(worker: RecordingWorker, client: WorkerClient) -> None:
        worker.failure = ZeroDivisionError("by zero")
        with pytest.raises(DpacError, match="ZeroDivisionError: by zero"):
            await client.apply(UID)
        worker.failure = None
        await client.apply(UID)

    served(tmp_path, test)


def test_unknown_methods_and_malformed_bodies_are_refused(tmp_path: Path) -> None:
    """Nothing is called for what is not understood."""

    async def test(worker: RecordingWorker, _: WorkerClient) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "worker-0.rpc"))
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as raw:
            answers = [
                await raw.post("/rpc/format", content="{}"),
                await raw.post("/rpc/apply", content="{"),
                await raw.post("/rpc/apply", content='{"group_uid": "../x"}'),
            ]
        assert [errors.from_wire(answer.status_code, answer.json()).__class__ for answer in answers] == [
            NotFound,
            Invalid,
            Invalid,
        ]
        assert worker.calls == []

    served(tmp_path, test)


def test_no_worker_is_unreachable(tmp_path: Path) -> None:
    """Neither a missing socket nor one that nobody listens on looks like a missing group."""

    async def run() -> None:
        with pytest.raises(Unreachable):
            await WorkerClient(tmp_path / "none.rpc").status(UID)
        listen_unix(tmp_path / "dead.rpc").close()
        with pytest.raises(Unreachable):
            await WorkerClient(tmp_path / "dead.rpc").status(UID)

    asyncio.run(run())


def test_a_worker_that_dies_during_a_call_is_unreachable(tmp_path: Path) -> None:
    """A connection that ends without an answer is Unreachable, which is worth a retry."""

    async def run() -> None:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_unix_server(hang_up, tmp_path / "w.rpc"):
            with pytest.raises(Unreachable):
                await WorkerClient(tmp_path / "w.rpc").apply(UID)

    asyncio.run(run())


def test_a_worker_that_does_not_answer_times_out(tmp_path: Path) -> None:
    """Status has a deadline; what was asked may still happen, so it is TimedOut."""

    async def test(worker: RecordingWorker, client: WorkerClient) -> None:
        worker.gate = asyncio.Event()
        try:
            with pytest.raises(TimedOut, match="status"):
                await client.status(UID)
        finally:
            worker.gate.set()

    served(tmp_path, test, status_seconds=0.1)


def test_a_call_waits_for_a_worker_that_is_being_restarted(tmp_path: Path) -> None:
    """The supervisor listens, so a call made between two lives of a worker is answered by the second."""

    async def run() -> None:
        path = tmp_path / "worker-0.rpc"
        listening = listen_unix(path)
        client = WorkerClient(path)
        asked = asyncio.create_task(client.status(UID))
        probe = socket.socket(socket.AF_UNIX)
        probe.connect(str(path))
        server = HttpServer(rpc_app(RecordingWorker()), listening)
        await server.start()
        assert await asked == STATUS
        probe.close()
        await client.close()
        await server.stop()

    asyncio.run(run())
