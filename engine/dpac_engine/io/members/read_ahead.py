"""Chunks of a directory from a target, fetched before they are asked for: the order in which they will be is known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from dpac_api.errors import Corruption
from dpac_engine.core.image import StoredRun
from dpac_engine.io.stored_runs import each_run

ReadChunk = Callable[[bytes], bytes]
ChunkRuns = Callable[[Sequence[bytes]], Iterator[StoredRun]]
"""See `core.image.TreeImage.runs`."""

HELD_BYTES_MAX = 16 * 2**20
"""Of chunks that were fetched; beside it are the runs under way (`stored_runs.READERS`, 4 MiB each)."""
_AGAIN_BYTES_MAX = HELD_BYTES_MAX // 2
"""A chunk that is wanted again within so many bytes is still held, and not fetched twice."""


class ReadAhead:
    """Gives chunks by their hashes, for one thread. `close` ends what is under way."""

    def __init__(self, runs: ChunkRuns, read_chunk: ReadChunk, wanted: Iterable[tuple[bytes, int]]) -> None:
        """`wanted`: (hash, length) in the order of the reads to come. Any other chunk is read by `read_chunk`, and so is one
        of a run that cannot be read: what is damaged there may be something that nobody wants."""
        planned = _planned(wanted)
        self._read_chunk = read_chunk
        self._last_at = {digest: at for at, digest in enumerate(planned)}
        self._digests = planned
        self._fetched_to = 0
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._held_bytes = 0
        self._ahead = each_run(runs(planned), _content)

    def read(self, digest: bytes) -> bytes:
        """The content that is stored under that hash. Corruption if it is damaged or missing; Temporary if its target is away."""
        while digest not in self._held and self._last_at.get(digest, -1) >= self._fetched_to:
            if not self._fetch():
                break
        content = self._held.get(digest)
        return self._read_chunk(digest) if content is None else content

    def close(self) -> None:
        """Returns once nothing is read any more."""
        self._ahead.close()

    def _fetch(self) -> bool:
        """Take the next run; False if there is none."""
        run, chunks = next(self._ahead, (None, []))
        if run is None:
            return False
        self._fetched_to = run.places[-1].offset + 1
        for at, content in chunks:
            digest = self._digests[at]
            self._held_bytes += len(content) - len(self._held.pop(digest, b""))
            self._held[digest] = content
        while self._held_bytes > HELD_BYTES_MAX:
            self._held_bytes -= len(self._held.popitem(last=False)[1])
        return True


def _planned(wanted: Iterable[tuple[bytes, int]]) -> list[bytes]:
    """The hashes to fetch, without those that are held anyway when they are wanted."""
    planned: list[bytes] = []
    total, planned_at = 0, dict[bytes, int]()
    for digest, length in wanted:
        if digest in planned_at and total - planned_at[digest] < _AGAIN_BYTES_MAX:
            continue
        planned.append(digest)
        planned_at[digest] = total
        total += length
    return planned


def _content(run: StoredRun) -> list[tuple[int, bytes]]:
    """(place in the plan, content); a copy of each, so that it does not keep what lies around it."""
    try:
        return [(at, bytes(data)) for at, data in run.content()]
    except Corruption:
        return []
