"""The handshake, without I/O: bytes of the client in, bytes to send and what comes of it out.

Fixed newstyle only. `docs/nbd.md` lists the options and how they are answered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from dpac_engine.io.nbd import protocol as nbd
from dpac_engine.io.nbd.export import Export, Exports

OPTION_BYTES_MAX = 64 * 1024
"""Longer option data is skipped and answered TOO_BIG."""
SKIP_BYTES_MAX = 16 * 2**20
"""An option that claims to be longer still is no client's mistake: the connection is dropped."""
REPLY_BYTES_MAX = 64 * 1024
"""Once that much is due to the client, `receive` returns, so that the caller can see whether it is taken."""

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_EXPORT_INFO = struct.Struct(">HQH")
_BLOCK_SIZE_INFO = struct.Struct(">HIII")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_GREETING = struct.Struct(">8s8sH")


class TlsMode(Enum):
    """What a listening socket asks of its clients."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Enter:
    """The client chose an export: what follows are requests."""

    export: Export
    name: str
    structured: bool
    block_status: bool


@dataclass(frozen=True, slots=True)
class StartTls:
    """Once the bytes are sent, the connection continues inside TLS."""


@dataclass(frozen=True, slots=True)
class Close:
    """Once the bytes are sent, the connection ends."""

    reason: str


Outcome = Enter | StartTls | Close


class Step(NamedTuple):
    """What a piece of the client's stream led to. Bytes beyond `consumed` belong to what follows, or are too few."""

    consumed: int
    reply: bytes
    outcome: Outcome | None


class _Refused(Exception):
    """The option is answered by an error; the handshake goes on."""

    def __init__(self, reply_type: int, message: str) -> None:
        super().__init__(message)
        self.reply_type = reply_type


class _Answer(NamedTuple):
    reply: bytes
    outcome: Outcome | None = None


class _Fields:
    """Reads an option's data; data that is too short or too long is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        piece = self._data[self._at : self._at + length]
        if len(piece) != length:
            raise _Refused(nbd.REP_ERR_INVALID, "The option's data is shorter than its fields say.")
        self._at += length
        return piece

    def u16(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def string(self) -> str:
        return _text(self.take(self.u32()))

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Refused(nbd.REP_ERR_INVALID, "The option's data is longer than its fields say.")


def _text(raw: bytes) -> str:
    if len(raw) > nbd.NAME_BYTES_MAX:
        raise _Refused(nbd.REP_ERR_TOO_BIG, f"A name has at most {nbd.NAME_BYTES_MAX} bytes.")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _Refused(nbd.REP_ERR_INVALID, "A name must be UTF-8.") from None
    if "\0" in text:
        raise _Refused(nbd.REP_ERR_INVALID, "A name must not contain NUL.")
    return text


def _reply(option: int, reply_type: int, data: bytes = b"") -> bytes:
    return nbd.OPTION_REPLY_HEADER.pack(nbd.OPTION_REPLY_MAGIC, option, reply_type, len(data)) + data


def exported_bytes(export: Export) -> int:
    """The size clients see: whole blocks only, for the rest could not be addressed."""
    return export.size_bytes - export.size_bytes % nbd.BLOCK_BYTES_MIN


def transmission_flags(export: Export, *, structured: bool) -> int:
    """What the export's clients may use."""
    flags = (
        nbd.TRANSMISSION_HAS_FLAGS
        | nbd.TRANSMISSION_SEND_FLUSH
        | nbd.TRANSMISSION_SEND_FUA
        | nbd.TRANSMISSION_CAN_MULTI_CONN
    )
    if export.read_only:
        flags |= nbd.TRANSMISSION_READ_ONLY
    else:
        flags |= nbd.TRANSMISSION_SEND_TRIM | nbd.TRANSMISSION_SEND_WRITE_ZEROES
    return flags | nbd.TRANSMISSION_SEND_DF if structured else flags


