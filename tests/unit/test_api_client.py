"""The client of docs/rest.md."""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpac_api import errors
from dpac_api.client import Client
from dpac_api.errors import (
    Denied,
    DpacError,
    Invalid,
    NotFound,
    Temporary,
    TimedOut,
    Unauthenticated,
    Unreachable,
    Unsupported,
    WrongSite,
)
from dpac_api.models import AsyncLegSpec, DirectorySpec, FilesystemTargetSpec, GroupSpec, Owner, Phase
from dpac_api.resolve import Endpoint
from dpac_api.transport import foreign
from tests.fake_site import TOKEN, FakeSite, busy

TARGET = FilesystemTargetSpec(path="/mnt/copies")
GROUP = GroupSpec(
    members={"orders": DirectorySpec(path="/data/orders")}, replication={"copies": AsyncLegSpec(target="copies")}
)
OWNER = Owner(project="shop", stack="dev")


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    """An endpoint with the fake site's token."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return Endpoint(url="http://site.test", source="a test", token_file=token)


@pytest.fixture
def site() -> FakeSite:
    """A site in memory."""
    return FakeSite()


@pytest.fixture
def client(site: FakeSite, endpoint: Endpoint) -> Client:
    """A client of that site that gives up early."""
    return Client(endpoint, wire=site.wire(), retry_seconds=5)


def _uses(client: Client) -> list[Callable[[], Any]]:
    return [
        client.site,
        client.targets,
        lambda: client.target("t"),
        lambda: client.put_target("t", TARGET),
        lambda: client.delete_target("t"),
        lambda: client.check_target("t"),
        lambda: client.target_usage("t"),
        client.groups,
        lambda: client.group("g"),
        lambda: client.put_group("g", GROUP),
        lambda: client.delete_group("g"),
        lambda: client.group_status("g"),
        lambda: client.checkpoints("g"),
        lambda: client.checkpoint_ranges("g"),
        lambda: client.checkpoint("g", "tag:x"),
        lambda: client.take_checkpoint("g"),
        lambda: client.hold("g", "tag:x"),
        lambda: client.release("g", "tag:x"),
        lambda: client.pause("g"),
        lambda: client.resume("g"),
        lambda: client.resync("g"),
        lambda: client.space("g"),
        lambda: client.files("g", member="disk"),
        lambda: client.difference("g", before="latest"),
        lambda: client.drill("g"),
        lambda: client.restore("g", member="m", to="/tmp/x"),
        lambda: client.verify("g"),
        client.operations,
        lambda: client.operation("op"),
        client.mounts,
        lambda: client.mount("g"),
        lambda: client.unmount("m"),
        client.tokens,
        lambda: client.create_token("ci", "read"),
        lambda: client.revoke_token("t"),
        client.metrics,
        client.healthy,
    ]


def test_every_route_of_the_documentation_has_a_method(endpoint: Endpoint) -> None:
    """docs/rest.md and the client offer the same routes, neither more than the other."""
    text = (Path(__file__).parents[2] / "docs/rest.md").read_text()
    documented = {
        f"{method} {re.sub(r'{[^}]*}', '*', path.split('?')[0])}"
        for method, path in re.findall(r"\b(GET|PUT|POST|DELETE) (/[^\s|]+)", text)
    }
    asked: set[str] = set()

    def record(request: httpx.Request) -> httpx.Response:
        path = "/".join("*" if part in ("t", "g", "op", "m", "tag:x") else part for part in request.url.path.split("/"))
        asked.add(f"{request.method} {path}")
        return httpx.Response(422, json=Invalid("recorded").to_wire())

    client = Client(endpoint, wire=httpx.MockTransport(record))
    for use in _uses(client):
        with pytest.raises(Invalid, match="recorded"):
            use()
    assert asked == documented


def test_targets_and_groups_travel_whole(client: Client) -> None:
    """What is put is what is got, in the wire's models."""
    client.put_target("copies", TARGET, owner=OWNER)
    made = client.put_group("shop", GROUP, owner=OWNER)
    assert client.group("shop") == made
    assert (made.spec, made.owner) == (GROUP, OWNER)
    assert [group.name for group in client.groups()] == ["shop"]
    assert client.target("copies").used_by == ["shop"]
    assert client.group_status("shop").protected


def test_pages_of_checkpoints_are_followed_to_their_end(client: Client) -> None:
    """Every checkpoint comes once, newest first, however small the pages."""
    client.put_target("copies", TARGET)
    client.put_group("shop", GROUP)
    for _ in range(5):
        client.take_checkpoint("shop")
    assert [held.id for held in client.every_checkpoint("shop", limit=2)] == [f"ck-1-{n}" for n in (5, 4, 3, 2, 1)]


def test_a_temporary_failure_is_tried_again_with_the_same_request_id(client: Client, site: FakeSite) -> None:
    """Two failures, then success: one thing done, three requests, one id."""
    site.faults = [*busy(1), 503]
    client.put_target("copies", TARGET)
    ids = [call.body["request_id"] for call in site.calls]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert site.targets["copies"].generation == 1


