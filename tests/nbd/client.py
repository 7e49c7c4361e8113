"""A client that speaks NBD byte by byte, so that tests can say what no real client would."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
ACK = 1


def option(number: int, data: bytes = b"") -> bytes:
    """An option of the handshake."""
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def go(name: str = "", *infos: int, number: int = 7) -> bytes:
    """NBD_OPT_GO, or NBD_OPT_INFO with `number` 6."""
    raw = name.encode()
    return option(number, struct.pack(f">I{len(raw)}sH{len(infos)}H", len(raw), raw, len(infos), *infos))


def meta_context(name: str, *queries: str, number: int = 10) -> bytes:
    """NBD_OPT_SET_META_CONTEXT, or the listing with `number` 9."""
    data = struct.pack(">I", len(name)) + name.encode() + struct.pack(">I", len(queries))
    return option(number, data + b"".join(struct.pack(">I", len(query)) + query.encode() for query in queries))


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> bytes:
    """A request, with `data` behind it whatever its length says."""
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data


def write(cookie: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    """A write of `data`."""
    return request(WRITE, cookie, offset, len(data), flags, data)


class OptionReply(NamedTuple):
    """An answer of the handshake."""

    option: int
    kind: int
    data: bytes


def option_replies(raw: bytes) -> list[OptionReply]:
    """Split what a server sent; fails if it is no whole number of answers."""
    found = []
    while raw:
        magic, number, kind, length = struct.unpack_from(">QIII", raw)
        assert magic == 0x3E889045565A9
        assert len(raw) >= 20 + length
        found.append(OptionReply(number, kind, raw[20 : 20 + length]))
        raw = raw[20 + length :]
    return found


@dataclass
class Reply:
    """An answer to a request. `structured` tells its form, `done` whether it is the last chunk."""

    cookie: int
    error: int = 0
    data: bytes = b""
    message: str = ""
    kind: int = 0
    structured: bool = False
    done: bool = True


class Client:
    """A blocking connection; every wait ends after `seconds_max`."""

    def __init__(self, address: str | tuple[str, int], seconds_max: float = 60.0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(seconds_max)
        self.sock.connect(address)
        self.size_bytes = 0
        self.flags = 0
        self._reads: dict[int, int] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def take(self, length: int) -> bytes:
        """Exactly that many bytes."""
        pieces = bytearray()
        while len(pieces) < length:
            piece = self.sock.recv(length - len(pieces))
            if not piece:
                raise ConnectionError(f"the server closed the connection after {len(pieces)} of {length} bytes")
            pieces += piece
        return bytes(pieces)

    def send(self, *raw: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(b"".join(raw))

    def greet(self, flags: int = 3) -> None:
        """Read the greeting and send the client's flags."""
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.send(struct.pack(">I", flags))

    def ask(self, raw: bytes) -> list[OptionReply]:
        """Send an option and read all its answers."""
        self.send(raw)
        found: list[OptionReply] = []
        while not found or not (found[-1].kind == ACK or found[-1].kind & 2**31):
            _magic, number, kind, length = struct.unpack(">QIII", self.take(20))
            found.append(OptionReply(number, kind, self.take(length)))
        return found

    def enter(self, name: str = "", *, structured: bool = False, allocation: bool = False) -> Client:
        """The whole handshake."""
        self.greet()
        if structured or allocation:
            assert self.ask(option(8))[-1].kind == ACK
        if allocation:
            assert self.ask(meta_context(name, "base:allocation"))[-1].kind == ACK
        answers = self.ask(go(name))
        assert answers[-1].kind == ACK, answers
        self.size_bytes, self.flags = struct.unpack(">QH", answers[0].data[2:])
        return self

    def read(self, cookie: int, offset: int, length: int, flags: int = 0) -> None:
        """Ask for data; `reply` then knows how much follows."""
        self._reads[cookie] = length
        self.send(request(READ, cookie, offset, length, flags))

    def reply(self) -> Reply:
        """The next answer."""
        (magic,) = struct.unpack(">I", self.take(4))
        if magic == 0x67446698:
            error, cookie = struct.unpack(">IQ", self.take(12))
            length = self._reads.pop(cookie, 0)
            return Reply(cookie, error, b"" if error else self.take(length))
        assert magic == 0x668E33EF, hex(magic)
        flags, kind, cookie, length = struct.unpack(">HHQI", self.take(16))
        payload = self.take(length)
        reply = Reply(cookie, kind=kind, structured=True, done=bool(flags & 1))
        if kind & 2**15:
            reply.error, message_length = struct.unpack_from(">IH", payload)
            reply.message = payload[6 : 6 + message_length].decode()
        else:
            reply.data = payload[8:] if kind == 1 else payload
        return reply

    def closed_by_server(self) -> bool:
        """Wait until the server closes; what it still sends is dropped."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            pass
        return True
