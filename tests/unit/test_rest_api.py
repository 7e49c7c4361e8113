"""REST: access, errors, declarations, timelines, as docs/rest.md says."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from prometheus_client.parser import text_string_to_metric_families

from dpac_api import escrow_keys
from dpac_api.errors import Temporary, Unreachable
from dpac_api.models import FilesystemTargetSpec
from dpac_engine.control.catalogue import utc
from dpac_engine.control.rest import create_app
from tests.unit.control_fakes import ADMIN, SITE, World

HEADERS = {"Authorization": f"Bearer {ADMIN}", "Dpac-Api-Version": "1", "Dpac-Site": SITE.site_uid}
OWNER = {"project": "shop", "stack": "prod"}
ROUTE = re.compile(r"^\| (.+?) \|", re.MULTILINE)


class Backend:
    """A site with the target `copies`, answering in process."""

    def __init__(self, world: World, client: TestClient) -> None:
        self.world = world
        self.client = client
        self.requests = 0

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Response:
        return self.client.request(method, path, json=body, headers=options.pop("headers", HEADERS), **options)

    def request_id(self) -> str:
        self.requests += 1
        return f"request-{self.requests}"

    def put_group(self, name: str = "shop", request_id: str = "", **changes: Any) -> Response:
        owner = changes.pop("owner", OWNER)
        adopt = changes.pop("adopt", False)
        body = {"request_id": request_id or self.request_id(), "owner": owner, "adopt": adopt}
        return self.ask("PUT", f"/v1/groups/{name}", {**body, "spec": self.world.group_spec(**changes)})

    def post(self, path: str, **body: Any) -> Response:
        return self.ask("POST", path, {"request_id": self.request_id(), **body})


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    world = World(tmp_path)
    with TestClient(create_app(world.deps()), raise_server_exceptions=False) as client:
        made = Backend(world, client)
        body = {"request_id": "request-0", "owner": OWNER, "spec": world.target_spec()}
        assert made.ask("PUT", "/v1/targets/copies", body).status_code == 200
        yield made


def error(response: Response, status: int, code: str) -> dict[str, Any]:
    """The error that an answer carries, after checking that it is that one."""
    assert response.status_code == status, response.text
    told: dict[str, Any] = response.json()["error"]
    assert set(told) == {"code", "message", "property_path"}
    assert told["code"] == code
    return told


# ------------------------------------------------------------------ access


def test_no_route_of_v1_answers_without_a_token(backend: Backend) -> None:
    """Every documented operation but /healthz wants one."""
    openapi = backend.client.get("/openapi.json").json()
    for path, operations in openapi["paths"].items():
        for method in operations:
            answer = backend.client.request(method, path.replace("{", "").replace("}", ""))
            expected = 200 if path == "/healthz" else 401
            assert answer.status_code == expected, (method, path, answer.text)


def test_a_wrong_token_is_unauthenticated_and_says_how_to_name_one(backend: Backend) -> None:
    """The message helps; the token is not repeated."""
    answer = backend.ask("GET", "/v1/site", headers={"Authorization": "Bearer wrong-secret"})
    assert "DPAC_TOKEN_FILE" in error(answer, 401, "unauthenticated")["message"]
    assert "wrong-secret" not in answer.text


@pytest.mark.parametrize(("scope", "allowed"), [("read", 1), ("operate", 2), ("admin", 3)])
def test_a_token_does_what_its_scope_allows_and_no_more(backend: Backend, scope: str, allowed: int) -> None:
    """Reading, operating and administering are three steps."""
    token = backend.ask("POST", "/v1/tokens", {"name": "ci", "scope": scope}).json()
    asked = [
        ("GET", "/v1/groups", None),
        ("POST", "/v1/targets/copies/check", None),
        ("DELETE", "/v1/targets/copies?request_id=request-9", None),
    ]
    headers = {"Authorization": f"Bearer {token['secret']}"}
    statuses = [backend.ask(method, path, body, headers=headers).status_code for method, path, body in asked]
    assert [status < 300 for status in statuses] == [n < allowed for n in range(3)]
    assert all(status in (200, 204, 403) for status in statuses)


def test_a_revoked_token_opens_nothing(backend: Backend) -> None:
    """At once, not after some cache's time."""
    token = backend.ask("POST", "/v1/tokens", {"name": "ci", "scope": "admin"}).json()
    headers = {"Authorization": f"Bearer {token['secret']}"}
    assert backend.ask("GET", "/v1/site", headers=headers).status_code == 200
    listed = backend.ask("GET", "/v1/tokens").json()
    assert [item["name"] for item in listed] == ["ci"]
    assert listed[0]["last_used"] is not None
    assert "secret" not in listed[0]
    assert backend.ask("DELETE", f"/v1/tokens/{token['id']}").status_code == 204
    error(backend.ask("GET", "/v1/site", headers=headers), 401, "unauthenticated")


