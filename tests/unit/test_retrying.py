"""The retry wrapper: by class of error, within a bound, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpac_api.errors import Conflict, Corruption, Denied, DpacError, NotFound, Temporary, TimedOut, Unreachable
from dpac_engine.core.ports import TargetMissing
from dpac_engine.io.stores.memory import MemoryStore
from dpac_engine.io.stores.retrying import PAUSE_SECONDS_MAX, RetryingStore


class Faulty(MemoryStore):
    """Raises what is queued before it does as it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[DpacError] = []
        self.tries = 0

    def _fail(self) -> None:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._fail()
        super().put(key, data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        self._fail()
        super().create(key, data)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._fail()
        return super().get(key, offset, length)

    def size(self, key: str) -> int:
        self._fail()
        return super().size(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        self._fail()
        for at, key in enumerate(super().list(prefix, start_after)):
            if at == 2:
                self._fail()  # in the midst of the listing
            yield key

    def delete(self, key: str) -> None:
        self._fail()
        super().delete(key)


class Time:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


CALLS: dict[str, Callable[[RetryingStore], Any]] = {
    "put": lambda store: store.put("k", b"x"),
    "create": lambda store: store.create("k", b"x"),
    "get": lambda store: store.get("a"),
    "size": lambda store: store.size("a"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("a"),
}


@pytest.fixture
def inner() -> Faulty:
    """A store with four objects."""
    store = Faulty()
    store.objects = dict.fromkeys(("a", "b", "c", "d"), b"x")
    return store


@pytest.fixture
def time() -> Time:
    """Virtual time, and pauses that are the same in each run."""
    random.seed(4)
    return Time()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [Temporary, TimedOut, Unreachable])
def test_what_is_temporary_is_tried_again(inner: Faulty, time: Time, call: str, error: type[DpacError]) -> None:
    """Every call; nobody hears of two failures that passed."""
    inner.errors = [error("busy"), error("busy")]
    CALLS[call](RetryingStore(inner, 60, monotonic=lambda: time.now, sleep=time.sleep))
    assert inner.tries >= 3
    assert inner.errors == []
    assert len(time.slept) == 2


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [NotFound, Conflict, Denied, Corruption, TargetMissing, DpacError])
def test_nothing_else_is(inner: Faulty, time: Time, call: str, error: type[DpacError]) -> None:
    """It would be the same again, or waits for a person."""
    inner.errors = [error("no")]
    with pytest.raises(error):
        CALLS[call](RetryingStore(inner, 60, monotonic=lambda: time.now, sleep=time.sleep))
    assert inner.tries == 1
    assert time.slept == []


def test_pauses_grow_and_end_within_the_bound(inner: Faulty, time: Time) -> None:
    """The last error comes out, as it was, and no pause began that would have ended too late."""
    errors = [Temporary(f"busy {number}") for number in range(1000)]
    inner.errors = list(errors)
    with pytest.raises(Temporary) as caught:
        RetryingStore(inner, 20, monotonic=lambda: time.now, sleep=time.sleep).get("a")
    assert caught.value is errors[inner.tries - 1]
    assert time.now <= 20
    assert max(time.slept) <= PAUSE_SECONDS_MAX
    assert max(time.slept) > 4 * time.slept[0]


def test_a_bound_of_nothing_tries_once(inner: Faulty, time: Time) -> None:
    """Retries can be switched off."""
    inner.errors = [Temporary("busy")]
    with pytest.raises(Temporary):
        RetryingStore(inner, 0, monotonic=lambda: time.now, sleep=time.sleep).get("a")
    assert inner.tries == 1


def test_a_broken_listing_goes_on_where_it_was(inner: Faulty, time: Time) -> None:
    """No key twice, none left out."""
    keys = RetryingStore(inner, 60, monotonic=lambda: time.now, sleep=time.sleep).list("")
    assert [next(keys), next(keys)] == ["a", "b"]
    inner.errors = [Temporary("broke off"), Temporary("still")]
    assert list(keys) == ["c", "d"]
