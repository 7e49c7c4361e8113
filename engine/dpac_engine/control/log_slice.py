"""A slice of a shard's log, as a leg ships it at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dpac_engine.core import sealing
from dpac_engine.core.checkpoints import Mark, decode_mark
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import SegmentWriter
from dpac_engine.io.spool import Spool

SLICE_BYTES_MAX = 2 * sealing.SEGMENT_BYTES


class LogSlice(NamedTuple):
    """Its records, and the checkpoints among them. `stamps`: of the first and the last record."""

    rows: SegmentWriter
    marks: list[Mark]
    to_lsn: int
    stamps: tuple[int, int]


def read_slice(spool: Spool, from_lsn: int, to_lsn: int) -> LogSlice:
    """What the spool holds from `from_lsn` on, at most to `to_lsn`. Blocks. KeyError or Corruption if it cannot be read."""
    rows, marks, end = SegmentWriter(), list[Mark](), from_lsn
    first_stamp = last_stamp = 0
    for batch in spool.read(from_lsn, to_lsn, SLICE_BYTES_MAX):
        headers, end = batch.headers, batch.next_lsn
        for row in np.flatnonzero(headers["kind"] == Kind.MARK).tolist():
            epoch, lsn, stamp = (int(headers[name][row]) for name in ("epoch", "lsn", "stamp"))
            marks.append(decode_mark(epoch, lsn, stamp, batch.payloads[row]))
        rows.extend(batch)
        first_stamp, last_stamp = first_stamp or int(headers["stamp"][0]), int(headers["stamp"][-1])
    return LogSlice(rows, marks, end, (first_stamp, last_stamp))
