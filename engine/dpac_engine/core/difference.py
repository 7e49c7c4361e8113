"""The difference between two checkpoints of a member, from indexes and entries alone: no content is read.

Both images must be of one reader: a stored byte is the same if it lies at the same place of the same segment. Bytes that were
written again with the same content count as changed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dpac_engine.core.entries import decode_entry
from dpac_engine.core.extents import ZEROES, ExtentMap, Int64Array
from dpac_engine.core.image import Image, TreeImage


class RangeChange(NamedTuple):
    """Bytes of a volume that may differ. Where one of the two is shorter, the rest of the other is changed too."""

    offset: int
    length: int


class FileChange(NamedTuple):
    """A path that differs, with its size in bytes in both; None: it was not there."""

    path: bytes
    size_before: int | None
    size_after: int | None


def changed_ranges(before: Image, after: Image, ordinal: int) -> list[RangeChange]:
    """What differs of a volume, in order, neighbours joined."""
    one, two = before.volume(ordinal), after.volume(ordinal)
    size = max(one.size_bytes, two.size_bytes)
    edges = [np.array([0, one.size_bytes, two.size_bytes, size], np.int64)]
    edges += [edge for found in (one.map, two.map) for edge in (found.starts, found.ends)]
    bounds = np.unique(np.concatenate(edges))
    begins, ends = bounds[:-1], bounds[1:]
    ids: dict[int, int] = {}
    from_one, from_two = _origin(one.map, before, begins, ids), _origin(two.map, after, begins, ids)
    differs = (from_one[0] != from_two[0]) | (from_one[1] != from_two[1])
    differs |= begins >= min(one.size_bytes, two.size_bytes)
    changes: list[RangeChange] = []
    for begin, end in zip(begins[differs].tolist(), ends[differs].tolist(), strict=True):
        if changes and changes[-1].offset + changes[-1].length == begin:
            changes[-1] = RangeChange(changes[-1].offset, end - changes[-1].offset)
        else:
            changes.append(RangeChange(begin, end - begin))
    return changes


def _origin(found: ExtentMap, image: Image, begins: Int64Array, ids: dict[int, int]) -> tuple[Int64Array, Int64Array]:
    """(segment, place in it) that each interval begins with; -1 and 0 for zeroes."""
    names = np.array([ids.setdefault(id(segment), len(ids)) for segment in image.segments] or [0], np.int64)
    if not len(found):
        return np.full(len(begins), ZEROES, np.int64), np.zeros(len(begins), np.int64)
    at = np.clip(np.searchsorted(found.ends, begins, side="right"), 0, len(found) - 1)
    inside = (found.starts[at] <= begins) & (begins < found.ends[at]) & (found.sources[at] != ZEROES)
    source = np.where(inside, names[np.maximum(found.sources[at], 0)], ZEROES)
    place = np.where(inside, found.positions[at] + begins - found.starts[at], 0)
    return source.astype(np.int64), place.astype(np.int64)


class Run(NamedTuple):
    """Bytes `[begin, end)` of two buffers in which every block differs; `zeroes`: all of the second one's are zero."""

    begin: int
    end: int
    zeroes: bool


def differing_runs(now: bytes, then: bytes, block_bytes: int) -> list[Run]:
    """The runs of blocks in which two buffers of one length differ, in order; the last block may be shorter."""
    if now == then:
        return []
    blocks = -(-len(then) // block_bytes)
    one, two = (np.zeros(blocks * block_bytes, np.uint8) for _ in range(2))
    one[: len(now)], two[: len(then)] = np.frombuffer(now, np.uint8), np.frombuffer(then, np.uint8)
    differs, filled = ((found.reshape(blocks, block_bytes)).any(axis=1) for found in (one != two, two))
    label = np.where(differs, np.where(filled, 2, 1), 0)  # 0: the same; 1: zeroes are to come there; 2: bytes are
    edges = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist(), blocks]
    return [
        Run(begin * block_bytes, min(end * block_bytes, len(then)), bool(label[begin] == 1))
        for begin, end in pairwise(edges)
        if label[begin]
    ]


def changed_files(before: Image, after: Image, ordinal: int) -> list[FileChange]:
    """The paths of a directory that differ, sorted: added, removed, or with another entry (content, metadata)."""
    one, two = before.tree(ordinal), after.tree(ordinal)
    there, here = set(one.paths()), set(two.paths())
    changes = [FileChange(path, _size(one, path), None) for path in there - here]
    changes += [FileChange(path, None, _size(two, path)) for path in here - there]
    for path in there & here:
        if one.place(path) != two.place(path) and one.read_entry(path) != two.read_entry(path):
            changes.append(FileChange(path, _size(one, path), _size(two, path)))
    return sorted(changes)


def _size(tree: TreeImage, path: bytes) -> int:
    return decode_entry(tree.read_entry(path), tree.read_chunk).size
