"""A site in memory that speaks docs/rest.md to clients: for tests of what calls it, over a wire of httpx or real sockets.

It checks tokens, versions and the site's uid, remembers request ids, keeps owners, retained groups and checkpoints as the
real one does. Its groups are protected at once unless a test says otherwise; it holds no data.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx
from pydantic import ValidationError

from dpac_api.errors import (
    Conflict,
    DpacError,
    Invalid,
    NotFound,
    Temporary,
    Unauthenticated,
    Unrecoverable,
    Unsupported,
    WrongSite,
)
from dpac_api.models import (
    API_VERSION,
    Checkpoint,
    CheckpointAvailability,
    CheckpointPage,
    CheckpointRequest,
    Condition,
    DataState,
    DrillReport,
    DrillRequest,
    Group,
    GroupStatus,
    HoldRequest,
    LegStatus,
    MemberDrill,
    MemberOutputs,
    MemberStatus,
    Model,
    Operation,
    Owner,
    Phase,
    PutGroup,
    PutTarget,
    Role,
    SiteInfo,
    SlaState,
    Target,
)

TOKEN = "fake-site-token-3f1c9a"
_EPOCH = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _uid() -> str:
    return uuid.uuid4().hex


@dataclass
class Call:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class FakeSite:
    """The site; tests read and set its fields."""

    site_uid: str = field(default_factory=_uid)
    name: str = "fake"
    api_version: int = API_VERSION
    api_version_oldest: int = 1
    targets: dict[str, Target] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    checkpoints: dict[str, list[Checkpoint]] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    seeded: bool = True
    protected: bool = True
    conditions: list[Condition] = field(default_factory=list)
    shipped_until: datetime = _EPOCH + timedelta(days=1)
    drill_findings: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    deleted_with: list[str | None] = field(default_factory=list)
    faults: list[DpacError | httpx.HTTPError | int] = field(default_factory=list)
    """What the next requests meet instead of an answer, in order: an error, or a bare HTTP status as of a proxy."""
    answered: dict[str, tuple[int, Any]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    # ------------------------------------------------------------------ two ways in

    def wire(self) -> httpx.MockTransport:
        """For `Client(..., wire=...)`."""
        return httpx.MockTransport(self._over_httpx)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The site on a free port of this host; yields its URL."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                parts = urlsplit(self.path)
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, body = site.handle(
                    Call(
                        self.command,
                        unquote(parts.path),
                        dict(parse_qsl(parts.query)),
                        {key.lower(): value for key, value in self.headers.items()},
                        json.loads(raw) if raw else None,
                    )
                )
                content = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = _answer

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _over_httpx(self, request: httpx.Request) -> httpx.Response:
        status, body = self.handle(
            Call(
                request.method,
                request.url.path,
                dict(request.url.params),
                dict(request.headers),
                json.loads(request.content) if request.content else None,
            )
        )
        return httpx.Response(status) if body is None else httpx.Response(status, json=body)

    # ------------------------------------------------------------------ every request

    def handle(self, call: Call) -> tuple[int, Any]:
        """Status and body for a request."""
        with self.lock:
            self.calls.append(call)
            try:
                return self._guarded(call)
            except ValidationError as error:
                return 422, Invalid(str(error)).to_wire()
            except DpacError as error:
                return error.http_status, error.to_wire()

    def _guarded(self, call: Call) -> tuple[int, Any]:
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, int):
                return fault, None
            raise fault
        if call.path == "/healthz":
            return 200, {"status": "ok"}
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Unauthenticated("The token is not valid.")
        asked = int(call.headers["dpac-api-version"])
        if not self.api_version_oldest <= asked <= self.api_version:
            older = "client" if asked < self.api_version_oldest else "backend"
            raise Unsupported(f"This backend does not speak that version. Upgrade the {older}.")
        wanted = call.headers.get("dpac-site")
        if wanted not in (None, self.site_uid):
            raise WrongSite(f"This is site {self.site_uid}, not {wanted}.")
        request_id = (call.body or {}).get("request_id") or call.query.get("request_id")
        if request_id in self.answered:
            return self.answered[request_id]
        answer = self._routed(call)
        body = answer.model_dump(mode="json") if isinstance(answer, Model) else answer
        result = (204, None) if answer is None else (200, body)
        if request_id is not None:
            self.answered[request_id] = result
        return result

    def _routed(self, call: Call) -> Any:
        parts = call.path.removeprefix("/v1/").split("/")
        if parts == ["site"]:
            return self._site()
        if len(parts) == 1:
            return [
                held.model_dump(mode="json")
                for held in {"targets": self.targets, "groups": self.groups}[parts[0]].values()
            ]
        kind, name, verb, rest = parts[0], parts[1], *(parts[2:3] or [""]), parts[3:]
        method = getattr(self, f"_{call.method.lower()}_{kind}" + (f"_{verb}" if verb else ""))
        return method(call, name, *rest)

    def _site(self) -> SiteInfo:
        return SiteInfo(
            site_uid=self.site_uid,
            name=self.name,
            version="9.9.9",
            api_version=self.api_version,
            api_version_oldest=self.api_version_oldest,
        )

    # ------------------------------------------------------------------ targets

    def _get_targets(self, call: Call, name: str) -> Target:
        if name not in self.targets:
            raise NotFound(f"No target {name!r}.")
        used = [group.name for group in self.groups.values() if self._uses(group, name)]
        return self.targets[name].model_copy(update={"used_by": used})

    def _put_targets(self, call: Call, name: str) -> Target:
        put = PutTarget.model_validate(call.body)
        held = self.targets.get(name)
        owner = self._owner(put.owner, put.adopt, held, f"Target {name!r}")
        self.targets[name] = Target(
            name=name,
            uid=held.uid if held else _uid(),
            site_uid=self.site_uid,
            owner=owner,
            spec=put.spec,
            generation=held.generation + 1 if held else 1,
        )
        return self.targets[name]

    def _delete_targets(self, call: Call, name: str) -> None:
        if used := self._get_targets(call, name).used_by:
            raise Conflict(f"Target {name!r} is used by {', '.join(used)}. Take their legs away first.")
        del self.targets[name]

    @staticmethod
    def _uses(group: Group, target: str) -> bool:
        return group.lifecycle == "active" and any(leg.target == target for leg in group.spec.replication.values())

    @staticmethod
    def _owner(wanted: Owner | None, adopt: bool, held: Group | Target | None, what: str) -> Owner | None:
        if held is None or held.owner == wanted or adopt:
            return wanted
        if wanted is None:
            return held.owner
        raise Conflict(f"{what} belongs to {held.owner}; set adopt=True to take it over.", property_path="adopt")

    # ------------------------------------------------------------------ groups

    def _get_groups(self, call: Call, name: str) -> Group:
        group = self.groups.get(name)
        if group is None or (group.lifecycle == "retained" and call.query.get("retained") != "true"):
            raise NotFound(f"No group {name!r}.")
        return group

    def _put_groups(self, call: Call, name: str) -> Group:
        put = PutGroup.model_validate(call.body)
        held = self.groups.get(name)
        owner = self._owner(put.owner, put.adopt, held, f"Group {name!r}")
        for leg, spec in put.spec.replication.items():
            if spec.target not in self.targets:
                raise Invalid(f"No target {spec.target!r}.", property_path=f"replication.{leg}.target")
        self.groups[name] = Group(
            name=name,
            uid=held.uid if held else _uid(),
            site_uid=self.site_uid,
            owner=owner,
            spec=put.spec,
            generation=held.generation + 1 if held else 1,
            lifecycle="active",
            epoch=1,
            role=Role.PRIMARY,
            home_site=self.site_uid,
            active_site=self.site_uid,
            membership_version=1,
            members={
                key: MemberOutputs(
                    kind=member.kind,
                    path=member.path,
                    nbd_uri=f"nbd://127.0.0.1:10809/{name}/{key}" if member.kind == "volume" else "",
                )
                for key, member in put.spec.members.items()
            },
        )
        return self.groups[name]

    def _delete_groups(self, call: Call, name: str) -> None:
        group = self._get_groups(call, name)
        self.deleted_with.append(call.query.get("on_destroy"))
        if call.query.get("on_destroy") == "purge":
            del self.groups[name]
        else:
            self.groups[name] = group.model_copy(update={"lifecycle": "retained"})

    def _get_groups_status(self, call: Call, name: str) -> GroupStatus:
        group = self._get_groups(call, name)
        return GroupStatus(
            data_state=DataState.CONTINUOUS if self.seeded else DataState.INITIAL_SYNC,
            sla_state=SlaState.MEETING if self.protected else SlaState.RPO_NOT_MET,
            protected=self.protected,
            seeded=self.seeded,
            checkpoint_sequence=7,
            head_lsn=100,
            durable_lsn=100,
            spool_bytes=4096,
            members={
                key: MemberStatus(kind=member.kind, state="Attached", seeded=self.seeded)
                for key, member in group.spec.members.items()
            },
            legs={
                key: LegStatus(
                    target=leg.target,
                    data_state=DataState.CONTINUOUS,
                    rpo_seconds=leg.rpo.seconds,
                    lag_seconds=0 if self.protected else 99,
                    lag_bytes=0,
                    seeded_fraction=1.0 if self.seeded else 0.25,
                    shipped_lsn=100,
                    latest_checkpoint="ck-1-7",
                    latest_checkpoint_time=self.shipped_until,
                )
                for key, leg in group.spec.replication.items()
            },
            conditions=self.conditions,
            observed_generation=group.generation,
        )

    # ------------------------------------------------------------------ checkpoints, drills

    def _post_groups_checkpoints(self, call: Call, name: str) -> Checkpoint:
        self._get_groups(call, name)
        asked = CheckpointRequest.model_validate(call.body)
        taken = self.checkpoints.setdefault(name, [])
        taken.append(
            Checkpoint(
                id=f"ck-1-{len(taken) + 1}",
                time=_EPOCH + timedelta(seconds=len(taken)),
                lsn={"0" * 32: len(taken)},
                membership_version=1,
                consistency="app" if asked.app else "crash",
                tags=[asked.tag] if asked.tag else [],
                targets={"copies": CheckpointAvailability(available=True)},
                held=asked.hold,
                held_reason=asked.hold_reason,
                held_until=asked.hold_until,
            )
        )
        return taken[-1]

    def _post_groups_holds(self, call: Call, name: str) -> Checkpoint:
        asked = HoldRequest.model_validate(call.body)
        return self._hold(name, asked.checkpoint, held=True, held_reason=asked.reason, held_until=asked.until)

    def _delete_groups_holds(self, call: Call, name: str, checkpoint: str) -> None:
        self._get_groups(call, name)
        if not any(taken.id == checkpoint and taken.held for taken in self.checkpoints.get(name, [])):
            raise NotFound(f"No target holds {checkpoint}.")
        self._hold(name, checkpoint, held=False, held_reason="", held_until=None)

    def _hold(self, name: str, checkpoint: str, **facts: Any) -> Checkpoint:
        all_taken = self.checkpoints[name]
        at = next(at for at, taken in enumerate(all_taken) if taken.id == checkpoint)
        all_taken[at] = all_taken[at].model_copy(update=facts)
        return all_taken[at]

    def _get_groups_checkpoints(self, call: Call, name: str, selector: str = "") -> Checkpoint | CheckpointPage:
        self._get_groups(call, name)
        newest_first = list(reversed(self.checkpoints.get(name, [])))
        if selector:
            for held in newest_first:
                if selector in ("latest", held.id, *(f"tag:{tag}" for tag in held.tags)):
                    return held
            raise Unrecoverable(f"No checkpoint {selector!r} in group {name!r}.")
        if tag := call.query.get("tag"):
            newest_first = [held for held in newest_first if tag in held.tags]
        start, limit = int(call.query.get("cursor", 0)), int(call.query.get("limit", 2))
        after = start + limit
        return CheckpointPage(
            items=newest_first[start:after], next_cursor=str(after) if after < len(newest_first) else None
        )

    def _post_groups_drills(self, call: Call, name: str) -> Operation:
        group = self._get_groups(call, name)
        asked = DrillRequest.model_validate(call.body)
        if not group.spec.replication:
            raise Unrecoverable(f"Group {name!r} has no leg, so there is nothing to recover from.")
        report = DrillReport(
            group=name,
            group_uid=group.uid,
            site_uid=self.site_uid,
            target=asked.target or next(iter(group.spec.replication.values())).target,
            checkpoint="ck-1-7",
            checkpoint_time=_EPOCH,
            consistency="crash",
            started=_EPOCH,
            finished=_EPOCH + timedelta(seconds=2),
            rpo_seconds=1.0,
            rto_seconds=2.5,
            rto_goal_seconds=asked.rto.seconds if asked.rto else None,
            members={key: MemberDrill(opened_seconds=0.5, checked_bytes=1) for key in group.spec.members},
            passed=not self.drill_findings,
            findings=self.drill_findings,
        )
        operation = Operation(
            id=f"op-{len(self.operations) + 1}",
            kind="Drill",
            group=name,
            phase=Phase.FAILED if self.drill_findings else Phase.SUCCEEDED,
            result=report.model_dump(mode="json"),
            created=_EPOCH,
        )
        self.operations[operation.id] = operation
        return operation.model_copy(update={"phase": Phase.RUNNING, "result": {}})

    def _get_operations(self, call: Call, operation_id: str) -> Operation:
        if operation_id not in self.operations:
            raise NotFound(f"No operation {operation_id!r}.")
        return self.operations[operation_id]


def busy(times: int) -> list[DpacError | httpx.HTTPError | int]:
    """Faults: the site is busy that many times."""
    return [Temporary("The site is busy; try again.") for _ in range(times)]
