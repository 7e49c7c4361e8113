"""Routes of checkpoints, operations and mounts: getting data back, and proving that one can."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, Invalid, NotFound
from dpac_api.models import (
    Checkpoint,
    CheckpointPage,
    CheckpointRange,
    CheckpointRequest,
    DifferencePage,
    DrillRequest,
    FilePage,
    HoldRequest,
    Mount,
    MountRequest,
    Name,
    Operation,
    RestoreRequest,
    Selector,
    Tag,
    TargetSpace,
    VerifyRequest,
)
from dpac_engine.control import browsing
from dpac_engine.control import catalogue_operations as journal
from dpac_engine.control.catalogue_targets import member_claims, target_claims
from dpac_engine.control.host_checks import check_apart, check_restore_over, check_restore_path
from dpac_engine.control.moments import nanoseconds
from dpac_engine.control.plane import Plane
from dpac_engine.control.recovery import MarkFilter
from dpac_engine.control.rest_access import requires
from dpac_engine.control.rest_groups import Retry, identity
from dpac_engine.control.timeline import PAGE_MAX, GroupView, parse_cursor
from dpac_engine.core.checkpoints import sequence_of


def checkpoint_routes(plane: Plane) -> APIRouter:
    """/v1/groups/{name}/checkpoints and checkpoint-ranges."""
    routes = APIRouter(prefix="/v1/groups/{name}", tags=["checkpoints"])

    @routes.get("/checkpoints", dependencies=[requires(plane, "read")])
    async def list_checkpoints(
        name: Name,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
        cursor: Annotated[str | None, Query(pattern=r"^([0-9]+|ck-[0-9]+-[0-9]+)$")] = None,
        tag: Tag | None = None,
        app: bool = False,
        target: Name | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        held: bool = False,
    ) -> CheckpointPage:
        """Recoverable checkpoints, newest first, by what the targets hold right now."""
        group = await plane.view(name)
        # A checkpoint is told to the microsecond: one told as `after` itself was not taken after it.
        after_ns = None if after is None else _nanoseconds(after) + 999
        before_ns = None if before is None else _nanoseconds(before)
        wanted = MarkFilter(parse_cursor(cursor), tag, app, before_ns, after_ns)
        page = await asyncio.to_thread(plane.timeline.page, group, wanted, target=target, limit=limit, held=held)
        return page.model_copy(update={"items": await plane.with_locks(group, page.items)})

    @routes.get("/checkpoint-ranges", dependencies=[requires(plane, "read")])
    async def list_ranges(name: Name) -> list[CheckpointRange]:
        """The runs of checkpoints that each target holds."""
        return await asyncio.to_thread(plane.timeline.ranges, await plane.view(name))

    @routes.get("/space", dependencies=[requires(plane, "read")])
    async def get_space(name: Name) -> list[TargetSpace]:
        """What the group takes at each target, and what of it can be had back."""
        return await asyncio.to_thread(plane.space.measure, await plane.view(name))

    @routes.get("/files", dependencies=[requires(plane, "read")])
    async def list_files(
        name: Name,
        member: Name,
        at: Selector = "latest",
        target: Name | None = None,
        glob: Annotated[str | None, Query(min_length=1, max_length=4096)] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
        cursor: Annotated[str | None, Query(pattern=browsing.CURSOR)] = None,
    ) -> FilePage:
        """The paths of a directory member at a checkpoint."""
        group = await plane.view(name)
        return await asyncio.to_thread(browsing.files, plane.timeline, group, member, at, target, glob, limit, cursor)

    @routes.get("/difference", dependencies=[requires(plane, "read")])
    async def difference(
        name: Name,
        before: Selector,
        after: Selector = "latest",
        member: Name | None = None,
        target: Name | None = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
        cursor: Annotated[str | None, Query(pattern=browsing.CURSOR)] = None,
    ) -> DifferencePage:
        """How two checkpoints differ: changed paths of directories, changed ranges of volumes."""
        group = await plane.view(name)
        return await asyncio.to_thread(
            browsing.difference, plane.timeline, group, before, after, member, target, limit, cursor
        )

    @routes.get("/checkpoints/{selector}", dependencies=[requires(plane, "read")])
    async def get_checkpoint(name: Name, selector: Selector) -> Checkpoint:
        """The checkpoint that a selector means."""
        group = await plane.view(name)
        [found] = await plane.with_locks(group, [await asyncio.to_thread(plane.timeline.checkpoint, group, selector)])
        return found

    @routes.post("/checkpoints", dependencies=[requires(plane, "operate")])
    async def take_checkpoint(name: Name, body: CheckpointRequest) -> Checkpoint:
        """Mark the group now; it is taken when this returns."""

        async def take() -> dict[str, Any]:
            return (await plane.take_checkpoint(name, body)).model_dump(mode="json")

        request = identity("POST", f"groups/{name}/checkpoints", body.model_dump(mode="json"), body.request_id)
        return Checkpoint.model_validate(await plane.once(request, take))

    @routes.post("/holds", dependencies=[requires(plane, "operate")])
    async def hold(name: Name, body: HoldRequest) -> Checkpoint:
        """Hold a checkpoint at every target that has it, until it is released."""

        async def act() -> dict[str, Any]:
            return (await plane.hold(name, body)).model_dump(mode="json")

        request = identity("POST", f"groups/{name}/holds", body.model_dump(mode="json"), body.request_id)
        return Checkpoint.model_validate(await plane.once(request, act))

    @routes.delete("/holds/{checkpoint}", status_code=204, dependencies=[requires(plane, "admin")])
    async def release(name: Name, checkpoint: str, request_id: Retry) -> None:
        """Hold a checkpoint no longer."""

        async def act() -> dict[str, Any]:
            sequence_of(checkpoint)
            await plane.release(name, checkpoint)
            return {}

        await plane.once(identity("DELETE", f"groups/{name}/holds/{checkpoint}", None, request_id), act)

    return routes


def _nanoseconds(moment: datetime) -> int:
    return nanoseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def operation_routes(plane: Plane) -> APIRouter:
    """Beginning operations, and looking at them."""
    routes = APIRouter(prefix="/v1", tags=["operations"])

    def no_check(_: Session, group: GroupView) -> None:
        if not group.targets:
            raise NotFound(f"The group {group.name!r} has no leg, so no target holds anything of it. Add one.")

    def _check_in_place(group: GroupView, member: str) -> None:
        if member not in group.spec.members:
            raise Conflict(
                f"The group {group.name!r} has no member {member!r} any more. Restore it to a new path.",
                property_path="member",
            )

    @routes.post("/groups/{name}/drills", dependencies=[requires(plane, "operate")])
    async def begin_drill(name: Name, body: DrillRequest) -> Operation:
        """Rehearse recovery from a target without touching the application; the result is a signed DrillReport."""
        content = body.model_dump(mode="json")
        return await plane.begin(
            identity("POST", f"groups/{name}/drills", content, body.request_id), name, "Drill", content, no_check
        )

    @routes.post("/groups/{name}/restores", dependencies=[requires(plane, "admin")])
    async def begin_restore(name: Name, body: RestoreRequest) -> Operation:
        """Write one member, as it was at a checkpoint, to a new path or over itself; the result is a RestoreReport."""

        def check(session: Session, group: GroupView) -> None:
            no_check(session, group)
            if body.member not in group.member_names.values():
                names = ", ".join(sorted(set(group.member_names.values())))
                raise NotFound(f"The group {name!r} never had a member {body.member!r} (it had: {names}).")
            if body.to is None:
                _check_in_place(group, body.member)
                return
            check_apart(body.to, "to", [*target_claims(session), *member_claims(session)], plane.host.data)
            kinds = group.spec.members
            if body.paths and body.member in kinds and kinds[body.member].kind == "volume":
                raise Invalid(
                    f"The member {body.member!r} is a volume: it has bytes and no paths. Mount it (`dpac mount`), and copy files "
                    "out of its file system.",
                    property_path="paths",
                )
            if body.over:
                check_restore_over(body.to, kinds[body.member].kind if body.member in kinds else "volume")
                return
            check_restore_path(body.to, directory=body.member not in kinds or kinds[body.member].kind == "directory")

        content = body.model_dump(mode="json")
        return await plane.begin(
            identity("POST", f"groups/{name}/restores", content, body.request_id), name, "Restore", content, check
        )

    @routes.post("/groups/{name}/verifications", dependencies=[requires(plane, "operate")])
    async def begin_verification(name: Name, body: VerifyRequest) -> Operation:
        """Read back what the targets hold and check every byte; the result is a VerifyReport."""

        def check(session: Session, group: GroupView) -> None:
            no_check(session, group)
            if body.target is not None and body.target not in group.targets:
                raise NotFound(
                    f"The group {name!r} has no recovery points at {body.target!r} (only at: {', '.join(group.targets)})."
                )

        content = body.model_dump(mode="json")
        return await plane.begin(
            identity("POST", f"groups/{name}/verifications", content, body.request_id), name, "Verify", content, check
        )

    @routes.get("/operations", dependencies=[requires(plane, "read")])
    async def list_operations(
        group: Name | None = None,
        kind: Literal["Drill", "Restore", "Verify", "Checkpoint", "Pause", "Resume", "Resync"] | None = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    ) -> list[Operation]:
        """Operations, newest first."""
        found: list[Operation] = await plane.read(
            lambda session: journal.list_operations(session, group=group, kind=kind, limit=limit)
        )
        return found

    @routes.get("/operations/{operation_id}", dependencies=[requires(plane, "read")])
    async def get_operation(operation_id: str) -> Operation:
        """One operation as it stands."""
        found: Operation = await plane.read(lambda session: journal.get_operation(session, operation_id))
        return found

    return routes


def mount_routes(plane: Plane) -> APIRouter:
    """Opening checkpoints for use."""
    routes = APIRouter(prefix="/v1", tags=["mounts"])

    @routes.get("/mounts", dependencies=[requires(plane, "read")])
    async def list_mounts() -> list[Mount]:
        """What is mounted, oldest first."""
        return await plane.mounts()

    @routes.post("/groups/{name}/mounts", dependencies=[requires(plane, "admin")])
    async def mount(name: Name, body: MountRequest) -> Mount:
        """Open a checkpoint: volumes as writable NBD exports, directories as a folder."""
        request = identity("POST", f"groups/{name}/mounts", body.model_dump(mode="json"), body.request_id)

        async def act() -> dict[str, Any]:
            return (await plane.mount(request, name, body)).model_dump(mode="json")

        return Mount.model_validate(await plane.once(request, act))

    @routes.delete("/mounts/{mount_id}", status_code=204, dependencies=[requires(plane, "admin")])
    async def unmount(mount_id: str, request_id: Retry) -> None:
        """Close a mount and drop what was written to it."""

        async def act() -> dict[str, Any]:
            await plane.unmount(mount_id)
            return {}

        await plane.once(identity("DELETE", f"mounts/{mount_id}", None, request_id), act)

    return routes
