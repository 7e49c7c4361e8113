"""The NBD server over real sockets: when it acknowledges, when it waits, and how connections end."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from dpac_api.errors import Invalid
from dpac_engine.io.nbd.export import Stopped
from dpac_engine.io.nbd.negotiation import TlsMode
from dpac_engine.io.nbd.server import Listener, NbdServer
from tests.nbd.client import (
    BLOCK_STATUS,
    DISC,
    FLUSH,
    FUA,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
    go,
    option,
    request,
    write,
)
from tests.nbd.memory import MemoryExport, MemoryExports
from tests.nbd.serving import Serving, until

MIB = 2**20


def serve(folder: Path, **exports: MemoryExport) -> Serving:
    """A server of these exports."""
    return Serving(MemoryExports(**exports), folder)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """WRITE, WRITE_ZEROES and TRIM are seen by READ, in either form of reply, by any connection."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as plain, Client(serving.address) as structured:
        plain.enter()
        structured.enter("disk", structured=True)
        plain.send(write(1, 512, b"x" * 2048), request(WRITE_ZEROES, 2, 1024, 512), request(TRIM, 3, 2048, 512))
        assert [plain.reply().error for _ in range(3)] == [0, 0, 0]
        expected = b"x" * 512 + bytes(512) + b"x" * 512 + bytes(512)
        for client in (plain, structured):
            client.read(7, 512, 2048)
            reply = client.reply()
            assert (reply.cookie, reply.data, reply.structured) == (7, expected, client is structured)


def test_writes_that_arrive_together_are_one_batch(tmp_path: Path) -> None:
    """The export is called once for all complete requests of the buffer."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(*[write(n, n * 512, bytes(512)) for n in range(10)])
        assert sorted(client.reply().cookie for _ in range(10)) == list(range(10))
    assert len(disk.batches) == 1


def test_a_unix_client_is_acknowledged_before_durability(tmp_path: Path) -> None:
    """On a unix socket a plain write is answered at once; FUA and FLUSH only when durable."""
    disk = MemoryExport()
    disk.hold_flushes = True
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(write(1, 0, b"a" * 512, FUA), request(FLUSH, 2), write(3, 512, b"b" * 512))
        assert client.reply().cookie == 3
        until(lambda: disk.held, "the flush has reached the export")
        client.read(4, 0, 512)
        assert client.reply().cookie == 4  # and still not 1 or 2, whose flush is held
        assert disk.durable[:512] == bytes(512)
        serving.call(disk.release_flushes)
        assert [client.reply().cookie for _ in range(2)] == [1, 2]
        assert disk.durable[:1024] == b"a" * 512 + b"b" * 512


def test_a_tcp_client_is_acknowledged_when_durable(tmp_path: Path) -> None:
    """With durable acknowledgements every change waits for its flush."""
    disk = MemoryExport()
    disk.hold_flushes = True
    with serve(tmp_path, disk=disk) as serving, Client(serving.address) as client:
        client.enter()
        client.send(write(1, 0, b"a" * 512), request(TRIM, 2, 512, 512))
        until(lambda: disk.held, "the flush has reached the export")
        client.read(3, 0, 512)
        assert client.reply().cookie == 3
        serving.call(disk.release_flushes)
        assert [client.reply().cookie for _ in range(2)] == [1, 2]
        assert disk.durable[:512] == b"a" * 512


def test_a_flush_covers_other_connections(tmp_path: Path) -> None:
    """Multi-conn: a flush on one connection makes durable what another was acknowledged."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as one, Client(serving.path) as other:
        one.enter()
        other.enter()
        assert one.flags & 1 << 8
        one.send(write(1, 0, b"a" * 512))
        assert one.reply().error == 0
        other.send(request(FLUSH, 2))
        assert other.reply().error == 0
        assert disk.durable[:512] == b"a" * 512


