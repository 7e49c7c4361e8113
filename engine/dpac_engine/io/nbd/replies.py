"""How answers look on the wire, without I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from dpac_engine.io.nbd import protocol as nbd
from dpac_engine.io.nbd.export import Extent

_SUCCESS = struct.pack(">II", nbd.SIMPLE_REPLY_MAGIC, 0)
_OFFSET = struct.Struct(">Q")
_DATA_CHUNK = struct.Struct(">IHH8sIQ")
_ERROR = struct.Struct(">IH")
_U32 = struct.Struct(">I")
_EXTENT = struct.Struct(">II")
_EXTENT_BYTES_MAX = 2**32 - nbd.BLOCK_BYTES_MIN
EXTENTS_MAX = 2**16
"""Extents in one reply; a client asks on from where it ends."""


def done(cookies: Sequence[bytes]) -> bytes:
    """The success of requests without data: simple replies, which are allowed in either mode."""
    return _SUCCESS + _SUCCESS.join(cookies) if cookies else b""


def failed(cookie: bytes, error: int, message: str, *, structured: bool) -> bytes:
    """A failure; with its message where the client understands structured replies."""
    if not structured:
        return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie)
    text = message.encode()[: nbd.NAME_BYTES_MAX]
    payload = _ERROR.pack(error, len(text)) + text
    return nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_ERROR, cookie, len(payload)) + payload


def data_header(cookie: bytes, offset: int, length: int, *, structured: bool) -> bytes:
    """What precedes a read's data: always one chunk, the whole answer in it."""
    if not structured:
        return _SUCCESS + cookie
    return _DATA_CHUNK.pack(
        nbd.STRUCTURED_REPLY_MAGIC,
        nbd.CHUNK_DONE,
        nbd.CHUNK_OFFSET_DATA,
        cookie,
        _OFFSET.size + length,
        offset,
    )


def block_status(cookie: bytes, length: int, extents: Iterable[Extent], *, one: bool) -> bytes:
    """The status of the range's beginning; at least one extent, neighbours of equal status in one.

    Only the last one may reach past `length`, and with `one` it does not.
    """
    runs = _runs(length, extents)
    if one:
        size, state = runs[0]
        runs = [(min(size, length), state)]
    payload = _U32.pack(nbd.META_ALLOCATION_ID) + b"".join(_EXTENT.pack(size, state) for size, state in runs)
    header = nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_BLOCK_STATUS, cookie, len(payload))
    return header + payload


def _runs(length: int, extents: Iterable[Extent]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    covered = 0
    for extent in extents:
        if covered >= length or len(runs) >= EXTENTS_MAX:
            break
        state = (nbd.STATE_HOLE if extent.hole else 0) | (nbd.STATE_ZERO if extent.zero else 0)
        size = min(extent.length, _EXTENT_BYTES_MAX)
        if runs and runs[-1][1] == state and runs[-1][0] + size <= _EXTENT_BYTES_MAX:
            runs[-1] = (runs[-1][0] + size, state)
        elif size:
            runs.append((size, state))
        covered += size
        if size < extent.length:
            break
    if not runs:
        raise ValueError("an export told the status of no byte")
    return runs
