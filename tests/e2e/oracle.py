"""Writers whose order is known, a recorder outside the system, and the judgement of a checkpoint by both.

A chain puts block n to volume A, then, after A's acknowledgement, to B, after that to C, and only then begins with n + 1.
The recorder keeps when each block was first sent and when it was acknowledged. So a copy of the three volumes can have
been at one moment only if A holds n, B holds n or n - 1 with A no older than B, and C likewise; if what was acknowledged
before the moment is there; and if nothing that was sent after it is.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from contextlib import suppress

from tests.e2e.site import connected, until
from tests.nbd.client import FLUSH, FUA, Client, request, write

BLOCK_BYTES = 4096
SLOTS = 256
"""Blocks of one chain on a volume: block n lies in slot n modulo this."""
VOLUMES = ("a", "b", "c")
_HEAD = struct.Struct("<8sQII")
_MAGIC = b"dpac-orc"


def block_of(chain: int, number: int) -> bytes:
    """The content of a chain's block n: nothing else looks like it."""
    body = number.to_bytes(8, "little") * ((BLOCK_BYTES - _HEAD.size) // 8)
    return _HEAD.pack(_MAGIC, number, chain, zlib.crc32(body, number & 0xFFFFFFFF)) + body


def numbers_in(copy: bytes, chain: int) -> dict[int, int]:
    """Slot -> the number of the block it holds, 0 for zeroes; fails on what no writer can have put there."""
    found = {}
    for slot in range(SLOTS):
        at = (chain * SLOTS + slot) * BLOCK_BYTES
        content = copy[at : at + BLOCK_BYTES]
        number = struct.unpack_from("<Q", content, 8)[0] if any(content) else 0
        assert not number or (content == block_of(chain, number) and number % SLOTS == slot), (
            f"chain {chain}: slot {slot} holds what was never written there"
        )
        found[slot] = number
    return found


class Chain:
    """One writer over the three volumes, and its record."""

    def __init__(self, chain: int, uris: dict[str, str], seed: int) -> None:
        self._chain = chain
        self._uris = uris
        self._chance = random.Random(seed * 1000 + chain)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"chain-{chain}", daemon=True)
        self.sent_ns: dict[str, list[int]] = {volume: [0] for volume in VOLUMES}
        """By number: when it was first sent. There is no block 0."""
        self.acknowledged_ns: dict[str, list[int]] = {volume: [0] for volume in VOLUMES}

    def __enter__(self) -> Chain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, blocks: int) -> None:
        """Until so many more blocks went through all three volumes."""
        goal = len(self.acknowledged_ns["c"]) + blocks
        until(lambda: len(self.acknowledged_ns["c"]) >= goal, f"chain {self._chain} has put {blocks} more blocks")

    def _run(self) -> None:
        pause = threading.Event()
        while not self._stop.is_set():
            # Cut off, or not served yet: like any client that rides through, it connects and sends again.
            with (
                suppress(OSError, AssertionError),
                connected(self._uris["a"]) as a,
                connected(self._uris["b"]) as b,
                connected(self._uris["c"]) as c,
            ):
                while not self._stop.is_set():
                    self._put_next({"a": a, "b": b, "c": c})
            pause.wait(0.005)

    def _put_next(self, clients: dict[str, Client]) -> None:
        for volume in VOLUMES:
            number = len(self.acknowledged_ns["c"])
            sent, acknowledged = self.sent_ns[volume], self.acknowledged_ns[volume]
            if len(acknowledged) > number:
                continue  # acknowledged before the connection was lost
            if len(sent) == number:
                sent.append(time.time_ns())
            flags = FUA if self._chain and self._chance.random() < 0.05 else 0
            offset = (self._chain * SLOTS + number % SLOTS) * BLOCK_BYTES
            clients[volume].send(write(number, offset, block_of(self._chain, number), flags))
            assert clients[volume].reply().error == 0
            acknowledged.append(time.time_ns())
            if self._chance.random() < 0.02:
                clients[volume].send(request(FLUSH, 1))
                assert clients[volume].reply().error == 0

    # ------------------------------------------------------------------ judgement

    def newest(self, volume: str, copy: bytes) -> int:
        """The newest block in a copy of a volume; fails if an older one is not where it must be."""
        numbers = numbers_in(copy, self._chain)
        newest = max(numbers.values())
        for slot, number in numbers.items():
            wanted = newest - (newest - slot) % SLOTS
            assert number == max(wanted, 0), f"chain {self._chain}, {volume}: slot {slot} holds {number}, not {wanted}"
        return newest

    def judge(self, copies: dict[str, bytes], at_ns: int, precision_ns: int = 1000) -> int:
        """Hold the volumes as they were at a checkpoint against the record; returns the newest block that went through."""
        newest = {volume: self.newest(volume, copies[volume]) for volume in VOLUMES}
        a, b, c = (newest[volume] for volume in VOLUMES)
        assert a >= b >= c >= a - 1, f"chain {self._chain}: A, B, C hold {a}, {b}, {c}: no moment was like that"
        for volume, number in newest.items():
            sent, acknowledged = self.sent_ns[volume], self.acknowledged_ns[volume]
            assert number == 0 or sent[number] <= at_ns + precision_ns, (
                f"chain {self._chain}, {volume}: block {number} was sent {(sent[number] - at_ns) / 1e9} s after the mark"
            )
            after = number + 1
            assert after >= len(acknowledged) or acknowledged[after] >= at_ns, (
                f"chain {self._chain}, {volume}: block {after} was acknowledged {(at_ns - acknowledged[after]) / 1e9} s "
                "before the mark and is not there"
            )
        return c
