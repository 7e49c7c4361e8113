"""The S3 store against a real server, and against everything that can go wrong on the way to it."""

from __future__ import annotations

import logging
import pickle
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto

from dpac_api.errors import (
    Conflict,
    Corruption,
    Denied,
    DpacError,
    Invalid,
    NotFound,
    Temporary,
    TimedOut,
    Unreachable,
    Unsupported,
)
from dpac_api.models import S3TargetSpec
from dpac_engine.control.repositories import TargetRecovery
from dpac_engine.core.ports import TargetMissing
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.stores import s3_client
from dpac_engine.io.stores.counting import Meter
from dpac_engine.io.stores.s3 import CLASS_BYTES_MIN, S3Store
from dpac_engine.io.stores.s3_errors import mapped
from dpac_engine.wiring import examine_target, open_store
from tests.s3_faults import Answer, Fault, FaultyProxy, faulty_proxy, flipped, lax, lost, refused
from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, for all of this module."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.make_bucket("copies")
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    """A way to it on which things go wrong."""
    with faulty_proxy(server.port) as running:
        yield running


@pytest.fixture
def spec(server: S3Server, proxy: FaultyProxy) -> S3TargetSpec:
    """A target behind the proxy, in a place of its own."""
    return server.spec("copies", endpoint=proxy.endpoint, prefix=secrets.token_hex(8))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 1.0)
    monkeypatch.setattr(s3_client, "CONNECT_SECONDS", 1.0)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("status", "code", "expected", "says"),
    [
        (404, "NoSuchBucket", TargetMissing, "Create it"),
        (404, "NoSuchKey", NotFound, "not there"),
        (412, "PreconditionFailed", Conflict, "exists already"),
        (409, "ConditionalRequestConflict", Temporary, "tried again"),
        (403, "AccessDenied", Denied, "docs/s3.md"),
        (403, "InvalidAccessKeyId", Denied, "access key"),
        (403, "SignatureDoesNotMatch", Denied, "secret key"),
        (400, "ExpiredToken", Denied, "expired"),
        (403, "RequestTimeTooSkewed", Denied, "clock"),
        (403, "InvalidObjectState", Denied, "archive"),
        (404, "XAdminUserNotFound", Denied, "access key"),
        (404, "SomethingElseIsNotFound", DpacError, "target check"),
        (401, "Unauthorized", Denied, "credentials"),
        (503, "SlowDown", Temporary, "throttles"),
        (429, "TooManyRequests", Temporary, "throttles"),
        (500, "InternalError", Temporary, "tried again"),
        (502, "502", Temporary, "failed"),
        (507, "XMinioStorageFull", Temporary, "full"),
        (400, "RequestTimeout", Temporary, "tried again"),
        (400, "BadDigest", Temporary, "damaged"),
        (400, "IllegalLocationConstraintException", Invalid, "region"),
        (501, "NotImplemented", Unsupported, "contract"),
        (400, "MalformedXML", DpacError, "target check"),
    ],
)
def test_what_a_server_answers_becomes_an_error_of_the_tree(
    proxy: FaultyProxy, spec: S3TargetSpec, status: int, code: str, expected: type[DpacError], says: str
) -> None:
    """By its code, with what was asked, where, and what to do next; never with the server's own words."""
    proxy.fault = refused(status, code)
    with pytest.raises(DpacError) as caught:
        S3Store(spec).get("m/1")
    assert type(caught.value) is expected
    assert says in caught.value.message
    assert f"read m/1 at s3://copies/{spec.prefix} at {proxy.endpoint}" in caught.value.message
    assert "Told to." not in caught.value.message


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (boto.EndpointConnectionError(endpoint_url="http://x"), Unreachable),
        (boto.ConnectTimeoutError(endpoint_url="http://x"), Unreachable),
        (boto.ProxyConnectionError(proxy_url="http://x"), Unreachable),
        (boto.SSLError(endpoint_url="http://x", error="self-signed"), Unreachable),
        (boto.ReadTimeoutError(endpoint_url="http://x"), TimedOut),
        (boto.ConnectionClosedError(endpoint_url="http://x"), Temporary),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Temporary),
        (boto.ResponseStreamingError(error="x"), Temporary),
        (boto.FlexibleChecksumError(error_msg="x"), Corruption),
        (boto.NoCredentialsError(), Denied),
        (boto.PartialCredentialsError(provider="env", cred_var="x"), Denied),
        (boto.CredentialRetrievalError(provider="x", error_msg="s3cr3t"), Denied),
        (boto.UnauthorizedSSOTokenError(), Denied),
        # A 301 that botocore's own search for the region could not resolve.
        (boto.ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 301}}, "GetObject"), Invalid),  # type: ignore[typeddict-item]
        (boto.ParamValidationError(report="x"), DpacError),
    ],
)
def test_what_botocore_raises_becomes_an_error_of_the_tree(raised: Exception, expected: type[DpacError]) -> None:
    """Every kind of failure before or instead of an answer."""
    with pytest.raises(DpacError) as caught, mapped("write m/1", "s3://copies"):
        raise raised
    assert type(caught.value) is expected
    assert "Cannot write m/1 at s3://copies: " in caught.value.message
    assert "s3cr3t" not in caught.value.message


