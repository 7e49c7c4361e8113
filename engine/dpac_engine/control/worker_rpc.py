"""What a worker answers control: `POST /rpc/METHOD` with JSON on its unix socket, errors of the one tree."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dpac_api.errors import DpacError, Invalid, NotFound
from dpac_api.models import CheckpointRequest, Model
from dpac_engine.control.assignment import ShardKey
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.worker_api import HoldChange, ShardMark, WorkerApi, WorkerMount, WorkerRewind

_log = logging.getLogger(__name__)


class OfGroup(Model):
    """A call about one group."""

    group_uid: ShardKey


class CheckpointOfGroup(OfGroup):
    """`checkpoint`."""

    request: CheckpointRequest


class OfOperation(OfGroup):
    """A call about an operation on a group's member."""

    operation_id: str


class HoldOfGroup(OfGroup):
    """`change_hold`."""

    change: HoldChange


class OrderOfGroup(OfGroup):
    """`order`."""

    order: LegOrder


class OfShard(Model):
    """A call about one shard of several."""

    key: ShardKey


class HoldWrites(OfShard):
    """`hold_writes`."""

    seconds_max: float


class OfToken(OfShard):
    """A call about what a shard gave a token for."""

    token: str


class OfMount(Model):
    """A call about one mount."""

    mount_id: str


class OfWorker(Model):
    """A call about the worker itself."""


class Method(NamedTuple):
    """How a call is read and carried out."""

    body: type[BaseModel]
    act: Callable[[WorkerApi, Any], Awaitable[BaseModel | None]]


METHODS: dict[str, Method] = {
    "apply": Method(OfGroup, lambda worker, body: worker.apply(body.group_uid)),
    "drop": Method(OfGroup, lambda worker, body: worker.drop(body.group_uid)),
    "status": Method(OfGroup, lambda worker, body: worker.status(body.group_uid)),
    "checkpoint": Method(CheckpointOfGroup, lambda worker, body: worker.checkpoint(body.group_uid, body.request)),
    "ship": Method(OfGroup, lambda worker, body: worker.ship(body.group_uid)),
    "reserve": Method(WorkerRewind, lambda worker, body: worker.reserve(body)),
    "rewind": Method(WorkerRewind, lambda worker, body: worker.rewind(body)),
    "rewind_progress": Method(
        OfOperation, lambda worker, body: worker.rewind_progress(body.group_uid, body.operation_id)
    ),
    "release": Method(OfOperation, lambda worker, body: worker.release(body.group_uid, body.operation_id)),
    "change_hold": Method(HoldOfGroup, lambda worker, body: worker.change_hold(body.group_uid, body.change)),
    "order": Method(OrderOfGroup, lambda worker, body: worker.order(body.group_uid, body.order)),
    "quiesce": Method(OfShard, lambda worker, body: worker.quiesce(body.key)),
    "unquiesce": Method(OfToken, lambda worker, body: worker.unquiesce(body.key, body.token)),
    "hold_writes": Method(HoldWrites, lambda worker, body: worker.hold_writes(body.key, body.seconds_max)),
    "mark_held": Method(ShardMark, lambda worker, body: worker.mark_held(body)),
    "release_writes": Method(OfToken, lambda worker, body: worker.release_writes(body.key, body.token)),
    "secure": Method(OfShard, lambda worker, body: worker.secure(body.key)),
    "mount": Method(WorkerMount, lambda worker, body: worker.mount(body)),
    "unmount": Method(OfMount, lambda worker, body: worker.unmount(body.mount_id)),
    "mount_states": Method(OfWorker, lambda worker, _: worker.mount_states()),
}


def rpc_app(worker: WorkerApi) -> Starlette:
    """The application that serves a worker's calls. Who reaches the socket may do everything: it lies in a private folder."""

    async def call(request: Request) -> Response:
        name = request.path_params["method"]
        try:
            method = METHODS.get(name)
            if method is None:
                raise NotFound(f"A worker has no method {name!r}; control and worker are of different versions.")
            answer = await method.act(worker, _body(method, await request.body()))
        except DpacError as error:
            return JSONResponse(error.to_wire(), error.http_status)
        except Exception as error:
            _log.exception("the call %s failed", name)
            wrapped = DpacError(f"An internal error of the worker: {type(error).__name__}: {error}. Its log has more.")
            return JSONResponse(wrapped.to_wire(), wrapped.http_status)
        text = "null" if answer is None else answer.model_dump_json()
        return Response(text, media_type="application/json")

    return Starlette(routes=[Route("/rpc/{method}", call, methods=["POST"])])


def _body(method: Method, data: bytes) -> BaseModel:
    try:
        return method.body.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(f"A call to the worker is malformed: {first['loc']}: {first['msg']}.") from error
