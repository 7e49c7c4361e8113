"""Requests, without I/O: everything complete that lies in the receive buffer, sorted by how it is served."""

from __future__ import annotations

from typing import NamedTuple

from dpac_engine.io.nbd import protocol as nbd
from dpac_engine.io.nbd.export import Change, ChangeKind
from dpac_engine.io.nbd.protocol import (
    CMD_WRITE,
    PAYLOAD_BYTES_MAX,
    REQUEST,
    REQUEST_BYTES,
    REQUEST_MAGIC,
)

WRITE = ChangeKind.WRITE
_new = tuple.__new__  # a named tuple's class costs twice as much to call
_CHANGES = {CMD_WRITE: WRITE, nbd.CMD_TRIM: ChangeKind.TRIM, nbd.CMD_WRITE_ZEROES: ChangeKind.TRIM}
_FLAGS = {
    nbd.CMD_READ: nbd.CMD_FLAG_DF,
    nbd.CMD_WRITE: 0,
    nbd.CMD_FLUSH: 0,
    nbd.CMD_TRIM: 0,
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_NO_HOLE,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_REQ_ONE,
}
"""The flags each command may carry besides FUA, which every command may."""


class Query(NamedTuple):
    """A request without payload. Those of a round's `queries` are READ or BLOCK_STATUS."""

    command: int
    flags: int
    cookie: bytes
    offset: int
    length: int


class Refusal(NamedTuple):
    """A request answered by an error without asking the export."""

    cookie: bytes
    command: int
    error: int
    message: str


class Round:
    """What lay in the buffer. `acked` and `durable` are the cookies of `changes`, by when they may be answered:
    once submitted, or once durable. The changes' data are views into the receive buffer."""

    __slots__ = ("acked", "changes", "disconnect", "durable", "flushes", "next", "queries", "refusals", "wanted")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.acked: list[bytes] = []
        self.durable: list[bytes] = []
        self.flushes: list[bytes] = []
        self.queries: list[Query] = []
        self.refusals: list[Refusal] = []
        self.disconnect = False
        self.next = 0
        """Where the first incomplete request begins."""
        self.wanted = REQUEST_BYTES
        """How many bytes that request has, as far as known."""


class RequestParser:
    """Turns one connection's bytes into rounds."""

    def __init__(self, *, structured: bool, block_status: bool, durable_acks: bool) -> None:
        self._structured = structured
        self._block_status = block_status
        self.durable_acks = durable_acks
        """Changes are answered once they are durable, from the next round on."""
        self._discard: Refusal | None = None
        self._discard_bytes = 0

    def parse(self, view: memoryview, start: int, end: int, size_bytes: int, read_only: bool) -> Round:
        """All complete requests of `view[start:end]`. Raises ProtocolViolation if it holds something else."""
        found = Round()
        writable = not read_only
        at = start if self._discard is None else self._discard_payload(found, start, end)
        add_change = found.changes.append
        add_cookie = (found.durable if self.durable_acks else found.acked).append
        while end - at >= REQUEST_BYTES:
            magic, flags, command, cookie, offset, length = REQUEST.unpack_from(view, at)
            if magic != REQUEST_MAGIC:
                raise nbd.ProtocolViolation(f"a request began with {magic:#010x}")
            body = stop = at + REQUEST_BYTES
            data = None
            if command == CMD_WRITE:
                stop += length
                if length > PAYLOAD_BYTES_MAX:
                    message = f"A write has at most {PAYLOAD_BYTES_MAX} bytes."
                    self._discard, self._discard_bytes = Refusal(cookie, command, nbd.EINVAL, message), length
                    at = self._discard_payload(found, body, end)
                    continue
                if stop > end:
                    found.wanted = stop - at
                    break
                data = view[body:stop]
                # This is the path that has to be fast; whatever is odd about a write is told below.
                if not flags and length and not (offset | length) & 511 and offset + length <= size_bytes and writable:
                    add_change(_new(Change, (WRITE, offset, length, data)))
                    add_cookie(cookie)
                    at = stop
                    continue
            at = stop
            if command == nbd.CMD_DISC:
                found.disconnect = True
                break
            self._sort(found, Query(command, flags, cookie, offset, length), data, size_bytes, read_only)
        found.next = at
        return found

    def _discard_payload(self, found: Round, at: int, end: int) -> int:
        """Drop what has come of a payload nobody will store; its request is refused when all of it has come."""
        assert self._discard is not None
        dropped = min(self._discard_bytes, end - at)
        self._discard_bytes -= dropped
        if not self._discard_bytes:
            found.refusals.append(self._discard)
            self._discard = None
        else:
            found.wanted = 1  # every byte of it helps, however few come last
        return at + dropped

    def _sort(self, found: Round, request: Query, data: memoryview | None, size_bytes: int, read_only: bool) -> None:
        command, flags, cookie, offset, length = request
        why = self._refusal(request, size_bytes, read_only)
        if why is not None:
            found.refusals.append(Refusal(cookie, command, *why))
        elif command == nbd.CMD_FLUSH:
            found.flushes.append(cookie)
        elif command in _CHANGES:
            kind = ChangeKind.ZERO if flags & nbd.CMD_FLAG_NO_HOLE else _CHANGES[command]
            found.changes.append(Change(kind, offset, length, data))
            late = self.durable_acks or flags & nbd.CMD_FLAG_FUA
            (found.durable if late else found.acked).append(cookie)
        else:
            found.queries.append(request)

    def _refusal(self, request: Query, size_bytes: int, read_only: bool) -> tuple[int, str] | None:
        """The error and its message if the request must not reach the export."""
        command, flags, _cookie, offset, length = request
        if command not in _FLAGS:
            return nbd.EINVAL, f"This server does not know command {command}."
        unknown_flags = flags & ~(_FLAGS[command] | nbd.CMD_FLAG_FUA)
        if unknown_flags or (flags & nbd.CMD_FLAG_DF and not self._structured):
            return nbd.EINVAL, f"Command {command} does not take the flags {flags:#x}."
        if command == nbd.CMD_FLUSH:
            return (nbd.EINVAL, "A flush has neither offset nor length.") if offset or length else None
        changes = command in _CHANGES
        if changes and read_only:
            return nbd.EPERM, "The export is read-only."
        if not length or (offset | length) % nbd.BLOCK_BYTES_MIN:
            return nbd.EINVAL, f"Offset and length must be multiples of {nbd.BLOCK_BYTES_MIN}, and length not 0."
        if offset + length > size_bytes:
            past_end = nbd.ENOSPC if command in (CMD_WRITE, nbd.CMD_WRITE_ZEROES) else nbd.EINVAL
            return past_end, f"The export ends at {size_bytes}."
        if command == nbd.CMD_READ and length > PAYLOAD_BYTES_MAX:
            too_long = nbd.EOVERFLOW if self._structured else nbd.EINVAL
            return too_long, f"A read has at most {PAYLOAD_BYTES_MAX} bytes."
        if command == nbd.CMD_BLOCK_STATUS and not self._block_status:
            return nbd.EINVAL, "Block status needs base:allocation, which was not negotiated for this export."
        return None
