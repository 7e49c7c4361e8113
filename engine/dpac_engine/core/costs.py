"""What a bucket costs a month, estimated from what it holds and how it was used of late."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dpac_api.models import MonthlyCost, S3Prices, S3StorageClass, S3TargetSpec, TargetTraffic

GIB = 2**30
MONTH_SECONDS = 30 * 86_400.0
OBSERVED_SECONDS_MIN = 3600.0
"""A burst in the first minutes of a process, such as a seed, is not taken for a month's use."""


def _prices(storage: float, write: float, read: float, retrieval: float) -> S3Prices:
    return S3Prices(
        storage_gib_month=storage, write_1000=write, read_1000=read, retrieval_gib=retrieval, egress_gib=0.09
    )


LIST_PRICES: dict[S3StorageClass, S3Prices] = {
    "STANDARD": _prices(0.023, 0.005, 0.0004, 0.0),
    "INTELLIGENT_TIERING": _prices(0.023, 0.005, 0.0004, 0.0),
    "STANDARD_IA": _prices(0.0125, 0.01, 0.001, 0.01),
    "ONEZONE_IA": _prices(0.01, 0.01, 0.001, 0.01),
    "GLACIER_IR": _prices(0.004, 0.02, 0.01, 0.03),
    "REDUCED_REDUNDANCY": _prices(0.024, 0.005, 0.0004, 0.0),
}
"""Amazon S3's list prices in us-east-1, US dollars; other regions are up to twice as dear."""


def monthly_cost(
    spec: S3TargetSpec, stored_bytes: int, traffic: Iterable[TargetTraffic], now: datetime
) -> MonthlyCost | None:
    """The estimate; None where nothing is known of prices: a server of one's own, without `prices`."""
    if spec.endpoint is not None and spec.prices is None:
        return None
    prices = (spec.prices or S3Prices()).over(S3Prices() if spec.endpoint else LIST_PRICES[spec.storage_class])
    requests = egress_gib = 0.0
    for part in traffic:
        months = max((now - part.since).total_seconds(), OBSERVED_SECONDS_MIN) / MONTH_SECONDS
        # Listings are billed as writes, deletes not at all.
        requests += (part.write_requests + part.list_requests) / 1000 * (prices.write_1000 or 0) / months
        requests += part.read_requests / 1000 * (prices.read_1000 or 0) / months
        egress_gib += part.received_bytes / GIB / months
    storage = stored_bytes / GIB * (prices.storage_gib_month or 0)
    egress = egress_gib * ((prices.egress_gib or 0) + (prices.retrieval_gib or 0))
    return MonthlyCost(
        currency=prices.currency,
        storage=round(storage, 4),
        requests=round(requests, 4),
        egress=round(egress, 4),
        total=round(storage + requests + egress, 4),
    )
