"""Pause, resume and resync, as control does them: journalled as operations, done when the request returns."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, DpacError, NotFound
from dpac_api.models import Operation, OperationStep, PauseRequest, Phase, ResumeRequest, ResyncRequest, SyncLegSpec
from dpac_engine.control import catalogue_operations as journal
from dpac_engine.control.leg_orders import LegOrder, Verb
from dpac_engine.control.moments import nanoseconds
from dpac_engine.control.plane import Plane
from dpac_engine.control.timeline import GroupView

STEP = "tell the legs"
SteerRequest = PauseRequest | ResumeRequest | ResyncRequest


async def steer(plane: Plane, name: str, verb: Verb, request: SteerRequest, by: str) -> Operation:
    """Carry it out in every shard. Conflict if the application would wait, and the request does not say that it may."""
    group = await plane.view(name, retained=False)
    _check(group, request)
    order = LegOrder(
        verb=verb,
        leg=request.leg,
        by=by,
        reason=request.reason if isinstance(request, PauseRequest) else "",
        since_ns=nanoseconds(plane.now()),
        full=isinstance(request, ResyncRequest) and request.full,
    )

    def begin(session: Session) -> Operation:
        body = {**request.model_dump(mode="json"), "by": by}
        operation = journal.add_operation(session, verb, group, body, [STEP], plane.now())
        journal.note_step(session, operation.id, 0, OperationStep(name=STEP, state="running", started=plane.now()))
        return operation

    operation = await plane.write(begin)
    legs: dict[str, Any] = {"legs": [request.leg] if request.leg else list(group.spec.replication)}
    try:
        for key, worker in group.shards:
            await plane.worker(worker).order(key, order)
    except BaseException as cause:
        message = cause.message if isinstance(cause, DpacError) else f"It was interrupted: {type(cause).__name__}."
        await plane.end(operation, Phase.FAILED, {}, message)
        raise
    await plane.end(operation, Phase.SUCCEEDED, legs, None)
    done: Operation = await plane.read(lambda session: journal.get_operation(session, operation.id))
    return done


def _check(group: GroupView, request: SteerRequest) -> None:
    legs = group.spec.replication
    if not legs:
        raise NotFound(f"The group {group.name!r} has no leg. Add one to `replication`.")
    if request.leg is not None and request.leg not in legs:
        raise NotFound(f"The group {group.name!r} has no leg {request.leg!r} (its legs: {', '.join(legs)}).")
    chosen = [request.leg] if request.leg is not None else list(legs)
    specs = ((name, legs[name]) for name in chosen)
    stops = [name for name, leg in specs if isinstance(leg, SyncLegSpec) and leg.on_loss == "stop"]
    if isinstance(request, PauseRequest) and stops and not request.stop_writes:
        raise Conflict(
            f"The leg {stops[0]!r} is a sync one with on_loss=stop: once it is paused the application waits, without an error, until it is "
            "resumed. Nothing was changed. Say so with `stop_writes` (`--yes`), or declare on_loss=async first.",
            property_path="stop_writes",
        )
