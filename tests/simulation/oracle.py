"""What must be there: every change a client made, with the place in the journal that it got."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dpac_engine.core.records import HEADER_BYTES, Header, Kind
from dpac_engine.io.nbd.export import Change

SECTOR = 512
_DEVICE = (Kind.WRITE, Kind.ZERO, Kind.TRIM)


class Written(NamedTuple):
    """A change. `direct`: the journal was broken, it went past it; `lsn` is where the journal had ended."""

    lsn: int
    offset: int
    data: bytes
    direct: bool

    def is_hit(self, *lsns: int) -> bool:
        """A byte of its record lies there. What leaves zeroes may be a header alone."""
        stored = HEADER_BYTES + (len(self.data) if any(self.data) else 0)
        return not self.direct and any(self.lsn <= lsn < self.lsn + stored for lsn in lsns)


class Wrong(AssertionError):
    """A promise was broken."""


class Device:
    """One volume, as its client knows it."""

    def __init__(self, size_bytes: int) -> None:
        self.sizes = {size_bytes}
        self.size_bytes = size_bytes
        self.log: list[Written] = []
        self.flushed = 0
        """How many entries of the log are durable here: the newest answered FLUSH covers them, or a start without a journal found them."""
        self.answered = 0
        """How many of them the newest answered FLUSH covers: what a sync leg's target must have."""
        self._answered_before: tuple[bytes, list[Written]] | None = None
        """Where a start without a journal came after that FLUSH: what it covered, and what was changed from there to that start."""
        self.tried: list[Change] = []
        """A batch that was not acknowledged before the process ended."""
        self._former: list[list[Written]] = []
        """Logs whose end a loss of power took; a tail at a target may still tell it until a manifest of a later life is there."""
        self._content: bytearray | None = None

    def flush_answered(self, count: int) -> None:
        """A FLUSH that found so many entries was answered."""
        self.flushed = max(self.flushed, count)
        if count > self.answered:
            self.answered, self._answered_before = count, None

    def forget_flushes(self) -> None:
        """Damage may have taken what any of them covered."""
        self.flushed, self.answered, self._answered_before = 0, 0, None

    def began(self) -> None:
        """A life begins with this log: nothing beyond it was ever flushed."""
        self.flushed, self.answered = min(self.flushed, len(self.log)), min(self.answered, len(self.log))

    def grow(self, size_bytes: int) -> None:
        """The device has that size from now on."""
        self.size_bytes = max(self.size_bytes, size_bytes)
        self.sizes.add(self.size_bytes)
        self._content = None

    def add(self, entry: Written) -> None:
        """A change was made."""
        self.log.append(entry)
        if self._content is not None:
            self._content[entry.offset : entry.offset + len(entry.data)] = entry.data

    @property
    def content(self) -> bytes:
        """As it is now."""
        if self._content is None:
            self._content = self.replay(self.log)
        return bytes(self._content)

    def replay(self, entries: Iterable[Written]) -> bytearray:
        """What those entries make of zeroes."""
        content = bytearray(self.size_bytes)
        for entry in entries:
            content[entry.offset : entry.offset + len(entry.data)] = entry.data
        return content

    def at(self, lsn: int) -> bytes:
        """As every change before that place in the journal left it."""
        return bytes(self.replay(entry for entry in self.log if entry.lsn < lsn))

    def was(self, content: bytes, lsn: int) -> bool:
        """It was so at that place in a journal whose end is lost."""
        return any(self.replay(entry for entry in log if entry.lsn < lsn) == content for log in self._former)

    def took_back(
        self, found: Sequence[tuple[Header, memoryview]], ordinal: int, known_lsn: int, head_lsn: int
    ) -> None:
        """A new life begins with the journal before `head_lsn`: what it lost is gone, what it has of an unacknowledged batch is there."""
        kept = [entry for entry in self.log if entry.lsn < head_lsn or entry.direct]
        if len(kept) < len(self.log):
            self._former.append(self.log)
        self.log = kept
        tried, self.tried = self.tried, []
        mine = [
            each for each in found if each[0].member == ordinal and each[0].kind in _DEVICE and each[0].lsn >= known_lsn
        ]
        for (header, _), change in zip(mine, tried, strict=False):
            if (header.offset, header.length) == (change.offset, change.length):
                self.log.append(Written(header.lsn, change.offset, data_of(change), False))
        self._content = None

    def adopt(self, content: bytes, lsn: int, what: str) -> None:
        """After an end without a journal: each sector is as some change since the newest FLUSH left it, or as that found it."""
        tried = [Written(lsn, change.offset, data_of(change), True) for change in self.tried]
        known, later = self.replay(self.log[: self.flushed]), [*self.log[self.flushed :], *tried]
        answered, since = self._answered
        self._answered_before, self.tried = (answered, [*since, *tried]), []
        for at in range(0, self.size_bytes, SECTOR):
            found = content[at : at + SECTOR]
            if found == known[at : at + SECTOR]:
                continue
            versions = [
                entry.data[at - entry.offset :][:SECTOR]
                for entry in later
                if entry.offset <= at < entry.offset + len(entry.data)
            ]
            if found not in versions:
                raise Wrong(f"{what}: the sector at {at} was never so")
        self._former.append(self.log)
        kept = [entry for entry in self.log if entry.lsn < lsn]
        self.log = [*kept, Written(lsn, 0, content, True)]
        self.answered, self.flushed, self._content = len(kept), len(self.log), None

    @property
    def _answered(self) -> tuple[bytes, list[Written]]:
        """What the newest answered FLUSH covers, and every change since."""
        before, later = self._answered_before, self.log[self.answered :]
        if before is not None:
            return before[0].ljust(self.size_bytes, b"\0"), [*before[1], *later]
        return bytes(self.replay(self.log[: self.answered])), later

    def check_salvaged(self, content: bytes, hurt: Sequence[tuple[int, int]], durable_lsn: int, what: str) -> None:
        """Wrong if a sector is not what was written to it last, though no damage, nor a loss of power, hit a change of it."""
        free = set[int]()
        for entry in self.log:
            end = entry.lsn + HEADER_BYTES + len(entry.data)
            if entry.lsn >= durable_lsn or any(entry.lsn < stop and end > begin for begin, stop in hurt):
                free.update(range(entry.offset, entry.offset + len(entry.data), SECTOR))
        for change in self.tried:
            free.update(range(change.offset, change.offset + change.length, SECTOR))
        expected = bytearray(self.content)
        for at in free:
            expected[at : at + SECTOR] = content[at : at + SECTOR]
        difference(bytes(expected), content, what)

    def check_flushed(self, content: bytes, what: str) -> None:
        """Wrong if a sector is older than the newest answered FLUSH has it."""
        known, later = self._answered
        for at in range(0, self.size_bytes, SECTOR):
            found = content[at : at + SECTOR]
            versions = (
                entry.data[at - entry.offset :][:SECTOR]
                for entry in later
                if entry.offset <= at < entry.offset + len(entry.data)
            )
            if found != known[at : at + SECTOR] and found not in versions:
                raise Wrong(f"{what}: the sector at {at} begins {found[:8].hex()}, not as it was flushed")

    def check(self, content: bytes, what: str) -> None:
        """Wrong if that is not what the client wrote."""
        difference(self.content, content, what)


def data_of(change: Change) -> bytes:
    """What it leaves on the device."""
    return bytes(change.length) if change.data is None else bytes(change.data)


def difference(expected: bytes, found: bytes, what: str) -> None:
    """Wrong, saying where, unless they are equal."""
    if bytes(found) == bytes(expected):
        return
    if len(found) != len(expected):
        raise Wrong(f"{what}: {len(found)} bytes, not {len(expected)}")
    at = next(at for at in range(0, len(expected), SECTOR) if expected[at : at + SECTOR] != found[at : at + SECTOR])
    raise Wrong(
        f"{what}: the sector at {at} begins {bytes(found[at : at + 8]).hex()}, not {bytes(expected[at : at + 8]).hex()}"
    )
