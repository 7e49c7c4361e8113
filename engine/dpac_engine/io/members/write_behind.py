"""Write-behind: journalled changes are brought to a volume's file in few calls, each block once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dpac_engine.core.records import Kind
from dpac_engine.io.files import write_all
from dpac_engine.io.holes import punch_hole

_WRITE = int(Kind.WRITE)  # a plain number: the enumeration's costs in every comparison


class Pending(NamedTuple):
    """A journalled change that is not in the file yet. `position`: where its payload lies in the journal's stream."""

    lsn: int
    kind: int
    offset: int
    length: int
    position: int
    at: float
    """Event loop time of its arrival; 0 for one found in the spool."""


def bring(descriptor: int, changes: Sequence[Pending], view: Callable[[int, int], memoryview], size_bytes: int) -> None:
    """Bring changes, in LSN order, to the file as if one after the other. `view(position, length)` gives payloads.

    Blocks. Raises OSError; some of them are in the file then, and all may be brought again.
    """
    run: list[memoryview] = []
    run_offset = run_end = -1
    for _, kind, offset, length, position, _ in needed(changes):
        if kind == _WRITE:
            if offset != run_end:
                if run:
                    write_all(descriptor, run, run_offset)
                run, run_offset = [], offset
            run.append(view(position, length))
            run_end = offset + length
            continue
        write_all(descriptor, run, run_offset)
        run, run_end = [], -1
        punch_hole(descriptor, offset, min(length, size_bytes - offset))
    write_all(descriptor, run, run_offset)


def needed(changes: Sequence[Pending]) -> Iterator[Pending]:
    """The changes without those that later ones undo, neighbours on the device together where that does no harm.

    Writes of one size, each at a multiple of it, overlap only where they have the same offset: in a stretch of these the
    newest of each offset is left, by offset. Everything else stays in order.
    """
    stretch: dict[int, Pending] = {}
    size = 0
    for change in changes:
        _, kind, offset, length, _, _ = change
        if kind != _WRITE or offset % length:
            size, before, stretch = 0, stretch, {}
            yield from _by_offset(before)
            yield change
            continue
        if length != size:
            size, before, stretch = length, stretch, {}
            yield from _by_offset(before)
        stretch[offset] = change
    yield from _by_offset(stretch)


def _by_offset(stretch: dict[int, Pending]) -> Iterator[Pending]:
    return map(stretch.__getitem__, sorted(stretch))