def test_an_answer_lost_on_the_way_does_not_make_it_act_twice(site: FakeSite, endpoint: Endpoint) -> None:
    """The site acts, its answer is lost, the client repeats: the site answers from memory."""
    lost = iter([True, False])

    def wire(request: httpx.Request) -> httpx.Response:
        answer = site.wire().handle_request(request)
        if next(lost):
            raise httpx.ReadError("connection reset")
        return answer

    Client(endpoint, wire=httpx.MockTransport(wire)).put_target("copies", TARGET)
    assert len(site.calls) == 2
    assert site.targets["copies"].generation == 1


@pytest.mark.parametrize("error", [Invalid("x"), NotFound("x"), errors.Conflict("x"), errors.Corruption("x"), 500])
def test_only_the_temporary_is_tried_again(client: Client, site: FakeSite, error: Any) -> None:
    """Any other failure is told at once."""
    site.faults = [error]
    with pytest.raises(DpacError):
        client.targets()
    assert len(site.calls) == 1


def test_trying_again_ends(endpoint: Endpoint, site: FakeSite) -> None:
    """A site that stays busy is reported in bounded time, as what it said."""
    site.faults = busy(10_000)
    client = Client(endpoint, wire=site.wire(), retry_seconds=0.4)
    with pytest.raises(Temporary, match="busy"):
        client.targets()
    assert 2 <= len(site.calls) < 50


def test_a_token_is_not_made_twice(client: Client, site: FakeSite) -> None:
    """Making a token carries no request id, so it is never repeated."""
    site.faults = busy(1)
    with pytest.raises(Temporary):
        client.create_token("ci", "read")
    assert len(site.calls) == 1


def test_each_error_of_the_tree_survives_the_wire(client: Client, site: FakeSite) -> None:
    """Class, message and property come back as they were raised."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DpacError)]
    for kind in kinds:
        quick = Client(client.endpoint, wire=site.wire(), retry_seconds=0.01)
        site.faults = [kind("why", property_path="members.disk.size")] * 50
        with pytest.raises(DpacError) as caught:
            quick.targets()
        assert type(caught.value) is kind
        assert (caught.value.message, caught.value.property_path) == ("why", "members.disk.size")


def test_a_404_that_is_not_of_dpac_says_nothing_about_a_resource(client: Client, site: FakeSite) -> None:
    """A proxy's 404 must not look like a resource that is gone."""
    site.faults = [404]
    with pytest.raises(DpacError) as caught:
        client.group("shop")
    assert not isinstance(caught.value, NotFound)


def _all_of_httpx() -> list[type[Exception]]:
    found: list[type[Exception]] = [httpx.InvalidURL, httpx.StreamConsumed, httpx.StreamClosed]
    pending: list[type[Exception]] = [httpx.RequestError]
    while pending:
        kind = pending.pop()
        found.append(kind)
        pending += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", _all_of_httpx(), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_is_mapped(endpoint: Endpoint, kind: type[Exception]) -> None:
    """Nothing foreign leaves the client; what may pass is Temporary, what will not is not."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise kind() if kind in (httpx.StreamConsumed, httpx.StreamClosed) else kind("why")

    with pytest.raises(DpacError) as caught:
        Client(endpoint, wire=httpx.MockTransport(fail), retry_seconds=0.01).targets()
    may_pass = issubclass(
        kind, httpx.TimeoutException | httpx.NetworkError | httpx.ProxyError | httpx.RemoteProtocolError
    )
    assert isinstance(caught.value, Temporary) == may_pass
    assert "http://site.test" in caught.value.message


def test_time_outs_differ_from_silence(endpoint: Endpoint) -> None:
    """No connection is Unreachable; a connection without an answer in time is TimedOut."""
    assert type(foreign(httpx.ConnectTimeout("x"), endpoint)) is Unreachable
    assert type(foreign(httpx.ConnectError("x"), endpoint)) is Unreachable
    assert type(foreign(httpx.ReadTimeout("x"), endpoint)) is TimedOut


def test_an_untrusted_certificate_is_not_tried_again(endpoint: Endpoint) -> None:
    """It is a mistake in the set-up, and the message names the setting."""
    cause = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    error = foreign(httpx.ConnectError(str(cause)), endpoint)
    assert type(error) is Invalid
    assert "DPAC_CA_FILE" in error.message


def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A missing file, and one without certificates."""
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    for path in (tmp_path / "missing.pem", empty):
        with pytest.raises(Invalid, match=path.name):
            Client(Endpoint(url="https://site.test", source="a test", ca_file=path))


def test_the_token_is_read_at_every_call(client: Client, endpoint: Endpoint) -> None:
    """A rotated token is used at once, a missing file is named."""
    assert endpoint.token_file is not None
    client.targets()
    endpoint.token_file.write_text("another")
    with pytest.raises(Unauthenticated):
        client.targets()
    endpoint.token_file.unlink()
    with pytest.raises(Unauthenticated, match=str(endpoint.token_file)):
        client.targets()
    assert issubclass(Unauthenticated, Denied)


