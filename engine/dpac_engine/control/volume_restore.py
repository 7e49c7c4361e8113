"""Writing a volume of an image to a file: each stored block is read once and written once, several at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpac_engine.control.recovery import VolumeView
from dpac_engine.control.restore_journal import RestoreJournal
from dpac_engine.core.image import StoredRun
from dpac_engine.core.stream_hashes import StreamHashes
from dpac_engine.io.restored_volume import RestoredVolume
from dpac_engine.io.stored_runs import READERS, each_run

SYNC_BYTES = 64 * 2**20
"""So much is written from one note in the journal to the next: what a crash costs at most."""


class Outcome(NamedTuple):
    """What became of a volume's bytes."""

    written: int
    kept: int
    """Those that lay in the file before."""
    zeroed: int = 0
    """Over what lay there: data that became zeroes."""


class VolumeRestore:
    """One volume on its way into a file.

    A new file holds nothing but what an earlier try has written. `over` another one that holds some state of the volume, only
    what differs is fetched, as far as the hashes of what is stored tell, and written; what is not stored becomes zeroes.
    """

    def __init__(
        self,
        volume: VolumeView,
        file: RestoredVolume,
        journal: RestoreJournal,
        progress: Callable[[int, int], None],
        *,
        over: bool = False,
    ) -> None:
        """`progress` is told the bytes done, and those to do; it raises to stop the work."""
        self._volume = _Rest(volume, frozenset(journal.segments))
        self._file = file
        self._journal = journal
        self._progress = progress
        self._work = self._write_differing if over else self._write
        self._over = over
        self._hashes = _HashesOfSegments()
        self._goal = stored_bytes(volume)
        self._unsynced = 0
        self._noted: list[str] = []
        """Segments that are in the file, and not in the journal yet."""

    def run(self) -> Outcome:
        """Write what is not there. Corruption if what is stored is damaged; OSError of the file."""
        written, looked_at, segment = 0, 0, ""
        for run, count in each_run(self._volume.runs(), self._work):
            if run.segment != segment:
                self._end_of(segment)
                segment = run.segment
            written += count
            looked_at += run.length
            self._unsynced += run.length
            self._progress(self._volume.left_out + looked_at, self._goal)
        zeroed = sum(self._file.clear(begin, end) for begin, end in _gaps(self._volume)) if self._over else 0
        self._file.sync()
        return Outcome(written, self._volume.left_out + looked_at - written, zeroed)

    def _write(self, run: StoredRun) -> int:
        for offset, data in run.content():
            self._file.fill(offset, data)
        return run.length

    def _write_differing(self, run: StoredRun) -> int:
        lacking = run.lacking(self._hashes.of(run), self._file.read)
        for part in lacking:
            for offset, data in part.content():
                self._file.write(offset, data)
        return sum(part.length for part in lacking)

    def _end_of(self, segment: str) -> None:
        """All runs of the segment are written, and of those before."""
        if segment:
            self._noted.append(segment)
        if self._unsynced >= SYNC_BYTES and self._noted:
            self._file.sync()
            self._journal.wrote(self._noted)
            self._noted, self._unsynced = [], 0


class _HashesOfSegments:
    """The hashes of the segments that are being read; a request each, made once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, StreamHashes] = OrderedDict()

    def of(self, run: StoredRun) -> StreamHashes:
        """Those of the run's segment."""
        with self._lock:
            if run.segment not in self._known:
                self._known[run.segment] = run.hashes()
            if len(self._known) > 2 * READERS:
                self._known.popitem(last=False)
            return self._known[run.segment]


def stored_bytes(volume: VolumeView) -> int:
    """How much of the volume is stored."""
    return sum(length for _, length in volume.extents())


def _gaps(volume: VolumeView) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is not stored and reads as zeroes, in order."""
    at = 0
    for offset, length in volume.extents():
        if offset > at:
            yield at, offset
        at = offset + length
    if at < volume.size_bytes:
        yield at, volume.size_bytes


class _Rest:
    """A volume without what it has of some segments (a `VolumeView`)."""

    def __init__(self, volume: VolumeView, done: frozenset[str]) -> None:
        self._volume = volume
        self._done = done
        self.size_bytes = volume.size_bytes
        self.left_out = 0

    def read(self, offset: int, length: int) -> bytes:
        """See `VolumeView`."""
        return self._volume.read(offset, length)

    def extents(self) -> Iterator[tuple[int, int]]:
        """See `VolumeView`."""
        return self._volume.extents()

    def runs(self) -> Iterator[StoredRun]:
        """See `VolumeView`."""
        for run in self._volume.runs():
            if run.segment in self._done:
                self.left_out += run.length
            else:
                yield run
