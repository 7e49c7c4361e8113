"""Writing a volume of an image to a file: each stored block is read once and written once, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpac_engine.control.image_reading import each_run, stored_bytes
from dpac_engine.control.recovery import VolumeView
from dpac_engine.control.restore_journal import RestoreJournal
from dpac_engine.core.image import StoredRun
from dpac_engine.io.restored_volume import RestoredVolume

SYNC_BYTES = 64 * 2**20
"""So much is written from one note in the journal to the next: what a crash costs at most."""


class Outcome(NamedTuple):
    """What became of a volume's bytes."""

    written: int
    kept: int
    """Those that lay in the file before."""


class VolumeRestore:
    """One volume on its way into a file, which holds nothing but what an earlier try has written."""

    def __init__(
        self, volume: VolumeView, file: RestoredVolume, journal: RestoreJournal, progress: Callable[[int, int], None]
    ) -> None:
        """`progress` is told the bytes done, and those to do; it raises to stop the work."""
        self._volume = _Rest(volume, frozenset(journal.segments))
        self._file = file
        self._journal = journal
        self._progress = progress
        self._goal = stored_bytes(volume)
        self._unsynced = 0
        self._noted: list[str] = []
        """Segments that are in the file, and not in the journal yet."""

    def run(self) -> Outcome:
        """Write what is not there. Corruption if what is stored is damaged; OSError of the file."""
        written, segment = 0, ""
        for run, _ in each_run(self._volume, self._write):
            if run.segment != segment:
                self._end_of(segment)
                segment = run.segment
            written += run.length
            self._unsynced += run.length
            self._progress(self._volume.left_out + written, self._goal)
        self._file.sync()
        return Outcome(written, self._volume.left_out)

    def _write(self, run: StoredRun) -> None:
        for offset, data in run.content():
            self._file.write(offset, data)

    def _end_of(self, segment: str) -> None:
        """All runs of the segment are written, and of those before."""
        if segment:
            self._noted.append(segment)
        if self._unsynced >= SYNC_BYTES and self._noted:
            self._file.sync()
            self._journal.wrote(self._noted)
            self._noted, self._unsynced = [], 0


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
