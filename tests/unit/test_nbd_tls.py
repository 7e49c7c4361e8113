"""TLS on the NBD server: the upgrade, what must not survive it, and waiting inside it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nbd.certificates import Authority
from tests.nbd.client import ACK, DISC, Client, go, option, request, write
from tests.nbd.memory import MemoryExport, MemoryExports
from tests.nbd.serving import Serving, until

STARTTLS = option(5)
MIB = 2**20


@pytest.fixture
def disk() -> MemoryExport:
    """8 MiB of nothing."""
    return MemoryExport(8 * MIB)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority with a certificate for the server."""
    made = Authority(tmp_path)
    made.issue("server")
    return made


@pytest.fixture
def serving(disk: MemoryExport, authority: Authority, tmp_path: Path) -> Iterator[Serving]:
    """A server whose TCP socket requires TLS."""
    tls = authority.server_context(clients_prove_themselves=False)
    with Serving(MemoryExports(disk=disk), tmp_path, tls=tls, handshake_seconds_max=1.0) as started:
        yield started


def encrypted(serving: Serving, authority: Authority) -> Client:
    """A client inside TLS that has not chosen an export yet."""
    client = Client(serving.address)
    client.greet()
    assert [reply.kind for reply in client.ask(STARTTLS)] == [ACK]
    context = ssl.create_default_context(cafile=str(authority.folder / "ca-cert.pem"))
    client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
    return client


def enter(client: Client) -> Client:
    """Choose the disk."""
    assert client.ask(go("disk"))[-1].kind == ACK
    return client


def test_everything_goes_on_inside_tls(serving: Serving, authority: Authority) -> None:
    """Writes of every size, split and joined by TLS records, are read back; DISC ends the session."""
    with enter(encrypted(serving, authority)) as client:
        for cookie, length in enumerate((512, 4096, 65536, 3 * MIB)):
            client.send(write(cookie, 0, bytes([cookie]) * length))
            assert client.reply().error == 0
            client.read(cookie, 0, length)
            assert client.reply().data == bytes([cookie]) * length
        client.send(request(DISC, 9))
        assert client.closed_by_server()


def test_plain_bytes_behind_starttls_are_not_taken_for_encrypted_ones(serving: Serving) -> None:
    """What somebody put into the plain stream behind STARTTLS must not be read as the client's own words."""
    with Client(serving.address) as client:
        client.greet()
        client.send(STARTTLS + go("disk"))
        assert client.closed_by_server()
    until(lambda: not serving.server._connections, "the client is forgotten")


@pytest.mark.parametrize("hello", [b"this is no TLS hello" * 20, b""])
def test_a_failed_upgrade_is_forgotten(serving: Serving, disk: MemoryExport, hello: bytes) -> None:
    """Nonsense or silence instead of a TLS handshake ends the connection in time, and nothing was served."""
    with Client(serving.address) as client:
        client.greet()
        client.ask(STARTTLS)
        client.send(hello)
        assert client.closed_by_server()
    until(lambda: not serving.server._connections, "the client is forgotten")
    assert disk.clients == []


def test_a_client_that_leaves_during_the_upgrade_is_forgotten(serving: Serving) -> None:
    """The connection is dropped by the client in the middle of the TLS handshake."""
    with Client(serving.address) as client:
        client.greet()
        client.ask(STARTTLS)
    until(lambda: not serving.server._connections, "the client is forgotten")


def test_a_server_can_stop_during_an_upgrade(serving: Serving) -> None:
    """stop does not wait for a TLS handshake that makes no progress."""
    with Client(serving.address) as client:
        client.greet()
        client.ask(STARTTLS)
        serving.stop_soon(seconds_max=0.5).result(20)
        assert client.closed_by_server()


def test_congestion_is_obeyed_inside_tls(serving: Serving, authority: Authority, disk: MemoryExport) -> None:
    """While the export is congested nothing more is taken from an encrypted client; then all of it is."""
    with enter(encrypted(serving, authority)) as client:
        serving.call(disk.congest)
        client.send(*[write(cookie, cookie * 4096, bytes([cookie]) * 4096) for cookie in range(100)])
        until(lambda: serving.call(lambda: disk._relief), "the server waits for relief")
        assert disk.batches == []
        serving.call(disk.relieve)
        assert sorted(client.reply().cookie for _ in range(100)) == list(range(100))
        assert disk.data[99 * 4096 : 100 * 4096] == bytes([99]) * 4096


def test_a_deaf_client_inside_tls_is_bounded(serving: Serving, authority: Authority, disk: MemoryExport) -> None:
    """Answers to a client that does not read them are not gathered without end."""
    asked = 0

    def counted() -> None:
        nonlocal asked
        asked += 1

    disk.read_gate = counted
    with enter(encrypted(serving, authority)) as client, Client(serving.path) as other:
        other.enter()
        for cookie in range(64):
            client.read(cookie, 0, MIB)
        until(lambda: asked >= 4, "the deaf client's reads have begun")
        for cookie in range(50):
            other.send(write(cookie, 0, bytes(512)))
            assert other.reply().cookie == cookie
        assert asked < 32
        assert [client.reply().cookie for _ in range(64)] == list(range(64))