def test_another_site_refuses_and_says_who_it_is(backend: Backend) -> None:
    """A state that names another site must not conclude anything here."""
    answer = backend.ask("GET", "/v1/groups/shop", headers={**HEADERS, "Dpac-Site": "6" * 32})
    assert SITE.site_uid in error(answer, 421, "wrong_site")["message"]


@pytest.mark.parametrize(
    ("version", "status", "code"), [("2", 501, "unsupported"), ("0", 501, "unsupported"), ("x", 422, "invalid")]
)
def test_a_version_outside_the_window_is_told_what_to_upgrade(
    backend: Backend, version: str, status: int, code: str
) -> None:
    """Client and backend state their window."""
    error(backend.ask("GET", "/v1/site", headers={**HEADERS, "Dpac-Api-Version": version}), status, code)


def test_every_answer_says_which_site_gave_it(backend: Backend) -> None:
    """Errors too."""
    for path in ("/v1/site", "/v1/groups/none", "/nowhere"):
        assert backend.ask("GET", path).headers["Dpac-Site"] == SITE.site_uid


# ------------------------------------------------------------------ the contract


def test_the_routes_are_exactly_those_documented(backend: Backend) -> None:
    """docs/rest.md is the contract: nothing missing, nothing extra."""
    table = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
    documented = set()
    for line in ROUTE.findall(table):
        path = ""
        for part in line.split(" · "):
            words = part.split(" ")
            if words[0] not in ("GET", "PUT", "POST", "DELETE"):
                continue
            path = words[1].split("?")[0]
            documented.add((words[0].lower(), re.sub(r"\{.*?\}", "{}", path)))
    openapi = backend.client.get("/openapi.json").json()
    served = {
        (method, re.sub(r"\{.*?\}", "{}", path)) for path, methods in openapi["paths"].items() for method in methods
    }
    assert served == documented


def test_every_operation_of_the_openapi_document_has_words(backend: Backend) -> None:
    """It is generated, so the routes' docstrings are its text."""
    openapi = backend.client.get("/openapi.json").json()
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            assert "default" in operation["responses"]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("member", "path"),
    [
        ({"kind": "volume", "path": "/x/disk.raw", "size": "12 parsecs"}, "spec.members.disk.size"),
        ({"kind": "volume", "path": "relative"}, "spec.members.disk.path"),
        ({"kind": "volume", "path": "/x", "sise": "1MiB"}, "spec.members.disk.sise"),
        ({"kind": "directory"}, "spec.members.disk.path"),
        ({"kind": "tape", "path": "/x"}, "spec.members.disk"),
    ],
)
def test_a_mistake_names_its_property_as_the_user_wrote_it(backend: Backend, member: dict[str, str], path: str) -> None:
    """Without pydantic's own words between."""
    answer = backend.put_group(members={"disk": member})
    assert error(answer, 422, "invalid")["property_path"] == path


def test_a_member_called_like_a_kind_keeps_its_name_in_the_path(backend: Backend) -> None:
    """`volume` is a good name for a volume."""
    answer = backend.put_group(members={"volume": {"kind": "volume", "path": "/x", "size": "1"}})
    assert error(answer, 422, "invalid")["property_path"] == "spec.members.volume.size"


def test_several_mistakes_are_all_told(backend: Backend) -> None:
    """One round trip is enough to correct them."""
    told = error(backend.put_group(journal={"history": "1s", "size_max": "1MiB"}), 422, "invalid")
    assert told["property_path"] == "spec.journal.history"
    assert "spec.journal.size_max" in told["message"]


def test_an_unknown_route_and_a_wrong_method_are_errors_of_the_tree(backend: Backend) -> None:
    """No answer is without a code."""
    error(backend.ask("GET", "/v1/nonsense"), 501, "unsupported")
    error(backend.ask("PATCH", "/v1/groups"), 405, "invalid")
    error(backend.client.put("/v1/groups/shop", content=b"{", headers=HEADERS), 422, "invalid")


