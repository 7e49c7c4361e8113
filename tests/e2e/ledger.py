"""A client that writes numbered, checksummed blocks and keeps, outside the system, a ledger of what was acknowledged.

Held against a copy of the volume, the ledger tells whether it is one that can have been at some moment:

* a block holds a write that was sent to it, whole, or zeroes if none was;
* if a write is there, every write acknowledged before that one was sent is there too (a prefix: crash consistency);
* every write acknowledged before the copy's moment is there, and none sent after it.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.e2e.site import connected, until
from tests.nbd.client import FLUSH, FUA, Client, request, write

BLOCK_BYTES = 4096
BATCH_WRITES_MAX = 8
_HEAD = struct.Struct("<8sQQI")
_MAGIC = b"dpac-ldg"


def block_content(number: int, block: int) -> bytes:
    """What write `number` puts into a block: nothing else looks like it."""
    body = random.Random(number).randbytes(BLOCK_BYTES - _HEAD.size)
    return _HEAD.pack(_MAGIC, number, block, zlib.crc32(body)) + body


def number_of(content: bytes, block: int) -> int | None:
    """Which write a block holds; 0 for zeroes, None if it is none that can have been sent there."""
    if not any(content):
        return 0
    magic, number, its_block, checksum = _HEAD.unpack_from(content)
    sound = magic == _MAGIC and its_block == block and zlib.crc32(content[_HEAD.size :]) == checksum
    return int(number) if sound else None


@dataclass
class Entry:
    """A write in the ledger. `sent` and `acknowledged` are places in one order of events; the times are the wall clock's."""

    block: int
    sent: int
    sent_at: float
    acknowledged: int | None = None
    acknowledged_at: float = 0.0


class Ledger:
    """`with Ledger(uri, blocks, seed) as ledger:` — it writes all the time, and reconnects whenever it must."""

    def __init__(self, uri: str, blocks: int, seed: int) -> None:
        self._uri = uri
        self._blocks = blocks
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._free = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._events = 0
        self.entries: list[Entry | None] = [None]
        """By number; there is no write 0."""
        self.acknowledged = 0
        self.flushes = 0
        self.connects = 0
        self.refusals: list[str] = []
        """Requests that were answered with an error, which none ever should be."""

    def __enter__(self) -> Ledger:
        self._free.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._free.set()
        self._thread.join()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No write is under way in here."""
        self._free.clear()
        with self._turn:
            yield
        self._free.set()

    def wait_for(self, writes: int) -> None:
        """Until that many more are acknowledged."""
        goal = self.acknowledged + writes
        until(lambda: self.acknowledged >= goal, f"{goal} writes are acknowledged")

    def _run(self) -> None:
        pause = threading.Event()
        while not self._stop.is_set():
            try:
                with connected(self._uri) as client:
                    self.connects += 1
                    self._write(client)
            except (OSError, AssertionError):  # cut off, or not served yet: a client that rides through connects again
                pause.wait(0.005)

    def _write(self, client: Client) -> None:
        while not self._stop.is_set():
            self._free.wait()
            with self._turn:
                self._write_batch(client)

    def _event(self) -> int:
        self._events += 1
        return self._events

    def _write_batch(self, client: Client) -> None:
        """Send some writes at once, then wait for their answers, and sometimes for a FLUSH after them."""
        count = self._chance.randint(1, BATCH_WRITES_MAX)
        first = len(self.entries)
        raw = []
        for block in self._chance.sample(range(self._blocks), count):
            number = len(self.entries)
            flags = FUA if self._chance.random() < 0.02 else 0
            raw.append(write(number, block * BLOCK_BYTES, block_content(number, block), flags))
            self.entries.append(Entry(block, self._event(), time.time()))
        client.send(*raw)
        for _ in range(count):
            reply = client.reply()
            entry = self.entries[reply.cookie]
            assert entry is not None
            assert reply.cookie >= first
            if reply.error:
                self.refusals.append(f"write {reply.cookie}: error {reply.error} {reply.message}")
                continue
            entry.acknowledged, entry.acknowledged_at = self._event(), time.time()
            self.acknowledged += 1
        if self._chance.random() < 0.05:
            client.send(request(FLUSH, 1))
            if error := client.reply().error:
                self.refusals.append(f"FLUSH: error {error}")
            else:
                self.flushes += 1

    # ------------------------------------------------------------------ holding a copy against it

    def problems(self, copy: bytes, at: float | None = None) -> list[str]:
        """What is wrong with a copy of the volume as of a moment (None: now, with nothing under way)."""
        assert len(copy) == self._blocks * BLOCK_BYTES
        found: list[int] = []
        problems: list[str] = []
        for block in range(self._blocks):
            number = number_of(copy[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES], block)
            if number is None:
                problems.append(f"block {block} holds what was never written to it")
            found.append(number or 0)
        there = [(number, entry) for number in found if (entry := self.entries[number]) is not None]
        newest_sent = max((entry.sent for _, entry in there), default=0)
        if at is not None:
            problems += [
                f"write {number} was sent {entry.sent_at - at:.6f} s after this copy's moment"
                for number, entry in there
                if entry.sent_at > at
            ]
        for number, entry in self._acknowledged_before(newest_sent, at):
            if found[entry.block] < number:
                problems.append(
                    f"write {number} to block {entry.block} is missing (there is {found[entry.block]}); it was "
                    f"acknowledged {(at or time.time()) - entry.acknowledged_at:.6f} s before this copy's moment"
                )
        return problems

    def _acknowledged_before(self, event: int, at: float | None) -> Iterator[tuple[int, Entry]]:
        for number, entry in enumerate(self.entries):
            if entry is None or entry.acknowledged is None:
                continue
            if at is None or entry.acknowledged_at < at or entry.acknowledged < event:
                yield number, entry
