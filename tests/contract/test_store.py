"""The contract that every store passes (`core.ports.Store`); the in-memory one first."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpac_api.errors import Conflict, Denied, DpacError, Invalid, NotFound, Temporary
from dpac_api.models import S3TargetSpec
from dpac_engine.core.ports import Store
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.stores.counting import CountingStore, Meter
from dpac_engine.io.stores.filesystem import FilesystemStore
from dpac_engine.io.stores.memory import MemoryStore
from dpac_engine.io.stores.prefixed import PrefixedStore
from dpac_engine.io.stores.retrying import RetryingStore
from dpac_engine.io.stores.s3 import LARGE_BYTES, S3Store
from dpac_engine.io.stores.s3_client import make_client
from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, for all of this module."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server) -> S3TargetSpec:
    """A target in a new, empty bucket."""
    name = f"b{secrets.token_hex(8)}"
    server.make_bucket(name)
    return server.spec(name)


@pytest.fixture(params=["memory", "filesystem", "prefixed", "s3", "s3-wrapped"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each store, empty."""
    if request.param.startswith("s3"):
        bare = S3Store(request.getfixturevalue("bucket"))
        return (
            bare
            if request.param == "s3"
            else PrefixedStore(
                RetryingStore(CountingStore(bare, Meter(SystemClock()), bare.request_count), 3.0), "site-a/g/one/"
            )
        )
    if request.param == "memory":
        return MemoryStore()
    if request.param == "prefixed":
        return PrefixedStore(MemoryStore(), "g/one/")
    return FilesystemStore(tmp_path)


def test_what_is_put_is_read_back(store: Store) -> None:
    """A put object is there whole, in ranges, and with its size."""
    store.put("s/a/one", memoryview(b"0123456789"))
    assert store.get("s/a/one") == b"0123456789"
    assert store.get("s/a/one", 2, 3) == b"234"
    assert store.get("s/a/one", 8, 100) == b"89"
    assert store.get("s/a/one", 4) == b"456789"
    assert store.size("s/a/one") == 10


def test_put_replaces_and_an_empty_object_is_one(store: Store) -> None:
    """A second put of a key replaces the first, by nothing at all if asked."""
    store.put("k", b"first")
    store.put("k", b"")
    assert store.get("k") == b""
    assert store.size("k") == 0


def test_create_is_refused_where_the_key_is_taken(store: Store) -> None:
    """A create of a taken key is a Conflict and leaves the object as it was."""
    store.create("m/1", b"mine")
    with pytest.raises(Conflict):
        store.create("m/1", b"yours")
    assert store.get("m/1") == b"mine"


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    """Creates of one key by many threads at once: one succeeds, and its bytes are there."""
    won: list[int] = []
    start = threading.Barrier(8)

    def attempt(number: int) -> None:
        start.wait()
        try:
            store.create("m/2", bytes([number]) * 1000)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("m/2") == bytes([won[0]]) * 1000


def test_a_missing_object_is_not_found(store: Store) -> None:
    """Reading what is not there is NotFound; deleting it is no error."""
    with pytest.raises(NotFound):
        store.get("nothing/here")
    with pytest.raises(NotFound):
        store.size("nothing/here")
    store.delete("nothing/here")


def test_a_deleted_object_is_gone_and_its_key_free(store: Store) -> None:
    """After a delete the key can be created again."""
    store.create("m/3", b"x")
    store.delete("m/3")
    with pytest.raises(NotFound):
        store.get("m/3")
    store.create("m/3", b"y")
    assert store.get("m/3") == b"y"


def test_listing_is_sorted_by_key_and_starts_after(store: Store) -> None:
    """Keys come in order of their bytes, across folders, from the given key on, of the prefix only."""
    for key in ("m/2", "m/10", "m/1", "m/a/x", "n/1", "mm/1"):
        store.put(key, b"x")
    assert list(store.list("m/")) == ["m/1", "m/10", "m/2", "m/a/x"]
    assert list(store.list("m/", start_after="m/10")) == ["m/2", "m/a/x"]
    assert list(store.list("n")) == ["n/1"]
    assert list(store.list("zzz/")) == []


def test_what_is_large_goes_in_parts_whole_and_only_once(bucket: S3TargetSpec) -> None:
    """Multipart both ways; a create of it is refused where the key is taken, and leaves no part behind."""
    store = S3Store(bucket)
    data = secrets.token_bytes(LARGE_BYTES + 12_345)
    store.create("s/large", memoryview(data))
    assert store.size("s/large") == len(data)
    assert store.get("s/large") == data
    assert store.get("s/large", 1000, len(data)) == data[1000:]
    with pytest.raises(Conflict):
        store.create("s/large", data[::-1])
    assert store.get("s/large") == data
    assert make_client(bucket).list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", []) == []


def test_a_listing_of_many_pages_is_whole_and_in_order(bucket: S3TargetSpec) -> None:
    """More keys than one answer holds."""
    store = S3Store(bucket)
    keys = [f"m/{number:05}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert list(store.list("m/")) == keys
    assert list(store.list("m/", start_after="m/00998")) == keys[999:]


@pytest.mark.parametrize("key", ["", "/abs", "a//b", "../up", "a/../../b", "a b", "a/", "x" * 513, ".tmp/x"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    """The filesystem store writes nothing outside its folder, whatever the key."""
    with pytest.raises(Invalid):
        FilesystemStore(tmp_path).put(key, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_temporary_not_empty(tmp_path: Path) -> None:
    """A mount that went away is an error worth a retry: neither an empty listing nor NotFound."""
    store = FilesystemStore(tmp_path / "gone")
    with pytest.raises(Temporary):
        list(store.list("m/"))
    with pytest.raises(Temporary):
        store.get("m/1")
    with pytest.raises(Temporary):
        store.put("m/1", b"x")
    assert not store.root.exists()


def test_errors_of_the_system_are_mapped(tmp_path: Path, mocker) -> None:
    """A full disk is Temporary and says so; a forbidden folder is Denied."""
    store = FilesystemStore(tmp_path)
    mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with pytest.raises(Temporary, match="Free space"):
        store.put("k", b"x")
    mocker.patch("os.fsync", side_effect=PermissionError(13, "Permission denied"))
    with pytest.raises(Denied):
        store.put("k", b"x")
    mocker.stopall()
    assert list(store.list("")) == []
    assert issubclass(Denied, DpacError)