def test_an_exports_errors_reach_the_client(tmp_path: Path) -> None:
    """Errnos are mapped to the protocol's, bugs are EIO, and the connection goes on."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter(structured=True)
        for raised, expected in [
            (OSError(errno.ENOSPC, "full"), 28),
            (OSError(errno.EDQUOT, "quota"), 28),
            (OSError(errno.EROFS, "read-only"), 1),
            (OSError(errno.EHOSTDOWN, "gone"), 5),
            (Stopped(), 108),
            (RuntimeError("a bug"), 5),
        ]:
            disk.submit_error = disk.read_error = raised
            client.send(write(1, 0, bytes(512), FUA))
            reply = client.reply()
            assert (reply.cookie, reply.error) == (1, expected)
            client.read(2, 0, 512)
            reply = client.reply()
            assert (reply.cookie, reply.error) == (2, expected)
            assert reply.message
        disk.submit_error = disk.read_error = None
        disk.flush_error = OSError(errno.EIO, "the disk is gone")
        client.send(write(3, 0, bytes(512), FUA), request(FLUSH, 4))
        assert [(reply.cookie, reply.error) for reply in (client.reply(), client.reply())] == [(3, 5), (4, 5)]


def test_a_short_answer_of_an_export_never_reaches_the_wire(tmp_path: Path) -> None:
    """An export that returns too few bytes yields EIO, not a stream out of step."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        disk.data = bytearray(100)
        client.read(1, 0, 512)
        assert client.reply().error == 5
        disk.data = bytearray(MIB)
        client.read(2, 0, 512)
        assert client.reply().data == bytes(512)


def test_reads_that_may_block_run_beside_everything_else(tmp_path: Path) -> None:
    """A read stuck in a thread delays neither writes of its own connection nor other exports."""
    stuck, free = MemoryExport(), MemoryExport()
    gate = threading.Event()
    stuck.slow_reads = free.slow_reads = True
    stuck.read_gate = lambda: gate.wait(20) and None
    with serve(tmp_path, stuck=stuck, free=free) as serving:
        with Client(serving.path) as one, Client(serving.path) as other:
            one.enter("stuck")
            other.enter("free")
            for number in range(20):
                one.read(number, 0, 512)
            one.send(write(100, 0, bytes(512)))
            assert one.reply().cookie == 100
            other.read(1, 0, 512)
            assert other.reply().data == bytes(512)
            gate.set()
            assert sorted(one.reply().cookie for _ in range(20)) == list(range(20))
        until(lambda: not _reader_threads(), "the reader threads have ended")


def _reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nbd-read")]


def test_block_status_tells_holes(tmp_path: Path) -> None:
    """Status follows what was written and trimmed; REQ_ONE gets one extent within its range."""
    disk = MemoryExport(8192)
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter(allocation=True)
        client.send(write(1, 0, b"x" * 4096), request(TRIM, 2, 1024, 1024))
        assert [client.reply().error for _ in range(2)] == [0, 0]
        client.send(request(BLOCK_STATUS, 3, 0, 8192))
        words = memoryview(client.reply().data[4:]).cast("B").tobytes()
        numbers = [int.from_bytes(words[at : at + 4], "big") for at in range(0, len(words), 4)]
        assert numbers == [1024, 0, 1024, 3, 2048, 0, 4096, 3]
        client.send(request(BLOCK_STATUS, 4, 4096, 1024, REQ_ONE))
        assert client.reply().data[4:] == bytes([0, 0, 4, 0, 0, 0, 0, 3])