def test_a_fault_of_our_own_is_told_without_its_insides(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is in the log."""
    monkeypatch.setattr("dpac_engine.control.catalogue_targets.list_targets", lambda *_: 1 / 0)
    told = error(backend.ask("GET", "/v1/targets"), 500, "error")
    assert "ZeroDivisionError" in told["message"]
    assert "division by zero" not in told["message"]


def test_request_bodies_do_not_reach_the_log(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Not when they are good, and not when they are bad."""
    caplog.set_level("DEBUG")
    backend.put_group(members={"disk": {"kind": "volume", "path": "/very-private", "size": "x"}})
    backend.ask("POST", "/v1/tokens", {"name": "very-private", "scope": "nothing"})
    assert "very-private" not in caplog.text


# ------------------------------------------------------------------ groups


def test_a_put_is_served_by_the_worker_when_it_returns(backend: Backend) -> None:
    """So exports exist when `pulumi up` returns."""
    group = backend.put_group().json()
    serving = backend.world.worker.serving[group["uid"]]
    assert serving.state == "active"
    assert {name: m.ordinal for name, m in serving.members.items()} == {"disk": 1, "orders": 2}
    assert list(serving.targets) == ["copies"]
    assert group["members"]["disk"]["nbd_uri"].startswith("nbd+unix:///shop/disk?socket=")
    assert backend.ask("GET", "/v1/groups/shop").json() == group


def test_a_worker_that_keeps_dying_is_a_condition_of_its_groups(backend: Backend) -> None:
    """The status says which worker, how it ended, and where to look."""
    backend.put_group()
    backend.world.crashing = {0: "was ended by SIGKILL"}
    conditions = backend.ask("GET", "/v1/groups/shop/status").json()["conditions"]
    (crashing,) = [c for c in conditions if c["type"] == "WorkerCrashing"]
    assert "SIGKILL" in crashing["message"]
    assert crashing["severity"] == "error"


def test_a_put_is_accepted_while_the_worker_is_down_and_served_once_it_is_back(backend: Backend) -> None:
    """Acceptance needs the catalogue only; the reconciler does the rest."""
    backend.world.worker.down = True
    group = backend.put_group().json()
    status = backend.ask("GET", "/v1/groups/shop/status").json()
    assert status["data_state"] == "Disconnected"
    assert not status["protected"]
    assert {"WorkerDown", "NotApplied"} <= {c["type"] for c in status["conditions"]}
    backend.world.worker.down = False
    wait_for(lambda: group["uid"] in backend.world.worker.serving)
    wait_for(lambda: backend.ask("GET", "/v1/groups/shop/status").json()["protected"])


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        pause.wait(0.01)


def test_a_retry_of_a_put_acts_once(backend: Backend) -> None:
    """Even after somebody else changed the group meanwhile, the first answer is given again."""
    first = backend.put_group(request_id="same-request").json()
    backend.put_group(journal={"history": "2d"})
    assert backend.put_group(request_id="same-request").json() == first
    assert backend.ask("GET", "/v1/groups/shop").json()["spec"]["journal"]["history"] == "2d"


def test_one_request_id_for_two_requests_is_a_conflict(backend: Backend) -> None:
    """A client that reuses ids has a bug worth knowing."""
    backend.put_group(request_id="same-request")
    answer = backend.put_group(request_id="same-request", journal={"history": "2d"})
    assert error(answer, 409, "conflict")["property_path"] == "request_id"


def test_a_refused_request_may_be_sent_again_under_its_id(backend: Backend) -> None:
    """Nothing was changed, so nothing is replayed."""
    (backend.world.root / "orders").rmdir()
    error(backend.put_group(request_id="same-request"), 422, "invalid")
    (backend.world.root / "orders").mkdir()
    assert backend.put_group(request_id="same-request").status_code == 200


def test_a_deleted_group_is_retained_detached_and_resumed(backend: Backend) -> None:
    """404 says it is gone, `retained=true` that it is not lost, a put brings it back."""
    uid = backend.put_group().json()["uid"]
    assert backend.ask("DELETE", "/v1/groups/shop?request_id=request-d").status_code == 204
    assert uid not in backend.world.worker.serving
    error(backend.ask("GET", "/v1/groups/shop"), 404, "not_found")
    assert backend.ask("GET", "/v1/groups/shop?retained=true").json()["lifecycle"] == "retained"
    assert backend.ask("GET", "/v1/groups").json() == []
    assert [g["uid"] for g in backend.ask("GET", "/v1/groups?lifecycle=retained").json()] == [uid]
    assert backend.ask("DELETE", "/v1/groups/shop?request_id=request-d").status_code == 204, "a retry"
    assert backend.put_group().json()["uid"] == uid
    assert uid in backend.world.worker.serving
    assert backend.world.recovery.purged == []


def test_a_purge_deletes_at_every_target_and_forgets(backend: Backend) -> None:
    """Afterwards the name is free, for another uid."""
    uid = backend.put_group().json()["uid"]
    answer = backend.ask("DELETE", "/v1/groups/shop?request_id=request-d&on_destroy=purge")
    assert answer.status_code == 204
    assert backend.world.recovery.purged == [(str(backend.world.root / "copies"), uid)]
    assert not (backend.world.data / "groups" / uid).exists()
    error(backend.ask("GET", "/v1/groups/shop?retained=true"), 404, "not_found")
    assert backend.put_group(owner={"project": "other", "stack": "x"}).json()["uid"] != uid


def test_a_purge_with_a_target_out_of_reach_changes_nothing(backend: Backend) -> None:
    """Everything is checked before anything is deleted."""
    backend.put_group()
    backend.world.recovery.probes[str(backend.world.root / "copies")] = "the disk is away"
    answer = backend.ask("DELETE", "/v1/groups/shop?request_id=request-d&on_destroy=purge")
    assert "the disk is away" in error(answer, 503, "temporary")["message"]
    assert backend.ask("GET", "/v1/groups/shop").json()["lifecycle"] == "active"
    assert backend.world.recovery.purged == []


def test_a_purge_is_refused_while_something_is_mounted(backend: Backend) -> None:
    """Somebody works with it."""
    backend.put_group()
    backend.world.fill_repository()
    mount = backend.post("/v1/groups/shop/mounts").json()
    answer = backend.ask("DELETE", "/v1/groups/shop?request_id=request-d&on_destroy=purge")
    assert mount["id"] in error(answer, 409, "conflict")["message"]


def held_group(backend: Backend) -> None:
    """The group shop with checkpoints, and what its worker writes to."""
    backend.put_group()
    repository = backend.world.fill_repository()
    backend.world.worker.repositories["copies"] = repository


def test_a_held_checkpoint_is_shown_with_why_until_it_is_released(backend: Backend) -> None:
    """By a selector or its id; the list can be of held ones alone; releasing what is not held is an error."""
    held_group(backend)
    made = backend.post("/v1/groups/shop/holds", checkpoint="ck-1-2", reason="audit").json()
    assert (made["id"], made["held"], made["held_reason"], made["held_until"]) == ("ck-1-2", True, "audit", None)
    newest = backend.ask("GET", "/v1/groups/shop/checkpoints/latest").json()
    assert not newest["held"]
    assert backend.post("/v1/groups/shop/holds", checkpoint="latest").json()["id"] == newest["id"]
    listed = backend.ask("GET", "/v1/groups/shop/checkpoints?held=true").json()["items"]
    assert [item["id"] for item in listed] == [newest["id"], "ck-1-2"]
    assert len(backend.ask("GET", "/v1/groups/shop/checkpoints").json()["items"]) == 5
    assert backend.ask("DELETE", "/v1/groups/shop/holds/ck-1-2?request_id=request-r").status_code == 204
    listed = backend.ask("GET", "/v1/groups/shop/checkpoints?held=true").json()["items"]
    assert [item["id"] for item in listed] == [newest["id"]]
    refused = backend.ask("DELETE", "/v1/groups/shop/holds/ck-1-2?request_id=request-s")
    assert f"held are: {newest['id']}" in error(refused, 404, "not_found")["message"]
    error(backend.post("/v1/groups/shop/holds", checkpoint="ck-1-77"), 409, "unrecoverable")


def test_a_checkpoint_can_be_held_from_the_start(backend: Backend) -> None:
    """Before any target could drop it; a time that is over is an error before anything is marked."""
    held_group(backend)
    backend.world.worker.repository = backend.world.worker.repositories["copies"]
    taken = backend.post("/v1/groups/shop/checkpoints", hold=True, hold_reason="audit").json()
    assert (taken["held"], taken["held_reason"], taken["held_until"]) == (True, "audit", None)
    listed = backend.ask("GET", "/v1/groups/shop/checkpoints?held=true").json()["items"]
    assert [item["id"] for item in listed] == [taken["id"]]
    sequence = backend.world.worker.sequence
    refused = backend.post("/v1/groups/shop/checkpoints", hold=True, hold_until="2001-01-01T00:00:00Z")
    assert error(refused, 422, "invalid")["property_path"] == "hold_until"
    assert backend.world.worker.sequence == sequence
    backend.world.worker.repositories.clear()
    error(backend.post("/v1/groups/shop/checkpoints", hold=True), 409, "unrecoverable")


def test_a_hold_ends_by_itself_at_its_time(backend: Backend) -> None:
    """Not before; one whose time is over already is refused."""
    held_group(backend)
    until = utc(backend.world.clock.ns + 3600 * 10**9).isoformat()
    assert backend.post("/v1/groups/shop/holds", checkpoint="ck-1-2", until=until).json()["held"]
    backend.world.clock.advance(3599)
    assert backend.ask("GET", "/v1/groups/shop/checkpoints/ck-1-2").json()["held"]
    backend.world.clock.advance(1)
    assert not backend.ask("GET", "/v1/groups/shop/checkpoints/ck-1-2").json()["held"]
    refused = backend.post("/v1/groups/shop/holds", checkpoint="ck-1-2", until=until)
    assert "over already" in error(refused, 422, "invalid")["message"]


def test_a_hold_that_one_target_cannot_take_says_where_it_was_taken(backend: Backend) -> None:
    """It is not claimed to be held everywhere; doing it again is no error."""
    held_group(backend)
    backend.world.worker.hold_failures = {"vault": "The disk is away."}
    refused = backend.post("/v1/groups/shop/holds", checkpoint="ck-1-2")
    message = error(refused, 503, "temporary")["message"]
    assert "ck-1-2 was held at copies, but could not be at vault (The disk is away)" in message
    backend.world.worker.hold_failures = {}
    assert backend.post("/v1/groups/shop/holds", checkpoint="ck-1-2").json()["held"]


def test_orders_to_legs_are_operations_and_name_who_gave_them(backend: Backend) -> None:
    """By the name of the token, not by what the request says; a retry acts once."""
    backend.put_group()
    made = backend.ask("POST", "/v1/tokens", {"name": "night-shift", "scope": "operate"}).json()
    headers = {**HEADERS, "Authorization": f"Bearer {made['secret']}"}
    body = {"request_id": "request-p", "leg": "copies", "reason": "its disks are replaced"}
    for _ in range(2):
        done = backend.ask("POST", "/v1/groups/shop/pause", body, headers=headers).json()
    assert (done["kind"], done["phase"], done["result"]) == ("Pause", "Succeeded", {"legs": ["copies"]})
    assert done["request"]["by"] == "night-shift"
    [order] = backend.world.worker.orders
    assert (order.verb, order.leg, order.by, order.reason) == ("Pause", "copies", "night-shift", body["reason"])
    assert order.since_ns == backend.world.clock.ns
    assert backend.post("/v1/groups/shop/resume").json()["result"] == {"legs": ["copies"]}
    assert backend.post("/v1/groups/shop/resync", full=True).json()["kind"] == "Resync"
    assert [(order.verb, order.leg, order.full) for order in backend.world.worker.orders[1:]] == [
        ("Resume", None, False),
        ("Resync", None, True),
    ]
    listed = backend.ask("GET", "/v1/operations?kind=Pause").json()
    assert [operation["id"] for operation in listed] == [done["id"]]
    message = error(backend.post("/v1/groups/shop/pause", leg="other"), 404, "not_found")["message"]
    assert "its legs: copies" in message


def test_a_pause_that_stops_the_application_has_to_say_so(backend: Backend) -> None:
    """A sync leg with `on_loss=stop`; refused before anything is told to the worker."""
    sync = {"copies": {"mode": "sync", "target": "copies", "on_loss": "stop"}}
    assert backend.put_group(replication=sync).status_code == 200
    refused = error(backend.post("/v1/groups/shop/pause"), 409, "conflict")
    assert refused["property_path"] == "stop_writes"
    assert not backend.world.worker.orders
    assert backend.post("/v1/groups/shop/pause", stop_writes=True).json()["phase"] == "Succeeded"


def test_an_order_that_the_worker_refuses_fails_as_an_operation_too(backend: Backend) -> None:
    """What went wrong is told, and kept."""
    backend.put_group()
    backend.world.worker.down = True
    told = backend.post("/v1/groups/shop/pause")
    assert told.status_code >= 400
    [operation] = backend.ask("GET", "/v1/operations?kind=Pause").json()
    assert (operation["phase"], operation["error"]) == ("Failed", told.json()["error"]["message"])


def test_a_purge_is_refused_while_a_target_keeps_it_locked(backend: Backend) -> None:
    """Before anything changes, with the moment until when; once that is over it goes."""
    backend.put_group()
    place, recovery = str(backend.world.root / "copies"), backend.world.recovery
    until = datetime.now(UTC) + timedelta(days=36_000)
    recovery.locked[place] = until
    purge = "/v1/groups/shop?on_destroy=purge&request_id=request-"
    refused = error(backend.ask("DELETE", f"{purge}a"), 409, "conflict")
    assert f"locked until {until:%Y-%m-%d}" in refused["message"]
    assert refused["property_path"] == "on_destroy"
    assert backend.ask("GET", "/v1/groups/shop").json()["lifecycle"] == "active"
    recovery.locked[place] = datetime(1970, 1, 2, tzinfo=UTC)
    assert backend.ask("DELETE", f"{purge}b").status_code < 300


def test_a_purge_is_refused_while_a_checkpoint_is_held_and_expiry_waits_for_it(backend: Backend) -> None:
    """It is named; a retained group's hold can be released without a worker."""
    held_group(backend)
    backend.post("/v1/groups/shop/holds", checkpoint="ck-1-2")
    refused = backend.ask("DELETE", "/v1/groups/shop?request_id=request-d&on_destroy=purge")
    assert "are held: ck-1-2" in error(refused, 409, "conflict")["message"]
    assert backend.ask("DELETE", "/v1/groups/shop?request_id=request-e&on_destroy=expire").status_code == 204
    refused = backend.ask("DELETE", "/v1/groups/shop?request_id=request-f&on_destroy=purge")
    assert "are held: ck-1-2" in error(refused, 409, "conflict")["message"]
    reconciler = backend.client.app.state.plane.reconciler  # type: ignore[attr-defined]
    backend.world.clock.advance(40_000 * 86_400)
    assert reconciler._expire() == []
    backend.world.worker.down = True
    assert backend.ask("DELETE", "/v1/groups/shop/holds/ck-1-2?request_id=request-r").status_code == 204
    assert len(reconciler._expire()) == 1


def test_a_used_target_names_its_groups(backend: Backend) -> None:
    """In its answer and in its refusal to go."""
    backend.put_group()
    assert backend.ask("GET", "/v1/targets/copies").json()["used_by"] == ["shop"]
    answer = backend.ask("DELETE", "/v1/targets/copies?request_id=request-t")
    assert "shop" in error(answer, 409, "conflict")["message"]


def test_a_target_check_tells_each_probe(backend: Backend) -> None:
    """Bad news is an answer, not an error."""
    backend.world.recovery.probes[str(backend.world.root / "copies")] = "read-only file system"
    check = backend.ask("POST", "/v1/targets/copies/check").json()
    assert check == {"target": "copies", "ok": False, "checks": {"write": "read-only file system"}}


# ------------------------------------------------------------------ status


def test_status_merges_what_the_worker_and_what_control_know(backend: Backend) -> None:
    """KeyNotEscrowed shows everywhere until a copy is confirmed."""
    generation = backend.put_group().json()["generation"]
    status = backend.ask("GET", "/v1/groups/shop/status").json()
    assert (status["protected"], status["observed_generation"]) == (True, generation)
    assert [c["type"] for c in status["conditions"]] == ["KeyNotEscrowed"]
    backend.world.keyring.confirmed = True
    assert backend.ask("GET", "/v1/groups/shop/status").json()["conditions"] == []


def test_an_escrow_key_counts_once_it_opens_every_target_and_as_long_as_it_does(backend: Backend) -> None:
    """Declared alone it ends no warning; removed, it is told that it still opens what is there."""
    keys = [escrow_keys.public_text(bytes([count]) * 32) for count in (1, 2)]

    def conditions(*declared: str) -> dict[str, str]:
        assert backend.put_group(encryption={"escrow": list(declared)}).status_code == 200
        return {c["type"]: c["message"] for c in backend.ask("GET", "/v1/groups/shop/status").json()["conditions"]}

    assert "Declare an escrow key" in conditions()["KeyNotEscrowed"]
    assert "copies yet" in conditions(keys[0])["KeyNotEscrowed"]
    backend.world.worker.escrow = [escrow_keys.fingerprint(keys[0])]
    assert conditions(keys[0]) == {}
    both = conditions(keys[1])
    assert set(both) == {"KeyNotEscrowed", "EscrowKeyRemoved"}
    assert escrow_keys.fingerprint(keys[0]) in both["EscrowKeyRemoved"]


def test_space_is_in_status_and_metrics_as_it_was_measured_last(backend: Backend) -> None:
    """A scrape asks no target; who asks for the space, or an hour, brings it up to date."""
    backend.put_group()
    assert backend.ask("GET", "/v1/groups/shop/status").json()["legs"]["copies"]["space"] is None
    assert "dpac_leg_space_bytes{" not in backend.ask("GET", "/metrics").text
    backend.world.fill_repository()
    backend.ask("GET", "/v1/groups/shop/space")
    space = backend.ask("GET", "/v1/groups/shop/status").json()["legs"]["copies"]["space"]
    assert (space["unique_bytes"], space["shared_bytes"], space["reclaimable_bytes"]) == (2**19, 7 * 2**19, 2**21)
    families = text_string_to_metric_families(backend.ask("GET", "/metrics").text)
    samples = [sample for family in families if family.name == "dpac_leg_space_bytes" for sample in family.samples]
    assert {sample.labels["share"]: sample.value for sample in samples} == {
        "unique": 2**19,
        "shared": 7 * 2**19,
        "reclaimable": 2**21,
    }


def test_metrics_tell_every_group_and_leg(backend: Backend) -> None:
    """What an alert is made of."""
    backend.put_group()
    text = backend.ask("GET", "/metrics").text
    assert 'dpac_group_protected{group="shop"} 1.0' in text
    assert 'dpac_leg_lag_seconds{group="shop",leg="copies",target="copies"} 0.5' in text
    assert 'dpac_group_data_state{group="shop",state="Continuous"} 1.0' in text
    assert 'dpac_group_condition{group="shop",severity="warning",subject="group",type="KeyNotEscrowed"} 1.0' in text
    backend.world.worker.down = True
    assert 'dpac_group_protected{group="shop"} 0.0' in backend.ask("GET", "/metrics").text


# ------------------------------------------------------------------ checkpoints


def test_checkpoints_come_newest_first_in_pages(backend: Backend) -> None:
    """A cursor goes on where the page ended, and nothing comes twice."""
    backend.put_group()
    backend.world.fill_repository(5)
    seen: list[str] = []
    cursor = ""
    while True:
        page = backend.ask("GET", f"/v1/groups/shop/checkpoints?limit=2{cursor}").json()
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ["ck-1-5", "ck-1-4", "ck-1-3", "ck-1-2", "ck-1-1"]


def test_a_checkpoint_tells_how_exact_each_member_is(backend: Backend) -> None:
    """By the member's name, never rounded up."""
    backend.put_group()
    backend.world.fill_repository()
    item = backend.ask("GET", "/v1/groups/shop/checkpoints/latest").json()
    assert item["cuts"]["disk"]["kind"] == "exact"
    assert item["cuts"]["orders"]["kind"] == "observed"
    assert item["cuts"]["orders"]["skew_seconds"] == 1.0
    assert item["targets"] == {"copies": {"available": True, "verified_at": None, "locked_until": None}}


@pytest.mark.parametrize(
    ("query", "found"),
    [("tag=nightly", [5]), ("app=true", []), ("target=copies", [5, 4, 3, 2, 1]), ("cursor=ck-1-3", [2, 1])],
)
def test_checkpoints_are_filtered(backend: Backend, query: str, found: list[int]) -> None:
    """By tag, consistency, target and place."""
    backend.put_group()
    backend.world.fill_repository()
    page = backend.ask("GET", f"/v1/groups/shop/checkpoints?{query}").json()
    assert [item["id"] for item in page["items"]] == [f"ck-1-{n}" for n in found]


def test_checkpoints_of_two_targets_are_one_list(backend: Backend) -> None:
    """Each says where it is; a target that is away hides its own only."""
    (backend.world.root / "second").mkdir()
    body = {"request_id": "request-s", "spec": backend.world.target_spec("second")}
    assert backend.ask("PUT", "/v1/targets/second", body).status_code == 200
    backend.put_group(replication={"a": {"target": "copies"}, "b": {"target": "second"}})
    near = backend.world.fill_repository(4)
    far = backend.world.recovery.open(near_spec(backend.world), "x")
    far.held = near.held[:2]
    items = backend.ask("GET", "/v1/groups/shop/checkpoints").json()["items"]
    assert [(item["id"], sorted(item["targets"])) for item in items] == [
        ("ck-1-4", ["copies"]),
        ("ck-1-3", ["copies"]),
        ("ck-1-2", ["copies", "second"]),
        ("ck-1-1", ["copies", "second"]),
    ]
    near.error = Unreachable("The disk is away.")
    items = backend.ask("GET", "/v1/groups/shop/checkpoints").json()["items"]
    assert [item["id"] for item in items] == ["ck-1-2", "ck-1-1"]
    far.error = Temporary("So is this one.")
    told = error(backend.ask("GET", "/v1/groups/shop/checkpoints"), 503, "unreachable")
    assert "copies" in told["message"]
    assert "second" in told["message"]


def near_spec(world: World) -> Any:
    return FilesystemTargetSpec(path=str(world.root / "second"))


def test_ranges_tell_the_runs_of_each_target(backend: Backend) -> None:
    """What a timeline is drawn from."""
    backend.put_group()
    backend.world.fill_repository(5)
    (run,) = backend.ask("GET", "/v1/groups/shop/checkpoint-ranges").json()
    assert (run["target"], run["first"], run["last"], run["count"]) == ("copies", "ck-1-1", "ck-1-5", 5)
    assert run["tags"] == ["nightly"]


@pytest.mark.parametrize(
    ("selector", "status", "code"),
    [("latest-app", 409, "unrecoverable"), ("tag:none", 409, "unrecoverable"), ("yesterday", 422, "invalid")],
)
def test_a_selector_that_means_nothing_is_told(backend: Backend, selector: str, status: int, code: str) -> None:
    """No checkpoint is not the same as no selector."""
    backend.put_group()
    backend.world.fill_repository()
    error(backend.ask("GET", f"/v1/groups/shop/checkpoints/{selector}"), status, code)


def test_a_checkpoint_is_taken_once_for_its_request(backend: Backend) -> None:
    """It goes to the targets at once, and stands in the journal of operations."""
    backend.put_group()
    body = {"request_id": "checkpoint-1", "tag": "before-migration", "app": True}
    first = backend.ask("POST", "/v1/groups/shop/checkpoints", body).json()
    assert (first["id"], first["tags"], first["consistency"]) == ("ck-1-1", ["before-migration"], "app")
    assert backend.ask("POST", "/v1/groups/shop/checkpoints", body).json() == first
    assert backend.world.worker.sequence == 1
    wait_for(lambda: any(call.startswith("ship ") for call in backend.world.worker.calls))
    (operation,) = backend.ask("GET", "/v1/operations?group=shop&kind=Checkpoint").json()
    assert (operation["phase"], operation["result"]["id"]) == ("Succeeded", "ck-1-1")


def test_a_checkpoint_with_the_worker_down_fails_and_is_journalled(backend: Backend) -> None:
    """The client may try again with the same id."""
    backend.put_group()
    backend.world.worker.down = True
    body = {"request_id": "checkpoint-1"}
    error(backend.ask("POST", "/v1/groups/shop/checkpoints", body), 503, "unreachable")
    assert backend.ask("GET", "/v1/operations").json()[0]["phase"] == "Failed"
    backend.world.worker.down = False
    assert backend.ask("POST", "/v1/groups/shop/checkpoints", body).status_code == 200


# ------------------------------------------------------------------ mounts


def test_a_mount_is_listed_until_it_is_unmounted(backend: Backend) -> None:
    """Volumes are URIs; the checkpoint is settled by control."""
    backend.put_group()
    backend.world.fill_repository()
    mount = backend.post("/v1/groups/shop/mounts", at="tag:nightly", member="disk").json()
    assert mount["checkpoint"] == "ck-1-5"
    assert list(mount["members"]) == ["disk"]
    assert backend.ask("GET", "/v1/mounts").json() == [{**mount, "hydrated_fraction": 0.5}]
    backend.world.worker.down = True
    (listed,) = backend.ask("GET", "/v1/mounts").json()
    assert "does not answer" in listed["problem"]
    backend.world.worker.down = False
    assert backend.ask("DELETE", f"/v1/mounts/{mount['id']}?request_id=request-u").status_code == 204
    assert backend.ask("GET", "/v1/mounts").json() == []
    assert backend.world.worker.mounts == {}
    error(backend.ask("DELETE", f"/v1/mounts/{mount['id']}?request_id=request-v"), 404, "not_found")


def test_a_mount_request_repeated_after_a_crash_makes_one_mount(backend: Backend) -> None:
    """The worker had mounted, the answer was lost: the retry finds the same mount."""
    backend.put_group()
    backend.world.fill_repository()
    backend.world.worker.down = True
    body = {"request_id": "mount-request"}
    error(backend.ask("POST", "/v1/groups/shop/mounts", body), 503, "unreachable")
    backend.world.worker.down = False
    first = backend.ask("POST", "/v1/groups/shop/mounts", body).json()
    assert backend.ask("POST", "/v1/groups/shop/mounts", body).json() == first
    assert list(backend.world.worker.mounts) == [first["id"]]
    assert len(backend.ask("GET", "/v1/mounts").json()) == 1


def test_a_mount_of_a_member_that_the_checkpoint_lacks_is_refused(backend: Backend) -> None:
    """It names those it has."""
    backend.put_group()
    backend.world.fill_repository()
    told = error(backend.post("/v1/groups/shop/mounts", member="tape"), 422, "invalid")
    assert "disk, orders" in told["message"]


def test_times_on_the_wire_are_utc(backend: Backend) -> None:
    """RFC 3339 with a Z."""
    backend.put_group()
    backend.world.fill_repository()
    item = backend.ask("GET", "/v1/groups/shop/checkpoints/latest").json()
    assert item["time"].endswith("Z")
    assert item["time"] == "2027-01-15T08:00:00Z"
