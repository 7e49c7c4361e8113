"""Routes of orders to legs: pause, resume, resync."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from dpac_api.models import Name, Operation, PauseRequest, ResumeRequest, ResyncRequest
from dpac_engine.control.leg_orders import Verb
from dpac_engine.control.plane import Plane
from dpac_engine.control.rest_access import requires
from dpac_engine.control.rest_groups import identity
from dpac_engine.control.steering import SteerRequest, steer


def leg_routes(plane: Plane) -> APIRouter:
    """/v1/groups/{name}/pause, resume, resync."""
    routes = APIRouter(prefix="/v1/groups/{name}", tags=["legs"])
    asked_by = requires(plane, "operate")

    async def done(name: str, verb: Verb, body: SteerRequest, by: str) -> Operation:
        async def act() -> dict[str, Any]:
            return (await steer(plane, name, verb, body, by)).model_dump(mode="json")

        path = f"groups/{name}/{verb.lower()}"
        request = identity("POST", path, body.model_dump(mode="json"), body.request_id)
        return Operation.model_validate(await plane.once(request, act))

    @routes.post("/pause")
    async def pause(name: Name, body: PauseRequest, by: str = asked_by) -> Operation:
        """Send nothing to the target of a leg, or of all, until it is resumed; it is so, and on record, when this returns."""
        return await done(name, "Pause", body, by)

    @routes.post("/resume")
    async def resume(name: Name, body: ResumeRequest, by: str = asked_by) -> Operation:
        """Go on with a leg, or with all; the target is caught up with behind the answer."""
        return await done(name, "Resume", body, by)

    @routes.post("/resync")
    async def resync(name: Name, body: ResyncRequest, by: str = asked_by) -> Operation:
        """Have a leg, or all, compare what the target holds, or send everything anew, behind the answer."""
        return await done(name, "Resync", body, by)

    return routes