class Negotiation:
    """One client's handshake.

    Send `greeting`, then give `receive` what the client sends until it returns an outcome. After `StartTls` call
    `secured` and go on with what comes through TLS. `stopping` makes every further option fail with SHUTDOWN.
    """

    def __init__(self, exports: Exports, tls: TlsMode = TlsMode.OFF) -> None:
        self.stopping = False
        self.greeting = _GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
        self._exports = exports
        self._tls = tls
        self._secured = False
        self._client_flags: int | None = None
        self._skip_bytes = 0
        self._structured = False
        self._allocation_of: str | None = None
        self._options: dict[int, Callable[[int, bytes], _Answer]] = {
            nbd.OPT_EXPORT_NAME: self._export_name,
            nbd.OPT_ABORT: self._abort,
            nbd.OPT_LIST: self._list,
            nbd.OPT_STARTTLS: self._start_tls,
            nbd.OPT_INFO: self._info,
            nbd.OPT_GO: self._info,
            nbd.OPT_STRUCTURED_REPLY: self._structured_reply,
            nbd.OPT_LIST_META_CONTEXT: self._meta_context,
            nbd.OPT_SET_META_CONTEXT: self._meta_context,
        }

    def secured(self) -> None:
        """TLS is established: forget what was agreed before it, as somebody else may have said it."""
        self._secured = True
        self._structured = False
        self._allocation_of = None

    def receive(self, data: memoryview) -> Step:
        """Take what is complete of `data`, until there is an outcome or enough to send; call again while something
        was consumed. Never raises, whatever the client sent."""
        at = due_bytes = 0
        replies: list[bytes] = []
        outcome: Outcome | None = None
        while outcome is None and due_bytes < REPLY_BYTES_MAX:
            step = self._receive_one(data[at:])
            if step is None:
                break
            at += step.consumed
            replies.append(step.reply)
            due_bytes += len(step.reply)
            outcome = step.outcome
        return Step(at, b"".join(replies), outcome)

    def _receive_one(self, data: memoryview) -> Step | None:
        if self._client_flags is None:
            return self._receive_flags(data)
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            return Step(skipped, b"", None) if skipped else None
        if len(data) < nbd.OPTION_HEADER.size:
            return None
        magic, option, length = nbd.OPTION_HEADER.unpack_from(data)
        if magic != nbd.OPTION_MAGIC:
            return Step(len(data), b"", Close("the client sent something that is no option"))
        if length > OPTION_BYTES_MAX:
            return self._skip_option(option, length)
        end = nbd.OPTION_HEADER.size + length
        if len(data) < end:
            return None
        reply, outcome = self._answer(option, bytes(data[nbd.OPTION_HEADER.size : end]))
        return Step(end, reply, outcome)

    def _receive_flags(self, data: memoryview) -> Step | None:
        if len(data) < _U32.size:
            return None
        flags = int(_U32.unpack_from(data)[0])
        self._client_flags = flags
        if flags & ~(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES):
            return Step(_U32.size, b"", Close(f"unknown client flags {flags:#x}"))
        return Step(_U32.size, b"", None)

    def _skip_option(self, option: int, length: int) -> Step:
        header = nbd.OPTION_HEADER.size
        if length > SKIP_BYTES_MAX or option == nbd.OPT_EXPORT_NAME:
            return Step(header, b"", Close(f"option {option} with {length} bytes of data"))
        self._skip_bytes = length
        if option == nbd.OPT_ABORT:
            return Step(header, _reply(option, nbd.REP_ACK), Close("the client gave up the handshake"))
        message = f"An option has at most {OPTION_BYTES_MAX} bytes of data."
        return Step(header, _reply(option, nbd.REP_ERR_TOO_BIG, message.encode()), None)

    def _answer(self, option: int, data: bytes) -> _Answer:
        assert self._client_flags is not None
        if not self._client_flags & nbd.FLAG_FIXED_NEWSTYLE and option != nbd.OPT_EXPORT_NAME:
            return _Answer(b"", Close("an option from a client that has not agreed to fixed newstyle"))
        try:
            self._check_policy(option)
            handler = self._options.get(option)
            if handler is None:
                raise _Refused(nbd.REP_ERR_UNSUP, f"This server does not know option {option}.")
            return handler(option, data)
        except _Refused as refused:
            if option == nbd.OPT_EXPORT_NAME:  # the one option that cannot be answered by an error
                return _Answer(b"", Close(str(refused)))
            return _Answer(_reply(option, refused.reply_type, str(refused).encode()))

    def _check_policy(self, option: int) -> None:
        if option == nbd.OPT_ABORT:
            return
        if self.stopping:
            raise _Refused(nbd.REP_ERR_SHUTDOWN, "The server is being stopped; connect again in a moment.")
        if self._tls is TlsMode.REQUIRED and not self._secured and option != nbd.OPT_STARTTLS:
            raise _Refused(nbd.REP_ERR_TLS_REQD, "This address is served over TLS only: start TLS first (nbds://).")

    def _find(self, name: str) -> tuple[str, Export]:
        """The export and its own name; `""` is the only export where there is just one."""
        export = self._exports.find(name)
        if export is None and name == "":
            names = self._exports.names()
            if len(names) == 1:
                name = names[0]
                export = self._exports.find(name)
        if export is None:
            shown = repr(name) if name else "the default export (there is not exactly one; name it)"
            raise _Refused(nbd.REP_ERR_UNKNOWN, f"This server does not export {shown}.")
        return name, export

    def _enter(self, name: str, export: Export) -> Enter:
        return Enter(export, name, self._structured, block_status=self._allocation_of == name)

    def _export_name(self, _option: int, data: bytes) -> _Answer:
        name, export = self._find(_text(data))
        reply = _EXPORT_NAME_REPLY.pack(exported_bytes(export), transmission_flags(export, structured=self._structured))
        assert self._client_flags is not None
        padding = b"" if self._client_flags & nbd.FLAG_NO_ZEROES else bytes(124)
        return _Answer(reply + padding, self._enter(name, export))

    def _abort(self, option: int, _data: bytes) -> _Answer:
        return _Answer(_reply(option, nbd.REP_ACK), Close("the client gave up the handshake"))

    def _list(self, option: int, data: bytes) -> _Answer:
        _Fields(data).end()
        entries = [name.encode() for name in self._exports.names()]
        replies = [_reply(option, nbd.REP_SERVER, _U32.pack(len(entry)) + entry) for entry in entries]
        return _Answer(b"".join([*replies, _reply(option, nbd.REP_ACK)]))

    def _start_tls(self, option: int, data: bytes) -> _Answer:
        _Fields(data).end()
        if self._tls is TlsMode.OFF:
            raise _Refused(nbd.REP_ERR_POLICY, "This address is served without TLS (nbd://).")
        if self._secured:
            raise _Refused(nbd.REP_ERR_INVALID, "TLS has been started already.")
        return _Answer(_reply(option, nbd.REP_ACK), StartTls())

    def _structured_reply(self, option: int, data: bytes) -> _Answer:
        _Fields(data).end()
        self._structured = True
        return _Answer(_reply(option, nbd.REP_ACK))

    def _info(self, option: int, data: bytes) -> _Answer:
        fields = _Fields(data)
        name, export = self._find(fields.string())
        wanted = {fields.u16() for _ in range(fields.u16())}
        fields.end()
        flags = transmission_flags(export, structured=self._structured)
        infos = [_EXPORT_INFO.pack(nbd.INFO_EXPORT, exported_bytes(export), flags)]
        if nbd.INFO_NAME in wanted:
            infos.append(_U16.pack(nbd.INFO_NAME) + name.encode())
        if nbd.INFO_BLOCK_SIZE in wanted:
            infos.append(
                _BLOCK_SIZE_INFO.pack(
                    nbd.INFO_BLOCK_SIZE, nbd.BLOCK_BYTES_MIN, nbd.BLOCK_BYTES_PREFERRED, nbd.PAYLOAD_BYTES_MAX
                )
            )
        replies = [_reply(option, nbd.REP_INFO, info) for info in infos]
        outcome = self._enter(name, export) if option == nbd.OPT_GO else None
        return _Answer(b"".join([*replies, _reply(option, nbd.REP_ACK)]), outcome)

    def _meta_context(self, option: int, data: bytes) -> _Answer:
        selects = option == nbd.OPT_SET_META_CONTEXT
        if selects:
            self._allocation_of = None  # replaced even where the option fails
        if not self._structured:
            raise _Refused(nbd.REP_ERR_INVALID, "Metadata contexts need structured replies; negotiate those first.")
        fields = _Fields(data)
        name, _export = self._find(fields.string())
        queries = [fields.string() for _ in range(fields.u32())]
        fields.end()
        if not _matches_allocation(queries, selects=selects):
            return _Answer(_reply(option, nbd.REP_ACK))
        if selects:
            self._allocation_of = name
        context = _U32.pack(nbd.META_ALLOCATION_ID if selects else 0) + nbd.META_ALLOCATION.encode()
        return _Answer(_reply(option, nbd.REP_META_CONTEXT, context) + _reply(option, nbd.REP_ACK))


def _matches_allocation(queries: Sequence[str], *, selects: bool) -> bool:
    """Whether `base:allocation` is asked for: by its name, or, in a listing only, by `base:` or by no query at all."""
    if any(":" not in query for query in queries):
        raise _Refused(nbd.REP_ERR_INVALID, "A query is a namespace, a colon and a name, such as base:allocation.")
    if nbd.META_ALLOCATION in queries:
        return True
    return not selects and (not queries or "base:" in queries)
