"""The typed client of a backend's REST API (docs/rest.md): one method a route, models in and models out.

Used by the provider and by the CLI. Synchronous; every failure is an error of `dpac_api.errors`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from dpac_api.errors import DpacError, Invalid, TimedOut, Unsupported, WrongSite
from dpac_api.models import (
    API_VERSION,
    API_VERSION_OLDEST,
    Checkpoint,
    CheckpointPage,
    CheckpointRange,
    CheckpointRequest,
    DifferencePage,
    DrillRequest,
    FilePage,
    Group,
    GroupSpec,
    GroupStatus,
    HoldRequest,
    Model,
    Mount,
    MountRequest,
    NewToken,
    Operation,
    Owner,
    PauseRequest,
    Phase,
    PutGroup,
    PutTarget,
    RestoreRequest,
    ResumeRequest,
    ResyncRequest,
    SiteInfo,
    Target,
    TargetCheck,
    TargetSpace,
    TargetSpec,
    TargetUsage,
    TokenInfo,
    VerifyRequest,
)
from dpac_api.quantities import Duration
from dpac_api.resolve import Endpoint
from dpac_api.transport import Transport

Answer = TypeVar("Answer")
Body = TypeVar("Body", bound=Model)

CHECKPOINT_TIMEOUT_SECONDS = 300.0
"""A checkpoint is answered once it is taken, which may wait for an application to be quiesced."""


def new_request_id() -> str:
    """A fresh request id; pass it again to repeat a request that may have been answered already."""
    return secrets.token_hex(16)


class Client:
    """One site's REST API.

    `site_uid` is the site that must answer, where the caller knows it: every request then says so, and any other
    site refuses (`WrongSite`). `timeout_seconds` bounds each try, `retry_seconds` all tries of one call together.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        site_uid: str | None = None,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 10.0,
        wire: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(
            endpoint, site_uid=site_uid, timeout_seconds=timeout_seconds, retry_seconds=retry_seconds, wire=wire
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.endpoint.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self._transport.endpoint

    # ------------------------------------------------------------------ site

    def site(self) -> SiteInfo:
        """Who answers. Raises `WrongSite` if it is not the site asked for, `Unsupported` if the versions do not overlap."""
        info = self._get(SiteInfo, "/v1/site")
        _require_overlap(info, self.endpoint)
        wanted = self._transport.site_uid
        if wanted is not None and info.site_uid != wanted:
            raise WrongSite(
                f"{self.endpoint.url} ({self.endpoint.source}) is site {info.name!r} ({info.site_uid}), not {wanted}. "
                "Point DPAC_ENDPOINT or the context at the site that holds this resource."
            )
        return info

    def healthy(self) -> bool:
        """Whether the backend says it is well; raises `Unreachable` if it says nothing."""
        answer = self._transport.send("GET", "/healthz").json()
        return isinstance(answer, dict) and answer.get("status") == "ok"

    def metrics(self) -> str:
        """The metrics, in Prometheus' text format."""
        return self._transport.send("GET", "/metrics").text

    # ------------------------------------------------------------------ targets

    def targets(self) -> list[Target]:
        """Every target of the site, by name."""
        return self._get(list[Target], "/v1/targets")

    def target(self, name: str) -> Target:
        """One target. Raises `NotFound`."""
        return self._get(Target, f"/v1/targets/{_part(name)}")

    def put_target(
        self,
        name: str,
        spec: TargetSpec,
        *,
        owner: Owner | None = None,
        adopt: bool = False,
        request_id: str | None = None,
    ) -> Target:
        """Create or change a target. Raises `Conflict` if another owner has it and `adopt` is not set."""
        body = _body(PutTarget, request_id=request_id or new_request_id(), owner=owner, adopt=adopt, spec=spec)
        return self._send(Target, "PUT", f"/v1/targets/{_part(name)}", body)

    def delete_target(self, name: str, *, request_id: str | None = None) -> None:
        """Forget a target; what lies there stays. Raises `Conflict` naming the groups that use it."""
        self._delete(f"/v1/targets/{_part(name)}", request_id=request_id or new_request_id())

    def check_target(self, name: str) -> TargetCheck:
        """Probe a target: what works there and what does not."""
        return self._send(TargetCheck, "POST", f"/v1/targets/{_part(name)}/check")

    def target_usage(self, name: str) -> TargetUsage:
        """What a target holds, how it is used, and what that costs a month."""
        return self._get(TargetUsage, f"/v1/targets/{_part(name)}/usage")

    # ------------------------------------------------------------------ groups

    def groups(self, *, lifecycle: Literal["active", "retained"] | None = None) -> list[Group]:
        """The site's groups; by default those that are active."""
        return self._get(list[Group], "/v1/groups", lifecycle=lifecycle)

    def group(self, name: str, *, retained: bool = False) -> Group:
        """One group. Raises `NotFound`, also for one that is only retained, unless `retained`."""
        return self._get(Group, _group(name), retained="true" if retained else None)

    def put_group(
        self,
        name: str,
        spec: GroupSpec,
        *,
        owner: Owner | None = None,
        adopt: bool = False,
        request_id: str | None = None,
    ) -> Group:
        """Create, change or resume a group. Raises `Conflict` if another owner has it and `adopt` is not set."""
        body = _body(PutGroup, request_id=request_id or new_request_id(), owner=owner, adopt=adopt, spec=spec)
        return self._send(Group, "PUT", _group(name), body)

    def delete_group(
        self,
        name: str,
        *,
        on_destroy: Literal["retain", "expire", "purge"] | None = None,
        request_id: str | None = None,
    ) -> None:
        """Stop protecting a group; `on_destroy` (None: as its spec says) decides what becomes of its recovery points."""
        self._delete(_group(name), request_id=request_id or new_request_id(), on_destroy=on_destroy)

    def group_status(self, name: str) -> GroupStatus:
        """What changes about a group by itself: states, lag, conditions."""
        return self._get(GroupStatus, f"{_group(name)}/status")

    # ------------------------------------------------------------------ checkpoints

    def checkpoints(
        self,
        name: str,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        tag: str | None = None,
        app: bool | None = None,
        target: str | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        held: bool | None = None,
    ) -> CheckpointPage:
        """One page of a group's checkpoints, newest first."""
        return self._get(
            CheckpointPage,
            f"{_group(name)}/checkpoints",
            limit=limit,
            cursor=cursor,
            tag=tag,
            app=None if app is None else str(app).lower(),
            target=target,
            before=before.isoformat() if before else None,
            after=after.isoformat() if after else None,
            held=None if held is None else str(held).lower(),
        )

    def every_checkpoint(self, name: str, **filters: Any) -> Iterator[Checkpoint]:
        """All of a group's checkpoints, newest first, a page at a time; filters as in `checkpoints`."""
        page = self.checkpoints(name, **filters)
        yield from page.items
        while page.next_cursor is not None:
            page = self.checkpoints(name, **{**filters, "cursor": page.next_cursor})
            yield from page.items

    def checkpoint_ranges(self, name: str) -> list[CheckpointRange]:
        """The runs of checkpoints that each target holds."""
        return self._get(list[CheckpointRange], f"{_group(name)}/checkpoint-ranges")

    def checkpoint(self, name: str, selector: str) -> Checkpoint:
        """The checkpoint that a selector means. Raises `NotFound` or `Unrecoverable` if there is none."""
        return self._get(Checkpoint, f"{_group(name)}/checkpoints/{_part(selector)}")

    def space(self, name: str) -> list[TargetSpace]:
        """What a group takes at each of its targets, and what of it can be had back."""
        return self._get(list[TargetSpace], f"{_group(name)}/space")

    def files(
        self,
        name: str,
        *,
        member: str,
        at: str = "latest",
        target: str | None = None,
        glob: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> FilePage:
        """One page of the paths of a directory member at a checkpoint."""
        query = {"member": member, "at": at, "target": target, "glob": glob, "limit": limit, "cursor": cursor}
        return self._get(FilePage, f"{_group(name)}/files", **query)

    def difference(
        self,
        name: str,
        *,
        before: str,
        after: str = "latest",
        member: str | None = None,
        target: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> DifferencePage:
        """How two checkpoints differ, and one page of what changed."""
        query = {"before": before, "after": after, "member": member, "target": target, "limit": limit, "cursor": cursor}
        return self._get(DifferencePage, f"{_group(name)}/difference", **query)

    def take_checkpoint(
        self,
        name: str,
        *,
        tag: str | None = None,
        app: bool = False,
        hold: bool = False,
        hold_reason: str = "",
        hold_until: datetime | None = None,
        request_id: str | None = None,
    ) -> Checkpoint:
        """Mark the group now; it is taken, and held if asked for, when this returns."""
        body = _body(
            CheckpointRequest,
            request_id=request_id or new_request_id(),
            tag=tag,
            app=app,
            hold=hold,
            hold_reason=hold_reason,
            hold_until=hold_until,
        )
        return self._send(
            Checkpoint, "POST", f"{_group(name)}/checkpoints", body, timeout_seconds=CHECKPOINT_TIMEOUT_SECONDS
        )

    def hold(
        self,
        name: str,
        checkpoint: str,
        *,
        reason: str = "",
        until: datetime | None = None,
        request_id: str | None = None,
    ) -> Checkpoint:
        """Keep the checkpoint that a selector means, at every target that has it, until it is released."""
        body = _body(
            HoldRequest, request_id=request_id or new_request_id(), checkpoint=checkpoint, reason=reason, until=until
        )
        return self._send(Checkpoint, "POST", f"{_group(name)}/holds", body, timeout_seconds=CHECKPOINT_TIMEOUT_SECONDS)

    def release(self, name: str, checkpoint: str, *, request_id: str | None = None) -> None:
        """Hold a checkpoint no longer. Raises `NotFound` if it is not held."""
        self._delete(f"{_group(name)}/holds/{_part(checkpoint)}", request_id=request_id or new_request_id())

    # ------------------------------------------------------------------ legs

    def pause(
        self,
        name: str,
        leg: str | None = None,
        *,
        reason: str = "",
        stop_writes: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Send nothing to the target of a leg, or of all, until it is resumed. `Conflict` if the application would wait then, and not
        `stop_writes`."""
        body = _body(
            PauseRequest, request_id=request_id or new_request_id(), leg=leg, reason=reason, stop_writes=stop_writes
        )
        return self._send(Operation, "POST", f"{_group(name)}/pause", body)

    def resume(self, name: str, leg: str | None = None, *, request_id: str | None = None) -> Operation:
        """Go on with a leg, or with all."""
        body = _body(ResumeRequest, request_id=request_id or new_request_id(), leg=leg)
        return self._send(Operation, "POST", f"{_group(name)}/resume", body)

    def resync(
        self, name: str, leg: str | None = None, *, full: bool = False, request_id: str | None = None
    ) -> Operation:
        """Have a leg, or all, compare what its target holds with the members; with `full`, send everything."""
        body = _body(ResyncRequest, request_id=request_id or new_request_id(), leg=leg, full=full)
        return self._send(Operation, "POST", f"{_group(name)}/resync", body)

    # ------------------------------------------------------------------ operations

    def drill(
        self,
        name: str,
        *,
        at: str = "latest",
        target: str | None = None,
        rto: Duration | None = None,
        request_id: str | None = None,
    ) -> Operation:
        """Begin a rehearsal of recovery; `wait` for it."""
        body = _body(DrillRequest, request_id=request_id or new_request_id(), at=at, target=target, rto=rto)
        return self._send(Operation, "POST", f"{_group(name)}/drills", body)

    def restore(
        self,
        name: str,
        *,
        member: str,
        to: str | None = None,
        at: str = "latest",
        target: str | None = None,
        paths: Sequence[str] = (),
        over: bool = False,
        in_place: bool = False,
        force_disconnect: bool = False,
        request_id: str | None = None,
    ) -> Operation:
        """Begin to write one member, as it was at a checkpoint, to the new path `to`, or over what it holds now; `wait` for it.

        `over`: a volume, where it differs from the image or disk `to`.
        """
        body = _body(
            RestoreRequest,
            request_id=request_id or new_request_id(),
            member=member,
            to=to,
            at=at,
            target=target,
            paths=list(paths),
            over=over,
            in_place=in_place,
            force_disconnect=force_disconnect,
        )
        return self._send(Operation, "POST", f"{_group(name)}/restores", body)

    def verify(self, name: str, *, target: str | None = None, request_id: str | None = None) -> Operation:
        """Begin to read back and check what the targets hold; `wait` for it."""
        body = _body(VerifyRequest, request_id=request_id or new_request_id(), target=target)
        return self._send(Operation, "POST", f"{_group(name)}/verifications", body)

    def operations(
        self, *, group: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> list[Operation]:
        """Operations, newest first."""
        return self._get(list[Operation], "/v1/operations", group=group, kind=kind, limit=limit)

    def operation(self, operation_id: str) -> Operation:
        """One operation as it stands."""
        return self._get(Operation, f"/v1/operations/{_part(operation_id)}")

    def wait(
        self,
        operation_id: str,
        *,
        timeout_seconds: float,
        poll_seconds: float = 0.25,
        watch: Callable[[Operation], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Operation:
        """The operation once it has succeeded or failed; `watch` sees it at every look.

        Raises `TimedOut` after `timeout_seconds`; the operation then still goes on.
        """
        deadline = monotonic() + timeout_seconds
        while True:
            operation = self.operation(operation_id)
            if watch is not None:
                watch(operation)
            if operation.phase in (Phase.SUCCEEDED, Phase.FAILED):
                return operation
            if monotonic() >= deadline:
                raise TimedOut(
                    f"{operation.kind} {operation.id} of group {operation.group!r} is still {operation.phase} after "
                    f"{timeout_seconds:g} s; it goes on. Look at it again with `dpac status {operation.group}`."
                )
            sleep(poll_seconds)

    # ------------------------------------------------------------------ mounts

    def mounts(self) -> list[Mount]:
        """The checkpoints that are open for use."""
        return self._get(list[Mount], "/v1/mounts")

    def mount(
        self,
        name: str,
        *,
        at: str = "latest",
        member: str | None = None,
        target: str | None = None,
        hydrate: bool = True,
        request_id: str | None = None,
    ) -> Mount:
        """Open a checkpoint for use at once; with `hydrate`, its volumes are copied to the host behind their clients."""
        body = _body(
            MountRequest,
            request_id=request_id or new_request_id(),
            at=at,
            member=member,
            target=target,
            hydrate=hydrate,
        )
        return self._send(Mount, "POST", f"{_group(name)}/mounts", body, timeout_seconds=CHECKPOINT_TIMEOUT_SECONDS)

    def unmount(self, mount_id: str, *, request_id: str | None = None) -> None:
        """Close a mount and drop what was written to it."""
        self._delete(f"/v1/mounts/{_part(mount_id)}", request_id=request_id or new_request_id())

    # ------------------------------------------------------------------ tokens

    def tokens(self) -> list[TokenInfo]:
        """The site's tokens, without their secrets."""
        return self._get(list[TokenInfo], "/v1/tokens")

    def create_token(self, name: str, scope: Literal["admin", "operate", "read"]) -> NewToken:
        """A new token; its secret is in this answer only. Not retried, because each request makes one."""
        answer = self._transport.send("POST", "/v1/tokens", body={"name": name, "scope": scope}, retry=False)
        return self._parse(NewToken, answer)

    def revoke_token(self, token_id: str) -> None:
        """End a token at once."""
        self._transport.send("DELETE", f"/v1/tokens/{_part(token_id)}", retry=False)

    # ------------------------------------------------------------------ travel

    def _get(self, kind: type[Answer], path: str, /, **query: Any) -> Answer:
        return self._parse(kind, self._transport.send("GET", path, query=query))

    def _send(
        self,
        kind: type[Answer],
        method: str,
        path: str,
        body: Model | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        content = None if body is None else body.model_dump(mode="json")
        return self._parse(kind, self._transport.send(method, path, body=content, timeout_seconds=timeout_seconds))

    def _delete(self, path: str, **query: Any) -> None:
        self._transport.send("DELETE", path, query=query)

    def _parse(self, kind: type[Answer], response: httpx.Response) -> Answer:
        try:
            # A newer backend of the same version may say more than this client knows: read what is known.
            answer: Answer = TypeAdapter(kind).validate_json(response.content, extra="ignore")
            return answer
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the body"
            raise DpacError(
                f"{self.endpoint.url} ({self.endpoint.source}) answered {response.request.method} {response.request.url.path} "
                f"with something else than dpac's wire format: {where}: {first['msg']}. Check the endpoint, and that client and "
                "backend are of one release."
            ) from error


def _body(kind: type[Body], **fields: Any) -> Body:
    """What is sent. Raises `Invalid`, naming the argument, for a value that the wire format does not have."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        field = kind.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        meant = f" {field.description}" if field and field.description else ""
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise Invalid(f"{where}: {first['input']!r} cannot be used ({problem}).{meant}", property_path=where) from None


def _part(text: str) -> str:
    if text.strip(".") == "":  # it would climb out of the route, or be the list
        raise Invalid(f"{text!r} is not a name; see `dpac group list` and `dpac target list`.")
    return quote(text, safe="")


def _group(name: str) -> str:
    return f"/v1/groups/{_part(name)}"


def _require_overlap(info: SiteInfo, endpoint: Endpoint) -> None:
    mine, theirs = f"{API_VERSION_OLDEST} to {API_VERSION}", f"{info.api_version_oldest} to {info.api_version}"
    if info.api_version < API_VERSION_OLDEST:
        side = f"Upgrade the backend at {endpoint.url} (it is dpac {info.version})"
    elif info.api_version_oldest > API_VERSION:
        side = f"Upgrade this program's dpac to {info.version} or newer (pip install -U dpac)"
    else:
        return
    raise Unsupported(f"This client speaks API versions {mine}, site {info.name!r} speaks {theirs}. {side}.")
