"""What a target is asked for is counted as it is billed, and turned into a month's cost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dpac_api.errors import Conflict, NotFound, Temporary
from dpac_api.models import S3Prices, S3TargetSpec, TargetTraffic
from dpac_engine.core.costs import GIB, LIST_PRICES, monthly_cost
from dpac_engine.io.stores.counting import CountingStore, Meter, Meters
from dpac_engine.io.stores.memory import MemoryStore
from dpac_engine.io.stores.retrying import RetryingStore
from dpac_engine.io.stores.s3 import LARGE_BYTES, PART_BYTES, S3Store
from tests.unit.control_fakes import NOW_NS, FakeClock

NOW = datetime.fromtimestamp(NOW_NS / 1e9, UTC)


def test_calls_are_counted_by_what_they_are_billed_as() -> None:
    """Writes, reads, listings by the page, deletes, and bytes both ways; an answer of "no" is no failure."""
    meter = Meter(FakeClock())
    store = CountingStore(MemoryStore(), meter)
    store.put("a", b"12345")
    store.create("b", b"123")
    with pytest.raises(Conflict):
        store.create("b", b"1")
    assert store.get("a", 1, 2) == b"23"
    with pytest.raises(NotFound):
        store.get("c")
    store.size("a")
    store.delete("a")
    for number in range(1500):
        store.put(f"m/{number:04}", b"")
    assert len(list(store.list("m/"))) == 1500
    assert meter.read() == TargetTraffic(
        since=NOW, write_requests=1503, read_requests=3, list_requests=2, delete_requests=1, sent_bytes=9, received_bytes=2
    )  # fmt: skip


def test_each_try_counts_and_failures_apart() -> None:
    """The counter lies within what retries: the server bills every try."""

    class Busy(MemoryStore):
        left = 2

        def put(self, key: str, data: bytes | memoryview) -> None:
            if self.left:
                self.left -= 1
                raise Temporary("busy")
            super().put(key, data)

        def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
            raise Temporary("busy")

    meter = Meter(FakeClock())
    store = RetryingStore(CountingStore(Busy(), meter), 60, sleep=lambda _: None)
    store.put("k", b"x")
    assert (meter.read().write_requests, meter.read().failed_requests) == (3, 2)


def test_what_goes_in_parts_is_counted_in_parts() -> None:
    """As many requests as S3 bills."""
    assert S3Store.request_count(LARGE_BYTES) == 1
    assert S3Store.request_count(LARGE_BYTES + 1) == 3 + 2
    assert S3Store.request_count(10 * PART_BYTES) == 10 + 2
    meter = Meter(FakeClock())
    store = CountingStore(MemoryStore(), meter, lambda size_bytes: 5 if size_bytes else 1)
    store.put("k", b"x")
    store.get("k")
    assert (meter.read().write_requests, meter.read().read_requests) == (5, 5)


def test_a_meter_outlives_the_stores_that_use_it() -> None:
    """A leg opens its target anew after each fault; its counts go on."""
    meters = Meters(FakeClock())
    for _ in range(2):
        CountingStore(MemoryStore(), meters.of("s3://b", "group")).put("k", b"x")
    meters.of("s3://b").add(read_requests=1)
    meters.of("s3://other").add(read_requests=1)
    assert meters.of("s3://b", "group").read().write_requests == 2
    assert sum(traffic.write_requests + traffic.read_requests for traffic in meters.read_all("s3://b")) == 3


def _used(hours: float, **counts: int) -> TargetTraffic:
    return TargetTraffic(since=NOW - timedelta(hours=hours), **counts)


def test_a_month_costs_what_is_stored_and_the_rates_of_late() -> None:
    """By the class's list prices: storage, requests as they are billed, and what leaves the bucket."""
    spec = S3TargetSpec(bucket="shop-copies")
    day = _used(
        24, write_requests=900, list_requests=100, read_requests=1000, received_bytes=GIB, delete_requests=10**6
    )
    cost = monthly_cost(spec, 100 * GIB, [day], NOW)
    assert cost is not None
    assert (cost.currency, cost.storage, cost.egress) == ("USD", 2.3, pytest.approx(30 * 0.09))
    assert cost.requests == pytest.approx(30 * (0.005 + 0.0004))
    assert cost.total == pytest.approx(cost.storage + cost.requests + cost.egress)
    twice = monthly_cost(spec, 100 * GIB, [day, day], NOW)
    assert twice is not None
    assert twice.requests == pytest.approx(2 * cost.requests)


def test_a_burst_right_after_a_start_is_not_taken_for_a_months_use() -> None:
    """Rates are over an hour at least."""
    spec = S3TargetSpec(bucket="shop-copies")
    burst, hour = (monthly_cost(spec, 0, [_used(hours, write_requests=1000)], NOW) for hours in (0.001, 1.0))
    assert burst == hour


def test_prices_can_be_said_and_are_unknown_for_a_server_of_ones_own() -> None:
    """A price that is given stands before the list; nothing is guessed for what is not Amazon's."""
    given = S3Prices(currency="EUR", storage_gib_month=0.5)
    own = S3TargetSpec(bucket="shop-copies", endpoint="http://minio:9000")
    assert monthly_cost(own, GIB, [], NOW) is None
    told = monthly_cost(own.model_copy(update={"prices": given}), GIB, [_used(1, write_requests=10**6)], NOW)
    assert told is not None
    assert (told.currency, told.storage, told.requests, told.total) == ("EUR", 0.5, 0.0, 0.5)
    amazon = S3TargetSpec(bucket="shop-copies", prices=given, storage_class="GLACIER_IR")
    read = monthly_cost(amazon, GIB, [_used(720, received_bytes=GIB)], NOW)
    assert read is not None
    assert (read.storage, read.egress) == (0.5, pytest.approx(0.09 + 0.03))


def test_every_class_that_can_be_declared_has_a_price() -> None:
    """And none that cannot."""
    classes = S3TargetSpec.model_json_schema()["properties"]["storage_class"]["enum"]
    assert set(LIST_PRICES) == set(classes)