def test_a_congested_export_is_not_read_from(tmp_path: Path) -> None:
    """While congested nothing is taken; what came meanwhile follows in order when it is relieved."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(write(1, 0, bytes(512)))
        assert client.reply().cookie == 1
        serving.call(disk.congest)
        client.send(*[write(n, 0, bytes(512)) for n in range(2, 6)])
        until(lambda: serving.call(lambda: disk._relief), "the server waits for relief")
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(20)
        assert len(disk.batches) == 1
        serving.call(disk.relieve)
        assert sorted(client.reply().cookie for _ in range(4)) == [2, 3, 4, 5]


def test_a_client_that_takes_no_answers_is_bounded_and_delays_nobody(tmp_path: Path) -> None:
    """Reads of 64 MiB by a client that does not listen fill its buffers only; the other client is served."""
    disk = MemoryExport(4 * MIB)
    asked = 0

    def counted() -> None:
        nonlocal asked
        asked += 1

    disk.read_gate = counted
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as deaf, Client(serving.path) as other:
        deaf.enter()
        other.enter()
        for number in range(64):
            deaf.read(number, 0, MIB)
        until(lambda: asked >= 4, "the deaf client's reads have begun")
        for number in range(50):
            other.send(write(number, 0, bytes(512)))
            assert other.reply().cookie == number
        assert asked < 32
        assert [deaf.reply().cookie for _ in range(64)] == list(range(64))
        assert asked == 64


def test_a_client_that_only_asks_for_listings_is_bounded(tmp_path: Path) -> None:
    """Listings nobody reads are not gathered without end; read, they are all there."""
    exports = {f"export{number}" * 20: MemoryExport(512) for number in range(50)}
    asked = 1500
    with serve(tmp_path, **exports) as serving, Client(serving.path) as client:
        client.greet()
        sender = threading.Thread(target=client.send, args=(option(3) * asked,))
        sender.start()
        until(lambda: serving.call(lambda: _paused(serving)) == [True], "the server has had enough")
        assert serving.call(lambda: _unsent_bytes(serving)) < 5 * MIB
        for _ in range(asked):
            assert len(client.ask(b"")) == 51
        sender.join(20)
        assert client.ask(go(min(exports)))[-1].kind == 1


def _paused(serving: Serving) -> list[bool]:
    """Whether each connection waits for its client to take answers."""
    return [connection._output_paused for connection in serving.server._connections]


def _unsent_bytes(serving: Serving) -> int:
    """Answers the clients have not taken."""
    transports = [connection._transport for connection in serving.server._connections]
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


def test_a_client_may_vanish_at_any_moment(tmp_path: Path) -> None:
    """In the handshake, in a payload, with a flush under way: nothing leaks, and late answers are dropped."""
    disk = MemoryExport()
    disk.hold_flushes = True
    with serve(tmp_path, disk=disk) as serving:
        raw = [b"", option(8)[:7], go("disk")]
        for piece in raw:
            with Client(serving.path) as client:
                client.greet()
                client.send(piece)
        with Client(serving.path) as client:
            client.enter()
            client.send(write(1, 0, bytes(4096))[:1000])
        with Client(serving.path) as client:
            client.enter()
            client.send(write(1, 0, bytes(4096), FUA))
            until(lambda: disk.held, "the flush has reached the export")
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: not serving.server._connections or len(serving.server._connections) == 1, "the clients are gone")
        serving.call(disk.release_flushes)
        until(lambda: not disk.clients and not serving.server._connections, "every client was told closed")


def test_an_oversized_write_is_refused_when_its_last_bytes_have_come(tmp_path: Path) -> None:
    """Its payload is taken and dropped, the last few bytes alone, and the client goes on."""
    length = 32 * MIB + 512
    with serve(tmp_path, disk=MemoryExport(64 * MIB)) as serving, Client(serving.path) as client:
        client.enter(structured=True)
        client.send(request(WRITE, 1, 0, length), bytes(length - 5))
        until(lambda: serving.call(lambda: _still_to_drop(serving)) == [5], "the server has taken what was sent")
        client.send(bytes(5))
        reply = client.reply()
        assert (reply.cookie, reply.error) == (1, 22)
        assert "33554432" in reply.message
        client.send(write(2, 0, b"x" * 512))
        assert client.reply().error == 0


def _still_to_drop(serving: Serving) -> list[int]:
    """How many bytes of a refused payload each session waits for."""
    sessions = [connection._session for connection in serving.server._connections]
    return [session._parser._discard_bytes for session in sessions if session is not None]


def test_disc_waits_for_what_is_under_way(tmp_path: Path) -> None:
    """After DISC everything asked before is answered, then the connection is closed."""
    disk = MemoryExport()
    disk.hold_flushes = True
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(write(1, 0, bytes(512), FUA), request(DISC, 2), b"not a request at all, and not read any more")
        until(lambda: disk.held, "the flush has reached the export")
        serving.call(disk.release_flushes)
        assert client.reply().cookie == 1
        assert client.closed_by_server()


def test_a_half_closed_client_still_gets_its_answers(tmp_path: Path) -> None:
    """A client may shut its sending side and read what is due."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(write(1, 0, bytes(512), FUA))
        client.sock.shutdown(socket.SHUT_WR)
        assert client.reply().cookie == 1
        assert client.closed_by_server()


