"""What lies in a closed spool behind damage, where a scan ends: whole records that somebody acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dpac_api.errors import Corruption
from dpac_engine.core import records
from dpac_engine.core.records import HEADER_BYTES, HEADER_DTYPE, Header, Kind
from dpac_engine.io import spool


def beyond(
    folder: Path, from_lsn: int, durable_lsn: int, shard_tag: int, incarnation: int
) -> Iterator[tuple[Header, memoryview]]:
    """Whole records at `from_lsn` or later, in order, padding left out. `incarnation` is that of the newest there are.

    Older ones count before `durable_lsn` only: behind it they may be what an earlier loss of power had torn.
    """
    for path in sorted(folder.glob("*.spool")):
        base = int(path.stem, 16) * spool.FILE_BYTES
        if base + spool.FILE_BYTES <= from_lsn or not spool.is_whole(path):
            continue
        file = spool.SpoolFile(path, base // spool.FILE_BYTES)
        lines = np.frombuffer(file.view, HEADER_DTYPE)
        lsns = np.arange(base, base + spool.FILE_BYTES, HEADER_BYTES, dtype=np.uint64)
        newest = (lines["incarnation"] == incarnation) | (lines["incarnation"] < incarnation) & (lsns < durable_lsn)
        likely = (lines["magic"] == records.MAGIC) & (lines["lsn"] == lsns) & (lines["shard_tag"] == shard_tag)
        for row in np.flatnonzero(likely & newest & (lsns >= from_lsn) & (lines["kind"] != Kind.PAD)).tolist():
            header = records.decode_header(file.view, row * HEADER_BYTES)
            if header is not None and (payload := _payload(file.view, row * HEADER_BYTES, header)) is not None:
                yield header, payload
        file.close()


def _payload(view: memoryview, at: int, header: Header) -> memoryview | None:
    try:
        return records.payload_of(view, at, header)
    except Corruption:
        return None
