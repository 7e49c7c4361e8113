"""Routes of targets and groups: what is declared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from dpac_api.models import Group, GroupStatus, Name, PutGroup, PutTarget, RequestId, Target, TargetCheck, TargetUsage
from dpac_engine.control import catalogue_groups as groups
from dpac_engine.control import catalogue_targets as targets
from dpac_engine.control.catalogue import fingerprint_of
from dpac_engine.control.plane import Plane, Request
from dpac_engine.control.rest_access import requires

OnDestroy = Annotated[
    Literal["retain", "expire", "purge"] | None,
    Query(description="What becomes of the recovery points; as the group's spec says if it is left out."),
]
Retry = Annotated[RequestId, Query(description="Made by the client; a retry with the same id never acts twice.")]


def identity(method: str, path: str, body: Any, request_id: str) -> Request:
    """A changing request's identity."""
    return Request(request_id, fingerprint_of(method, path, body))


def target_routes(plane: Plane) -> APIRouter:
    """/v1/targets."""
    routes = APIRouter(prefix="/v1/targets", tags=["targets"])
    site_uid = plane.host.site.site_uid

    @routes.get("", dependencies=[requires(plane, "read")])
    async def list_targets() -> list[Target]:
        """Every target, by name."""
        found: list[Target] = await plane.read(lambda session: targets.list_targets(session, site_uid))
        return found

    @routes.get("/{name}", dependencies=[requires(plane, "read")])
    async def get_target(name: Name) -> Target:
        """One target."""
        found: Target = await plane.read(lambda session: targets.get_target(session, site_uid, name))
        return found

    @routes.put("/{name}", dependencies=[requires(plane, "admin")])
    async def put_target(name: Name, put: PutTarget) -> Target:
        """Create, change or adopt a target."""
        answer = await plane.change(
            identity("PUT", f"targets/{name}", put.model_dump(mode="json"), put.request_id),
            lambda session: targets.put_target(
                session, name, put, data=plane.host.data, site_uid=site_uid, now=plane.now()
            ).model_dump(mode="json"),
        )
        await plane.retarget(name)
        return Target.model_validate(answer)

    @routes.delete("/{name}", status_code=204, dependencies=[requires(plane, "admin")])
    async def delete_target(name: Name, request_id: Retry) -> None:
        """Forget a target; what lies there stays. 409 names the groups that use it."""

        def delete(session: Any) -> dict[str, Any]:
            targets.delete_target(session, name)
            return {}

        await plane.change(identity("DELETE", f"targets/{name}", None, request_id), delete)

    @routes.get("/{name}/usage", dependencies=[requires(plane, "read")])
    async def get_usage(name: Name) -> TargetUsage:
        """What a target holds, how it is used, and what that costs a month."""
        target: Target = await plane.read(lambda session: targets.get_target(session, site_uid, name))
        usages = await plane.target_usages(await plane.statuses())
        return next(usage for usage in usages if usage.target == target.name)

    @routes.post("/{name}/check", dependencies=[requires(plane, "operate")])
    async def check_target(name: Name) -> TargetCheck:
        """Probe a target: what replication needs of it."""
        return await plane.check_target(name)

    return routes


def group_routes(plane: Plane) -> APIRouter:
    """/v1/groups, the groups themselves."""
    routes = APIRouter(prefix="/v1/groups", tags=["groups"])
    host = plane.host

    @routes.get("", dependencies=[requires(plane, "read")])
    async def list_groups(lifecycle: Literal["active", "retained"] = "active") -> list[Group]:
        """Groups by name: the active ones, or those deleted whose recovery points are retained."""
        found: list[Group] = await plane.read(lambda session: groups.list_groups(session, host, lifecycle))
        return found

    @routes.get("/{name}", dependencies=[requires(plane, "read")])
    async def get_group(name: Name, retained: bool = False) -> Group:
        """One group; 404 for one that is only retained, unless that is asked for."""
        found: Group = await plane.read(
            lambda session: groups.wire(groups.group_row(session, name, retained=retained), host)
        )
        return found

    @routes.put("/{name}", dependencies=[requires(plane, "admin")])
    async def put_group(name: Name, put: PutGroup) -> Group:
        """Create, change, adopt or resume a group. A member whose kind or path changes is removed and a new one takes its name."""
        answer = await plane.change(
            identity("PUT", f"groups/{name}", put.model_dump(mode="json"), put.request_id),
            lambda session: groups.put_group(session, name, put, host, plane.now()).model_dump(mode="json"),
        )
        await plane.settle(name)
        return Group.model_validate(answer)

    @routes.delete("/{name}", status_code=204, dependencies=[requires(plane, "admin")])
    async def delete_group(name: Name, request_id: Retry, on_destroy: OnDestroy = None) -> None:
        """Stop protecting a group."""
        await plane.delete_group(identity("DELETE", f"groups/{name}", on_destroy, request_id), name, on_destroy)

    @routes.get("/{name}/status", dependencies=[requires(plane, "read")])
    async def get_status(name: Name) -> GroupStatus:
        """What changes about a group by itself."""
        return await plane.status(name)

    return routes