def test_nonsense_ends_the_connection(tmp_path: Path) -> None:
    """A request without its magic number is no request."""
    disk = MemoryExport()
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(b"GET / HTTP/1.1\r\nHost: disk.example\r\n\r\n")
        assert client.closed_by_server()
        until(lambda: not disk.clients, "the export was told")


def test_a_stopping_server_finishes_what_is_under_way(tmp_path: Path) -> None:
    """stop: under way is answered, new is ESHUTDOWN, idle and unfinished clients are closed, the path stays."""
    disk = MemoryExport()
    disk.hold_flushes = True
    with serve(tmp_path, disk=disk) as serving:
        with Client(serving.path) as busy, Client(serving.path) as idle, Client(serving.path) as unfinished:
            busy.enter()
            idle.enter()
            unfinished.greet()
            busy.send(write(1, 0, b"a" * 512, FUA))
            until(lambda: disk.held, "the flush has reached the export")
            stopped = serving.stop_soon()
            assert idle.closed_by_server()
            assert unfinished.ask(go("disk"))[0].kind == 2**31 + 7
            busy.send(write(2, 512, b"b" * 512))
            reply = busy.reply()
            assert (reply.cookie, reply.error) == (2, 108)
            serving.call(disk.release_flushes)
            assert (busy.reply().cookie, disk.durable[:1024]) == (1, b"a" * 512 + bytes(512))
            assert busy.closed_by_server()
            assert unfinished.closed_by_server()
            stopped.result(20)
        assert os.path.exists(serving.path)
        assert not disk.clients


def test_stop_cuts_what_does_not_end(tmp_path: Path) -> None:
    """A flush that never returns cannot hold the server for longer than it was given."""
    disk = MemoryExport()
    disk.hold_flushes = True
    with serve(tmp_path, disk=disk) as serving, Client(serving.path) as client:
        client.enter()
        client.send(request(FLUSH, 1))
        until(lambda: disk.held, "the flush has reached the export")
        serving.stop_soon(seconds_max=0.1).result(20)
        assert client.closed_by_server()
        serving.call(disk.release_flushes)


def test_detaching_drops_the_clients_of_that_export(tmp_path: Path) -> None:
    """The callback given to `opened` closes one client; others stay."""
    gone, stays = MemoryExport(), MemoryExport()
    with serve(tmp_path, gone=gone, stays=stays) as serving, Client(serving.path) as one, Client(serving.path) as other:
        one.enter("gone")
        other.enter("stays")
        serving.call(lambda: [close() for close in list(gone.clients)])
        assert one.closed_by_server()
        until(lambda: not gone.clients, "the export was told closed")
        other.send(write(1, 0, bytes(512)))
        assert other.reply().error == 0


def test_a_client_that_never_finishes_its_handshake_is_dropped(tmp_path: Path) -> None:
    """Idle connections cannot pile up before they have chosen an export."""
    disk = MemoryExport()
    with Serving(MemoryExports(disk=disk), tmp_path, handshake_seconds_max=0.05) as serving:
        with Client(serving.path) as idle:
            idle.greet()
            assert idle.closed_by_server()
        with Client(serving.path) as client:
            client.enter()
            until(lambda: serving.server.clients == 1, "the client is counted")
            with Client(serving.path) as later:
                later.greet()
                assert later.closed_by_server()  # so the time for a handshake has passed for the first one as well
            client.send(write(1, 0, bytes(512)))
            assert client.reply().error == 0


def test_an_address_others_can_reach_needs_tls() -> None:
    """Plain text is for unix sockets and loopback, or by explicit wish."""
    with socket.socket() as everywhere, socket.socket() as loopback, socket.socket(socket.AF_UNIX) as unix:
        everywhere.bind(("0.0.0.0", 0))
        loopback.bind(("127.0.0.1", 0))
        with pytest.raises(Invalid, match="has no TLS"):
            NbdServer(MemoryExports(), [Listener(everywhere, durable_acks=True)])
        assert Listener(everywhere, durable_acks=True, plaintext=True).tls_mode() is TlsMode.OFF
        assert Listener(loopback, durable_acks=True).tls_mode() is TlsMode.OFF
        assert Listener(unix, durable_acks=False).tls_mode() is TlsMode.OFF