def test_the_token_is_never_shown(client: Client, caplog: pytest.LogCaptureFixture, endpoint: Endpoint) -> None:
    """Neither repr, nor logs at their loudest, nor an error holds it."""
    caplog.set_level(logging.DEBUG)
    client.targets()
    assert endpoint.token_file is not None
    endpoint.token_file.write_text(f"{TOKEN} {TOKEN}")
    with pytest.raises(Unauthenticated) as caught:
        client.targets()
    for shown in (repr(client), repr(vars(client)), caplog.text, str(caught.value)):
        assert TOKEN not in shown


def test_a_client_that_knows_its_site_refuses_another(site: FakeSite, endpoint: Endpoint) -> None:
    """Every request says which site is meant, and the site's own word is checked as well."""
    client = Client(endpoint, wire=site.wire(), site_uid="0" * 32)
    with pytest.raises(WrongSite):
        client.groups()
    assert site.calls[0].headers["dpac-site"] == "0" * 32

    info = {"site_uid": site.site_uid, "name": "x", "version": "1", "api_version": 1, "api_version_oldest": 1}
    deaf = httpx.MockTransport(lambda _: httpx.Response(200, json=info))
    with pytest.raises(WrongSite, match=site.site_uid):
        Client(endpoint, wire=deaf, site_uid="0" * 32).site()


@pytest.mark.parametrize(("oldest", "best", "side"), [(2, 3, "this program's dpac"), (0, 0, "the backend")])
def test_versions_that_do_not_overlap_say_which_side_to_upgrade(
    endpoint: Endpoint, oldest: int, best: int, side: str
) -> None:
    """A newer site asks for a newer client, an older one is to be upgraded itself."""
    info = {"site_uid": "0" * 32, "name": "x", "version": "7", "api_version": best, "api_version_oldest": oldest}
    wire = httpx.MockTransport(lambda _: httpx.Response(200, json=info))
    with pytest.raises(Unsupported, match=f"Upgrade {side}"):
        Client(endpoint, wire=wire).site()


def test_every_request_says_its_version(client: Client, site: FakeSite) -> None:
    """The header is there on reads and on changes."""
    client.targets()
    client.put_target("copies", TARGET)
    assert {call.headers["dpac-api-version"] for call in site.calls} == {"1"}


def test_a_newer_backend_may_say_more(endpoint: Endpoint) -> None:
    """Unknown fields of an answer are left out, at any depth."""
    target = {
        "name": "t",
        "uid": "0" * 32,
        "site_uid": "0" * 32,
        "owner": None,
        "spec": {"kind": "filesystem", "path": "/x", "invented": 1},
        "generation": 1,
        "invented": {"later": True},
    }
    wire = httpx.MockTransport(lambda _: httpx.Response(200, json=[target]))
    assert Client(endpoint, wire=wire).targets()[0].spec == FilesystemTargetSpec(path="/x")


@pytest.mark.parametrize("content", [b"<html>hello</html>", json.dumps([{"name": "t"}]).encode()])
def test_an_answer_that_is_not_of_dpac_is_said_to_be_so(endpoint: Endpoint, content: bytes) -> None:
    """A page or another shape is an error that names the endpoint."""
    wire = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    with pytest.raises(DpacError, match=r"site\.test.*wire format"):
        Client(endpoint, wire=wire).targets()


def test_waiting_for_an_operation_ends_with_it_or_with_its_time(client: Client, site: FakeSite) -> None:
    """It is looked at until it ends; a deadline says that it goes on."""
    client.put_target("copies", TARGET)
    client.put_group("shop", GROUP)
    begun = client.drill("shop")
    done = site.operations[begun.id]
    site.operations[begun.id] = done.model_copy(update={"phase": Phase.RUNNING})
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 3:
            site.operations[begun.id] = done

    assert client.wait(begun.id, timeout_seconds=60, sleep=pass_time, monotonic=lambda: now[0]).phase is Phase.SUCCEEDED

    site.operations[begun.id] = done.model_copy(update={"phase": Phase.RUNNING})
    now[0] = -100.0
    with pytest.raises(TimedOut, match="goes on"):
        client.wait(begun.id, timeout_seconds=60, sleep=pass_time, monotonic=lambda: now[0])


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_never_climbs_out_of_its_route(client: Client, site: FakeSite, name: str) -> None:
    """What would be another route is refused before anything is sent."""
    with pytest.raises(Invalid):
        client.group(name)
    assert site.calls == []


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda client: client.take_checkpoint("shop", tag="no spaces"), "tag"),
        (lambda client: client.mount("shop", at="sometime"), "at"),
        (lambda client: client.restore("shop", member="disk", to="/"), "to"),
        (lambda client: client.restore("shop", member="disk", to="here"), "to"),
        (lambda client: client.verify("shop", target="No Name"), "target"),
    ],
)
def test_an_argument_the_wire_format_does_not_have_is_refused_by_name(
    client: Client, site: FakeSite, call: Callable[[Client], object], path: str
) -> None:
    """It is a message that names the argument and says what it may be, before anything is sent."""
    with pytest.raises(Invalid, match=f"^{path}: .* cannot be used") as caught:
        call(client)
    assert caught.value.property_path == path
    assert "\n" not in caught.value.message
    assert site.calls == []
