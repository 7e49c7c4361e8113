"""Nanoseconds, as the core counts time, and datetimes, as the API tells it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(stamp_ns: int) -> datetime:
    """The UTC datetime of a stamp, to the microsecond."""
    return _EPOCH + timedelta(microseconds=stamp_ns // 1000)


def nanoseconds(when: datetime) -> int:
    """The stamp of a datetime."""
    return ((when - _EPOCH) // timedelta(microseconds=1)) * 1000
