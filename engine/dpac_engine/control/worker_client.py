"""A worker as control calls it; its side of `worker_rpc`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from dpac_api.errors import DpacError, TimedOut, Unreachable, from_wire
from dpac_api.models import Checkpoint, CheckpointRequest, GroupStatus, Mount
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.worker_api import (
    HoldChange,
    HoldOutcome,
    MountStates,
    RewindProgress,
    ShardHeld,
    ShardMark,
    ShardQuiet,
    WorkerMount,
    WorkerRewind,
)
from dpac_engine.control.worker_rpc import (
    CheckpointOfGroup,
    HoldOfGroup,
    HoldWrites,
    OfGroup,
    OfMount,
    OfOperation,
    OfShard,
    OfToken,
    OfWorker,
    OrderOfGroup,
)

CONNECT_SECONDS = 2.0
STATUS_SECONDS = 5.0
ACT_SECONDS = 60.0
SHIP_SECONDS = 300.0
RESERVE_SECONDS = 110.0
"""A directory is captured in full for it; less than what an operation waits for any answer."""
QUIESCE_SECONDS = 50.0
"""Less than what control waits for the checkpoint that asks for it."""
_Answer = TypeVar("_Answer", bound=BaseModel)


class WorkerClient:
    """One worker, from control (a `WorkerApi`). Belongs to one event loop.

    The supervisor listens on the worker's socket, so a call made while the worker is being restarted waits for it.
    Raises what the worker raised; Unreachable if it is down, or died during the call; TimedOut if it does not answer.
    """

    def __init__(self, path: Path, *, status_seconds: float = STATUS_SECONDS) -> None:
        self._path = path
        self._status_seconds = status_seconds
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://worker", trust_env=False
        )

    async def apply(self, group_uid: str) -> None:
        """See `WorkerApi.apply`."""
        await self._call("apply", OfGroup(group_uid=group_uid), ACT_SECONDS)

    async def drop(self, group_uid: str) -> None:
        """See `WorkerApi.drop`."""
        await self._call("drop", OfGroup(group_uid=group_uid), ACT_SECONDS)

    async def status(self, group_uid: str) -> GroupStatus:
        """See `WorkerApi.status`."""
        return await self._ask("status", OfGroup(group_uid=group_uid), self._status_seconds, GroupStatus)

    async def checkpoint(self, group_uid: str, request: CheckpointRequest) -> Checkpoint:
        """See `WorkerApi.checkpoint`."""
        body = CheckpointOfGroup(group_uid=group_uid, request=request)
        return await self._ask("checkpoint", body, ACT_SECONDS, Checkpoint)

    async def ship(self, group_uid: str) -> None:
        """See `WorkerApi.ship`."""
        await self._call("ship", OfGroup(group_uid=group_uid), SHIP_SECONDS)

    async def reserve(self, request: WorkerRewind) -> None:
        """See `WorkerApi.reserve`."""
        await self._call("reserve", request, RESERVE_SECONDS)

    async def rewind(self, request: WorkerRewind) -> None:
        """See `WorkerApi.rewind`."""
        await self._call("rewind", request, ACT_SECONDS)

    async def rewind_progress(self, group_uid: str, operation_id: str) -> RewindProgress:
        """See `WorkerApi.rewind_progress`."""
        body = OfOperation(group_uid=group_uid, operation_id=operation_id)
        return await self._ask("rewind_progress", body, self._status_seconds, RewindProgress)

    async def release(self, group_uid: str, operation_id: str) -> None:
        """See `WorkerApi.release`."""
        await self._call("release", OfOperation(group_uid=group_uid, operation_id=operation_id), ACT_SECONDS)

    async def change_hold(self, group_uid: str, change: HoldChange) -> HoldOutcome:
        """See `WorkerApi.change_hold`."""
        return await self._ask("change_hold", HoldOfGroup(group_uid=group_uid, change=change), ACT_SECONDS, HoldOutcome)

    async def quiesce(self, key: str) -> ShardQuiet:
        """See `WorkerApi.quiesce`."""
        return await self._ask("quiesce", OfShard(key=key), QUIESCE_SECONDS, ShardQuiet)

    async def unquiesce(self, key: str, token: str) -> None:
        """See `WorkerApi.unquiesce`."""
        await self._call("unquiesce", OfToken(key=key, token=token), self._status_seconds)

    async def order(self, group_uid: str, order: LegOrder) -> None:
        """See `WorkerApi.order`."""
        await self._call("order", OrderOfGroup(group_uid=group_uid, order=order), ACT_SECONDS)

    async def hold_writes(self, key: str, seconds_max: float) -> ShardHeld:
        """See `WorkerApi.hold_writes`."""
        return await self._ask("hold_writes", HoldWrites(key=key, seconds_max=seconds_max), seconds_max, ShardHeld)

    async def mark_held(self, request: ShardMark) -> Checkpoint:
        """See `WorkerApi.mark_held`."""
        return await self._ask("mark_held", request, self._status_seconds, Checkpoint)

    async def release_writes(self, key: str, token: str) -> None:
        """See `WorkerApi.release_writes`."""
        await self._call("release_writes", OfToken(key=key, token=token), self._status_seconds)

    async def secure(self, key: str) -> None:
        """See `WorkerApi.secure`."""
        await self._call("secure", OfShard(key=key), ACT_SECONDS)

    async def mount(self, request: WorkerMount) -> Mount:
        """See `WorkerApi.mount`."""
        return await self._ask("mount", request, ACT_SECONDS, Mount)

    async def unmount(self, mount_id: str) -> None:
        """See `WorkerApi.unmount`."""
        await self._call("unmount", OfMount(mount_id=mount_id), ACT_SECONDS)

    async def mount_states(self) -> MountStates:
        """See `WorkerApi.mount_states`."""
        return await self._ask("mount_states", OfWorker(), self._status_seconds, MountStates)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(self, method: str, body: BaseModel, seconds_max: float, answer: type[_Answer]) -> _Answer:
        content = await self._call(method, body, seconds_max)
        try:
            return answer.model_validate_json(content)
        except ValidationError as error:
            raise DpacError(
                f"The worker at {self._path} answered {method} with something else. Restart the backend: control and "
                "worker are of different versions."
            ) from error

    async def _call(self, method: str, body: BaseModel, seconds_max: float) -> bytes:
        try:
            response = await self._http.post(
                f"/rpc/{method}",
                content=body.model_dump_json(),
                timeout=httpx.Timeout(seconds_max, connect=CONNECT_SECONDS),
            )
        except httpx.ConnectTimeout as error:
            raise Unreachable(f"The worker at {self._path} takes no calls. It is busy, or being restarted.") from error
        except httpx.TimeoutException as error:
            raise TimedOut(
                f"The worker at {self._path} did not answer {method} within {seconds_max:.0f} s. "
                "It may still do it; look at `dpac status` and at the worker's log."
            ) from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"The worker at {self._path} does not answer ({error or type(error).__name__}). "
                "The supervisor restarts a worker that died; try again."
            ) from error
        if response.status_code == 200:
            return response.content
        try:
            wire = response.json()
        except ValueError:
            wire = None
        raise from_wire(response.status_code, wire)
