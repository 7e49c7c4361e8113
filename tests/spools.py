"""Reading a spool record by record, as tests compare it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dpac_engine.io.spool import Spool


class Read(NamedTuple):
    """One record."""

    kind: int
    member: int
    lsn: int
    offset: int
    length: int
    payload: bytes


def records_of(spool: Spool, from_lsn: int = 0, to_lsn: int | None = None) -> Iterator[Read]:
    """The records of a range, by default all up to the head."""
    for batch in spool.read(from_lsn, spool.head_lsn if to_lsn is None else to_lsn):
        for header, payload in zip(batch.headers, batch.payloads, strict=True):
            fields = (int(header[name]) for name in ("kind", "member", "lsn", "offset", "length"))
            yield Read(*fields, bytes(payload))