def test_nobody_listening_is_unreachable(server: S3Server) -> None:
    """And the message says what to check."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(Unreachable, match="endpoint"):
            S3Store(server.spec("copies", endpoint=nobody)).get("m/1")


def test_silence_times_out(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """A server that takes the request and says nothing does not hold a leg for ever."""
    proxy.stalled.set()
    with pytest.raises(TimedOut):
        S3Store(spec).put("s/1", b"x")


def test_a_missing_bucket_is_no_missing_object(server: S3Server) -> None:
    """Nothing may conclude from it that a target is empty: not a read, a size, nor a listing."""
    store = S3Store(server.spec("nobody-made-it"))
    for ask in (
        lambda: store.get("a"),
        lambda: store.size("a"),
        lambda: list(store.list("a")),
        lambda: store.put("a", b""),
    ):
        with pytest.raises(TargetMissing, match="no such bucket"):
            ask()


def test_a_flipped_bit_on_the_way_back_is_corruption(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """The checksum that went with the put is checked when the object is read."""
    store = S3Store(spec)
    store.put("s/1", b"what was written")
    proxy.fault = flipped
    with pytest.raises(Corruption, match="checksum"):
        store.get("s/1")
    proxy.fault = None
    assert store.get("s/1") == b"what was written"


def test_a_lost_answer_to_a_create_is_a_conflict_with_itself(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """Retried, not hidden: who wrote it compares ids with what lies there."""
    faults: list[Fault | None] = [lost]

    def first_lost(asked: Any, go_on: Any) -> Any:
        return faults.pop()(asked, go_on) if faults else go_on()  # type: ignore[misc]

    proxy.fault = first_lost
    store = open_store(spec, Meter(SystemClock()), 5.0)
    with pytest.raises(Conflict):
        store.create("m/1", b"mine")
    assert store.get("m/1") == b"mine"
    assert proxy.count("PUT", "m/1") == 2


def test_throttling_that_passes_is_ridden_out(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """The wrapper repeats what is temporary, and only that."""
    left = [3]

    def thrice(asked: Any, go_on: Any) -> Any:
        if left[0]:
            left[0] -= 1
            return refused(503, "SlowDown")(asked, go_on)
        return go_on()

    proxy.fault = thrice
    store = open_store(spec, Meter(SystemClock()), 20.0)
    store.put("s/1", b"x")
    assert proxy.count("PUT") == 4
    proxy.fault = refused(403, "AccessDenied")
    with pytest.raises(Denied):
        store.get("s/1")
    assert proxy.count("GET") == 1


# ------------------------------------------------------------------ credentials


def test_credentials_are_found_where_they_are_referred_to(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, profile, file and the SDK's own chain."""
    text = server.keys_file.read_text()
    (tmp_path / "aws").write_text(text.replace("[default]", "[backup]"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("COPIES_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("COPIES_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    for reference in ("environment:COPIES", "default", f"file:{server.keys_file}"):
        assert list(S3Store(server.spec("copies", credentials=reference)).list("nothing/")) == []
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert list(S3Store(server.spec("copies", credentials="profile:backup")).list("nothing/")) == []


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (None, 0o600, "cannot be read"),
        ("[default]\naws_access_key_id = AK\naws_secret_access_key = s3cr3t\n", 0o644, "chmod 600"),
        ("aws_secret_access_key = s3cr3t\n", 0o600, "no credentials file"),
        ("[a]\nx=1\n[b]\nx=1\n", 0o600, r"no section \[default\]"),
        ("[default]\naws_secret_access_key = s3cr3t\n", 0o600, "no access key"),
    ],
)
def test_a_bad_credentials_file_is_denied_without_its_content(
    server: S3Server, tmp_path: Path, text: str | None, mode: int, says: str
) -> None:
    """With what is wrong, and no line of it."""
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(Denied, match=says) as caught:
        S3Store(server.spec("copies", credentials=f"file:{file}")).get("m/1")
    assert "s3cr3t" not in caught.value.message


@pytest.mark.parametrize("reference", ["environment:NOWHERE", "profile:nobody"])
def test_a_reference_to_nothing_is_denied(server: S3Server, reference: str) -> None:
    """And says what to do."""
    with pytest.raises(Denied, match=r"Put both there|Add it"):
        S3Store(server.spec("copies", credentials=reference)).get("m/1")


def test_corrected_credentials_are_taken_up_by_the_same_store(server: S3Server) -> None:
    """A reference is read again after it was refused: a long-lived reader needs no restart."""
    store = S3Store(server.spec("copies"))
    store.put("kept/1", b"x")
    server.write_keys("AKWRONG", "not-the-secret")
    try:
        other = S3Store(server.spec("copies"))
        with pytest.raises(Denied, match="access key"):
            other.get("kept/1")
        server.write_keys(server.access_key, "not-the-secret")
        with pytest.raises(Denied, match="secret key"):
            other.get("kept/1")
    finally:
        server.write_keys(server.access_key, server.secret_key)
    assert other.get("kept/1") == b"x"


def test_no_secret_is_logged_shown_or_pickled(
    server: S3Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """At no log level of ours, in no error, and in nothing that travels."""
    spec = server.spec("copies")
    caplog.set_level(logging.DEBUG, logger="dpac_engine")
    store = S3Store(spec)
    store.put("kept/2", b"x")
    with pytest.raises(NotFound) as caught:
        store.get("kept/none")
    said = caplog.text + repr(caught.value) + repr(vars(store)) + spec.model_dump_json() + repr(pickle.dumps(spec))
    assert server.secret_key not in said
    assert server.access_key not in said


# ------------------------------------------------------------------ what is sent


def test_small_objects_are_always_standard(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """A class for what is read rarely bills a manifest as 128 KiB: only segments go there."""
    store = S3Store(spec.model_copy(update={"storage_class": "STANDARD_IA"}))
    proxy.fault = lambda asked, go_on: Answer(200, [("ETag", '"0"')], b"")
    for size in (CLASS_BYTES_MIN - 1, CLASS_BYTES_MIN):
        store.put(f"s/{size}", bytes(size))
    classes = [asked.headers.get("x-amz-storage-class") for asked in proxy.asked]
    assert classes == [None, "STANDARD_IA"]


# ------------------------------------------------------------------ what it needs


def test_without_boto3_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install is light: only who uses a bucket needs it."""
    for name in [name for name in sys.modules if name.startswith("dpac_engine.io.stores.s3")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(Unsupported, match=r"pip install 'dpac\[aws\]'"):
        open_store(S3TargetSpec(bucket="shop-copies"), Meter(SystemClock()))


def test_a_worker_starts_without_loading_boto3() -> None:
    """It takes most of a second, and most workers never need it."""
    program = "import sys, dpac_engine.wiring as w; w.load_worker(); sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


# ------------------------------------------------------------------ target check


def _check(spec: S3TargetSpec) -> dict[str, str]:
    recovery = TargetRecovery(lambda target: open_store(target, Meter(SystemClock())), examine_target, *([None] * 6))  # type: ignore[arg-type]
    return recovery.probe(spec)


def test_a_good_target_passes_every_probe_and_keeps_none_of_them(server: S3Server, spec: S3TargetSpec) -> None:
    """Reach, credentials, bucket, clock, and every kind of request; nothing is left in the bucket."""
    found = _check(spec)
    assert list(found) == [
        "credentials", "reach", "bucket", "clock", "write", "create-only", "read", "list", "replace", "delete",
    ]  # fmt: skip
    assert set(found.values()) == {"ok"}
    assert list(S3Store(spec).list(spec.prefix)) == []


def test_a_server_that_ignores_the_condition_of_a_create_is_found_out(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """The verdict says what cannot be kept out, and that this target is no good."""
    proxy.fault = lax
    found = _check(spec)
    assert "stale primary" in found["create-only"]
    assert [probe for probe, what in found.items() if what != "ok"] == ["create-only"]


def test_a_check_names_what_is_wrong_first(server: S3Server, proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """A missing bucket, refused keys, nobody there: one verdict, not ten of the same."""
    assert "no such bucket" in _check(server.spec("nobody-made-it"))["reach"]
    assert "no access key" in _check(server.spec("copies", credentials="environment:NOWHERE"))["credentials"]
    proxy.fault = refused(403, "SignatureDoesNotMatch")
    assert "secret key" in _check(spec)["credentials"]


def test_a_clock_that_is_off_is_told(proxy: FaultyProxy, spec: S3TargetSpec) -> None:
    """Before the server refuses for it."""

    def long_ago(asked: Any, go_on: Any) -> Any:
        answer = go_on()
        others = [(name, value) for name, value in answer.headers if name != "Date"]
        answer.headers = [*others, ("Date", "Thu, 01 Jan 2026 00:00:00 GMT")]
        return answer

    proxy.fault = long_ago
    assert "NTP" in _check(spec)["clock"]
