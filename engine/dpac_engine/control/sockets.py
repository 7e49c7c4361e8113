"""Listening sockets: made by the supervisor, so that connecting works while what serves them is being restarted."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dpac_api.errors import Conflict, Invalid

UNIX_PATH_BYTES_MAX = 107
"""What fits into sockaddr_un of Linux, without the final zero."""
BACKLOG = 1024


class Address(NamedTuple):
    """Where TCP listens: an IP address, or `localhost`, and a port (0: any free one)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str) -> Address:
        """The address in `HOST:PORT` or `[IPV6]:PORT`. Invalid, naming the option, for anything else."""
        host, colon, port = text.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            if not colon or (host != "localhost" and not ipaddress.ip_address(host)):
                raise ValueError
            if not 0 <= int(port) <= 65535:
                raise ValueError
        except ValueError:
            raise Invalid(
                f"{option} {text!r} is not an address; write IP:PORT, such as 127.0.0.1:8700 or [::1]:8700."
            ) from None
        return cls("127.0.0.1" if host == "localhost" else host, int(port))

    @property
    def stays_on_this_host(self) -> bool:
        """Whether only this host can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def everywhere(self) -> bool:
        """Whether it is every address of this host."""
        return ipaddress.ip_address(self.host).is_unspecified

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket (0600) at `path`, in place of a stale one. Invalid if the path is too long."""
    check_unix_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        path.unlink()
    try:
        sock.bind(str(path))
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Invalid(f"{path} cannot be listened on ({error.strerror}). Choose another --run-dir.") from error
    return sock


def listen_tcp(address: Address, option: str) -> socket.socket:
    """A listening TCP socket. Conflict if the port is taken, Invalid if the address is not this host's."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port whose old connections linger in TIME_WAIT is free; one that is listened on is not.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"{option} {address}: another process listens there. Choose another port.") from error
        raise Invalid(
            f"{option} {address} cannot be listened on ({error.strerror}). Choose another address."
        ) from error
    return sock


def bound_address(sock: socket.socket) -> Address:
    """Where a TCP socket listens in fact."""
    host, port = sock.getsockname()[:2]
    return Address(str(host), int(port))


def check_unix_path(path: Path) -> None:
    """Invalid if no unix socket can have this path."""
    if not unix_path_fits(path):
        raise Invalid(
            f"{path} is too long for a unix socket (at most {UNIX_PATH_BYTES_MAX} bytes). Choose a shorter --run-dir."
        )


def unix_path_fits(path: Path) -> bool:
    """Whether a unix socket can have this path."""
    return len(os.fsencode(path)) <= UNIX_PATH_BYTES_MAX
