"""Hostile and clumsy clients against a real server.

Fault model: a client sends any bytes at any time: broken handshakes, requests with bits flipped, cut, repeated or
joined, in pieces of any size; it may not read its answers, and may vanish at any byte. Meanwhile the export congests,
fails, and answers from memory or from a thread.

What must hold: the server never raises into its loop, never hangs, answers every intact request of a client that
listens exactly once, keeps nothing of clients that are gone, and a well-behaved neighbour reads back what it wrote.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dpac_engine.io.nbd.connection import NbdConnection
from tests.nbd.client import Client, go, meta_context, option, request, write
from tests.nbd.memory import MemoryExport, MemoryExports
from tests.nbd.serving import Serving, until

SIZE = 2**18
KIB = 1024
FUZZ_SECONDS = int(os.environ.get("DPAC_FUZZ_SECONDS", "3600"))


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """pytest would keep every log record, and with its traceback the connection it came from."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Adversary:
    """Sends what `chance` says to one export."""

    def __init__(self, serving: Serving, chance: random.Random) -> None:
        self._chance = chance
        self._serving = serving

    def _option(self) -> bytes:
        chance = self._chance
        return chance.choice(
            [
                option(chance.randrange(14), chance.randbytes(chance.choice([0, 0, 4, 20, 3000]))),
                struct.pack(">8sII", b"IHAVEOPT", chance.randrange(14), chance.getrandbits(32)),
                go(
                    chance.choice(["", "victim", "other", "\u00e9" * 300]),
                    *chance.sample(range(6), chance.randrange(4)),
                ),
                meta_context("victim", *chance.choices(["base:", "base:allocation", "x-a:b", "nothing"], k=3)),
                option(8),
                chance.randbytes(chance.randrange(64)),
            ]
        )

    def _request(self) -> bytes:
        chance = self._chance
        offset = chance.choice([0, 512, SIZE - 512, SIZE, 2**63, chance.getrandbits(64), chance.randrange(SIZE)])
        length = chance.choice([0, 512, 4096, SIZE, 2**32 - 1, 33 * 2**20, chance.randrange(SIZE)])
        return request(
            chance.randrange(10), chance.getrandbits(64), offset, length, chance.choice([0, 0, 1, 4, 8, 255])
        )

    def _mutated(self, raw: bytes) -> bytes:
        chance = self._chance
        if raw and chance.random() < 0.3:
            flipped = bytearray(raw)
            flipped[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            raw = bytes(flipped)
        return raw[: chance.randrange(len(raw) + 1)] if chance.random() < 0.05 else raw

    def attack(self) -> None:
        """One connection's life."""
        chance = self._chance
        address = chance.choice([self._serving.path, self._serving.address])
        with Client(address, seconds_max=0.001) as client, suppress(OSError, AssertionError, struct.error):
            client.sock.setblocking(False)
            raw = struct.pack(">I", chance.choice([3, 3, 3, 1, 0, 2**31]))
            if chance.random() < 0.6:
                raw += option(8) + meta_context("victim", "base:allocation") + go("victim")
                raw += b"".join(
                    self._mutated(
                        chance.choice([self._request(), write(7, chance.randrange(64) * 512, chance.randbytes(4096))])
                    )
                    for _ in range(chance.randrange(60))
                )
            else:
                raw += b"".join(self._mutated(self._option()) for _ in range(chance.randrange(12)))
            while raw:
                piece = raw[: chance.choice([1, 7, 28, 1000, 10**6])]
                raw = raw[client.sock.send(piece) :]
                if chance.random() < 0.5:
                    with suppress(BlockingIOError):
                        client.sock.recv(2**16)
            if chance.random() < 0.3:
                client.sock.shutdown(socket.SHUT_WR)


def _upset(serving: Serving, victim: MemoryExport, chance: random.Random) -> None:
    """Change how the attacked export behaves."""
    victim.slow_reads = chance.random() < 0.5
    victim.submit_error = chance.choice([None, None, OSError(errno.ENOSPC, "full"), RuntimeError("a bug")])
    victim.read_error = chance.choice([None, None, OSError(errno.EIO, "bad sector"), ValueError("a bug")])
    victim.flush_error = chance.choice([None, None, OSError(errno.EIO, "lost")])
    serving.call(chance.choice([victim.congest, victim.relieve, victim.relieve]))


def _descriptors() -> int:
    """How many files, sockets and pipes this process has open."""
    return len(os.listdir("/proc/self/fd"))


def _resident_kib() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // KIB


def _attack(folder: Path, seed: int, seconds: float) -> None:
    chance = random.Random(seed)
    victim, neighbour = MemoryExport(SIZE), MemoryExport(SIZE)
    with Serving(MemoryExports(victim=victim, neighbour=neighbour), folder) as serving, Client(serving.path) as good:
        good.enter("neighbour")
        descriptors = _descriptors()
        adversary = Adversary(serving, chance)
        rounds, threads, deadline = 0, 0, time.monotonic() + seconds
        resident = _resident_kib()
        while time.monotonic() < deadline:
            _upset(serving, victim, chance)
            for _ in range(10):
                adversary.attack()
            data = chance.randbytes(4 * KIB)
            good.send(write(rounds, rounds % 32 * 512, data))
            assert good.reply().error == 0
            good.read(rounds, rounds % 32 * 512, 4 * KIB)
            assert good.reply().data == data
            rounds += 1
            if rounds == 10:
                threads = threading.active_count()
            if time.monotonic() < deadline - seconds * 0.8:  # by then it has met requests of every size
                resident = _resident_kib()
        victim.submit_error = victim.read_error = victim.flush_error = None
        serving.call(victim.relieve)
        until(lambda: not victim.clients, "every attacker is gone")
        until(lambda: len(serving.server._connections) == 1, "only the good client is left")
        until(lambda: _descriptors() <= descriptors + 8, "what the attackers had open is closed")
        assert rounds < 10 or threading.active_count() <= threads + 8, f"{threading.active_count()} threads"
        gc.collect()
        alive = [thing for thing in gc.get_objects() if isinstance(thing, NbdConnection)]
        assert len(alive) <= 3, f"{len(alive)} connections are still in memory"
        grown_kib = _resident_kib() - resident
        assert grown_kib < 128 * KIB, f"memory grew by {grown_kib} KiB in {rounds} rounds"
        print(f"{rounds * 10} attacks, memory grew by {grown_kib} KiB, {_descriptors()} descriptors")
        assert rounds > 3


def test_hostile_clients_harm_nobody(tmp_path: Path, seed: int) -> None:
    """A few seconds of attacks."""
    _attack(tmp_path, seed, seconds=3)


@pytest.mark.soak
@pytest.mark.timeout(FUZZ_SECONDS * 2 + 600)
def test_hostile_clients_harm_nobody_for_long(tmp_path: Path, seed: int) -> None:
    """An hour of attacks, or DPAC_FUZZ_SECONDS."""
    _attack(tmp_path, seed, seconds=FUZZ_SECONDS)


def _storm(folder: Path, seed: int, requests: int) -> None:
    """Valid and invalid requests, pieces of any size, one listening client: each is answered exactly once."""
    chance = random.Random(seed)
    export = MemoryExport(SIZE)
    model = bytearray(SIZE)
    with Serving(MemoryExports(disk=export), folder) as serving:
        address = chance.choice([serving.path, serving.address])
        with Client(address) as client:
            client.enter(structured=chance.random() < 0.5)
            sent = 0
            while sent < requests:
                export.slow_reads = chance.random() < 0.5
                expected, batch = {}, b""
                changed: set[int] = set()
                for cookie in range(sent, sent + chance.randrange(1, 60)):
                    sector, count = chance.randrange(SIZE // 512), chance.randrange(0, 9)
                    fits = count and sector + count <= SIZE // 512
                    span = set(range(sector, sector + count))
                    kind = chance.choice(["write", "read", "trim", "zero", "flush", "odd"])
                    if kind in ("write", "trim", "zero", "read") and span & changed:
                        kind = "flush"  # requests that overlap while under way have no defined order
                    offset, length = sector * 512, count * 512
                    if kind == "write":
                        data = chance.randbytes(length)
                        batch += write(cookie, offset, data, chance.choice([0, 1]))
                    elif kind in ("trim", "zero"):
                        data = bytes(length)
                        batch += request(4 if kind == "trim" else 6, cookie, offset, length)
                    elif kind == "read":
                        batch += request(0, cookie, offset, length)
                        client._reads[cookie] = length
                    elif kind == "flush":
                        batch += request(3, cookie)
                    else:
                        batch += request(5, cookie, offset, length)
                    expected[cookie] = (kind, fits, offset, length)
                    changed |= span
                    if kind in ("write", "trim", "zero") and fits:
                        model[offset : offset + length] = data
                sent += len(expected)
                while batch:
                    cut = chance.choice([1, 27, 512, 5000, 10**6])
                    client.send(batch[:cut])
                    batch = batch[cut:]
                while expected:
                    reply = client.reply()
                    kind, fits, offset, length = expected.pop(reply.cookie)
                    if kind == "flush":
                        assert reply.error == 0
                    elif kind == "odd" or not fits:
                        assert reply.error in (22, 28)
                    else:
                        assert reply.error == 0
                        if kind == "read":
                            assert reply.data == model[offset : offset + length]
        assert export.data == model


def test_every_request_is_answered_once(tmp_path: Path, seed: int) -> None:
    """A short storm of random requests."""
    _storm(tmp_path, seed, 3000)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_request_is_answered_once_for_long(tmp_path: Path, seed: int) -> None:
    """A long storm of random requests."""
    _storm(tmp_path, seed, 1_000_000)
