"""A bucket whose objects are locked, at a real server: what is written stays, whatever its own keys do to it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dpac_api.errors import Conflict, Denied, NotFound, Unsupported
from dpac_api.models import S3TargetSpec
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.stores.counting import Meter
from dpac_engine.io.stores.s3 import LARGE_BYTES, S3Store
from dpac_engine.io.stores.s3_client import make_client
from dpac_engine.io.stores.s3_locks import S3Locks
from dpac_engine.wiring import examine_target
from tests.s3_server import S3Server, attack, s3_server

HOUR = timedelta(hours=1)
HOUR_NS = 3600 * 10**9


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server that keeps versions, for all of this module."""
    with s3_server(tmp_path_factory.mktemp("s3"), keeps_versions=True) as running:
        yield running


@pytest.fixture
def spec(server: S3Server) -> S3TargetSpec:
    """A target in a new, empty bucket with Object Lock."""
    name = f"b{secrets.token_hex(8)}"
    server.make_bucket(name, locks=True)
    return server.spec(name, object_lock="compliance")


@pytest.fixture
def store(spec: S3TargetSpec) -> S3Store:
    """A store that locks what it writes for an hour."""
    return S3Store(spec, locked_for=HOUR)


@pytest.fixture
def locks(spec: S3TargetSpec) -> S3Locks:
    """The locks in it."""
    return S3Locks(S3Store(spec), "", Meter(SystemClock()))


def test_what_was_written_is_read_whatever_was_done_to_it_since(store: S3Store, spec: S3TargetSpec) -> None:
    """Overwritten, or then deleted as well, by the same keys: it is there, whole, in ranges, with its size, and listed."""
    for hide in (False, True):
        prefix = f"p{hide}/"
        for at in range(3):
            store.create(f"{prefix}{at}", b"0123456789" * (at + 1))
        assert attack(spec, hide=hide) >= 3
        for reader in (store, S3Store(spec)):
            assert reader.get(f"{prefix}1") == b"0123456789" * 2
            assert reader.get(f"{prefix}1", 18, 10) == b"89"
            assert reader.size(f"{prefix}2") == 30
            assert list(reader.list(prefix)) == [f"{prefix}{at}" for at in range(3)]
            assert list(reader.list(prefix, start_after=f"{prefix}0")) == [f"{prefix}1", f"{prefix}2"]


def test_a_version_that_is_locked_cannot_be_deleted(store: S3Store, spec: S3TargetSpec) -> None:
    """The attack goes as far as it says: without a lock the version goes, with one it does not."""
    store.put("locked", b"stays")
    S3Store(spec).put("loose", b"goes")
    assert attack(spec) == 1
    assert store.get("locked") == b"stays"
    assert store.get("loose") == b"ransom"


def test_a_large_object_is_locked_as_well(store: S3Store, locks: S3Locks, spec: S3TargetSpec) -> None:
    """One that goes in parts carries its lock, too, and is read in parts of that very version."""
    large = secrets.token_bytes(LARGE_BYTES + 1000)
    store.put("s/large", large)
    assert locks.end_ns("s/large") > time.time_ns() + 0.9 * HOUR_NS
    attack(spec)
    assert S3Store(spec).get("s/large") == large


def test_a_lock_is_extended_and_never_shortened(store: S3Store, locks: S3Locks, spec: S3TargetSpec) -> None:
    """Its end is told and moves later, that of the version which is read, though another lies on top; earlier is Denied."""
    begin = time.time_ns()
    store.put("s/one", b"one")
    assert begin + 0.99 * HOUR_NS < locks.end_ns("s/one") < begin + 1.1 * HOUR_NS
    attack(spec)
    locks.extend("s/one", begin + 50 * HOUR_NS)
    assert abs(locks.end_ns("s/one") - (begin + 50 * HOUR_NS)) <= 10**9
    with pytest.raises(Denied):
        locks.extend("s/one", begin + 2 * HOUR_NS)
    assert locks.end_ns("s/one") > begin + 49 * HOUR_NS


