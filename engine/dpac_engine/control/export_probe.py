"""Whether an NBD server greets at a URI: what a drill asks of the exports it made."""

from __future__ import annotations

import socket
from urllib.parse import parse_qs, urlsplit

from dpac_api.errors import Invalid, Temporary

GREETING = b"NBDMAGIC"
GREET_SECONDS_MAX = 10.0


def greet(uri: str) -> None:
    """Connect and wait for the first bytes of the handshake. Temporary if they do not come, Invalid for no such URI."""
    try:
        with _connect(uri) as connection:
            connection.settimeout(GREET_SECONDS_MAX)
            heard = connection.recv(len(GREETING), socket.MSG_WAITALL)
    except OSError as cause:
        raise Temporary(f"Nothing answers at {uri} ({cause}).") from cause
    if heard != GREETING:
        raise Temporary(f"What answers at {uri} is not an NBD server.")


def _connect(uri: str) -> socket.socket:
    parts = urlsplit(uri)
    if parts.scheme == "nbd" and parts.hostname:
        return socket.create_connection((parts.hostname, parts.port or 10809), GREET_SECONDS_MAX)
    paths = parse_qs(parts.query).get("socket")
    if parts.scheme != "nbd+unix" or not paths:
        raise Invalid(f"{uri} is not an NBD URI that can be asked; it begins with nbd+unix:// or nbd://.")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(GREET_SECONDS_MAX)
        connection.connect(paths[0])
    except OSError:
        connection.close()
        raise
    return connection
