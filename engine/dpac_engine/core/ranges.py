"""Sets of byte ranges, each as (offset, length) pairs."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def joined(ranges: Iterable[Range]) -> list[Range]:
    """(offset, length) of what any of the ranges covers, in order, each byte once."""
    found: list[Range] = []
    for offset, length in sorted(ranges):
        if found and offset <= found[-1][0] + found[-1][1]:
            begin = found[-1][0]
            found[-1] = begin, max(found[-1][1], offset + length - begin)
        else:
            found.append((offset, length))
    return found


def widened(ranges: Iterable[Range], block_bytes: int, begin: int, end: int) -> list[Range]:
    """The ranges, each from the begin of a block to the end of one, but within `[begin, end)`; joined."""
    blocks = ((at - at % block_bytes, at + length + -(at + length) % block_bytes) for at, length in ranges)
    return joined((max(low, begin), min(high, end) - max(low, begin)) for low, high in blocks)


def without(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What of the ranges lies in none of the others. Both are in order, and none overlaps its neighbour."""
    found: list[Range] = []
    rest = iter(others)
    other = next(rest, None)
    for offset, length in ranges:
        at, end = offset, offset + length
        while other is not None and other[0] < end:
            if other[0] > at:
                found.append((at, other[0] - at))
            at = max(at, other[0] + other[1])
            if at >= end:
                break  # the next range may begin within it
            other = next(rest, None)
        if at < end:
            found.append((at, end - at))
    return found