def test_what_is_not_locked_is_told(spec: S3TargetSpec, locks: S3Locks) -> None:
    """An object from before locks were asked for ends at 0, and gets one; a missing one is NotFound."""
    S3Store(spec).put("early", b"was there")
    assert locks.end_ns("early") == 0
    locks.extend("early", time.time_ns() + HOUR_NS)
    assert locks.end_ns("early") > time.time_ns()
    with pytest.raises(NotFound):
        locks.end_ns("never")


def test_a_deleted_key_is_not_free_and_not_visible(store: S3Store, locks: S3Locks) -> None:
    """A create where something was deleted is a Conflict; a listing of what is visible leaves it out."""
    store.create("m/1", b"first")
    store.create("m/2", b"second")
    store.delete("m/1")
    assert list(locks.visible("m/")) == ["m/2"]
    assert list(store.list("m/")) == ["m/1", "m/2"]
    with pytest.raises(Conflict):
        store.create("m/1", b"again")
    assert store.get("m/1") == b"first"


def test_a_create_that_comes_second_under_a_marker_is_a_conflict(
    store: S3Store, spec: S3TargetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a deleted key counts as free, as at Amazon, the create is let through, and still found to be second."""
    S3Store(spec).put("m/7", b"put there by somebody else")
    store.delete("m/7")
    sent = store._client().put_object
    with monkeypatch.context() as patch:
        patch.setattr(
            store._client(), "put_object", lambda IfNoneMatch, **more: sent(**more)
        )  # this server refuses it by itself
        with pytest.raises(Conflict, match="existed already, and was deleted"):
            store.create("m/7", b"ours")
        store.create("m/8", b"ours")


def test_a_bucket_without_locks_is_unfit(server: S3Server, spec: S3TargetSpec, locks: S3Locks) -> None:
    """The proof at a leg's opening raises Unsupported, and the check of the target says what to do."""
    locks.prove()
    assert examine_target(spec)["object-lock"] == "ok"
    name = f"b{secrets.token_hex(8)}"
    server.make_bucket(name)
    plain = server.spec(name, object_lock="compliance")
    with pytest.raises(Unsupported, match="created with Object Lock"):
        S3Locks(S3Store(plain), "", Meter(SystemClock())).prove()
    assert "created with Object Lock" in examine_target(plain)["object-lock"]
    assert "object-lock" not in examine_target(server.spec(name))


def test_governance_locks_yield_to_who_may_bypass_them(server: S3Server, spec: S3TargetSpec) -> None:
    """`governance` is what the server is told: a plain delete of the version is refused, one that bypasses it is not."""
    store = S3Store(spec.model_copy(update={"object_lock": "governance"}), locked_for=HOUR)
    store.put("one", b"one")
    assert attack(spec, hide=False) == 1
    client = make_client(spec)
    [_, version] = client.list_object_versions(Bucket=spec.bucket, Prefix="one")["Versions"]
    client.delete_object(Bucket=spec.bucket, Key="one", VersionId=version["VersionId"], BypassGovernanceRetention=True)
    assert store.get("one") == b"ransom", "what was locked is gone"


def test_requests_for_versions_and_locks_are_counted(spec: S3TargetSpec, store: S3Store) -> None:
    """They are billed, so that the estimate of the cost must know them."""
    store.put("one", b"one")
    meter = Meter(SystemClock())
    listed = 0

    def count() -> None:
        nonlocal listed
        listed += 1

    reader = S3Store(spec, listed=count)
    locks = S3Locks(reader, "", meter)
    reader.get("one")
    reader.get("one")
    assert listed == 1
    locks.end_ns("one")
    locks.extend("one", int(datetime.now(UTC).timestamp() + 7200) * 10**9)
    counted = meter.read()
    assert (counted.read_requests, counted.write_requests) == (1, 1)
