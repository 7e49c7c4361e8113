"""Folding: what lies between two kept checkpoints is kept in few layers, and the oldest of all, the base, in stripes.

Thinning puts what has aged out beside what is merged already, as a layer of its own; nothing else is rewritten by it. A
checkpoint that is kept no longer leaves its layer where it lies. Folding then merges layers of one gap between kept
checkpoints, small ones first, so that each byte is rewritten seldom, and over the base only once a good share of it has
changed (`core/stripes.py`). Pure: plans are data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.segment import SegmentKind
from dpac_engine.core.stripes import FOLD_SHARE

LAYERS_MAX = 12
"""Of one gap between kept checkpoints, the base included: so many segments at most tell of an address there."""
LAYERS_OVER_BASE = 4
"""So many layers of like size are merged at once where they wait for the base ..."""
LAYERS_IN_GAP = 2
"""... and elsewhere, where what is overwritten goes sooner."""


class Fold(NamedTuple):
    """Merge `layers`, oldest first, into one; with a `base` into as many of its stripes as changed enough."""

    base: list[SegmentRef]
    layers: list[SegmentRef]


def is_base(ref: SegmentRef) -> bool:
    """Nothing older than it remains, so that it does not tell of absence."""
    return ref.kind == SegmentKind.MERGED and ref.lsn_from == 0


def plan(
    refs: Sequence[SegmentRef],
    damaged: Collection[str],
    freed_bytes: Callable[[SegmentRef], int],
    rests: Callable[[Sequence[SegmentRef], Sequence[SegmentRef]], bool],
) -> Fold | None:
    """What to fold now, or None. `refs`: live segments in LSN order; nothing is folded across one of the `damaged`.

    `freed_bytes` tells what a layer's absences may free of the base; `rests`, whether a base takes none of its layers in now.
    """
    merged = [ref for ref in refs if ref.kind == SegmentKind.MERGED]
    base = [ref for ref in merged if is_base(ref)]
    ends = sorted({ref.lsn_to - 1 for ref in merged if ref.marks} | barriers(refs, damaged))
    # A seed's rows may be older than what is merged: over them absence must be told until they are merged too.
    seeds = min((ref.lsn_from for ref in refs if ref.kind == SegmentKind.FILL), default=None)
    for gap in _gaps([ref for ref in merged if not is_base(ref) and ref.name not in damaged], ends):
        layers = list(_layers(gap))
        over_base = bool(base) and (not ends or gap[-1].lsn_to - 1 <= ends[0])
        whole = seeds is None or seeds > gap[-1].lsn_to
        if over_base and whole and not rests(base, gap) and _is_due(base, gap, freed_bytes):
            return Fold(base, gap)
        few = _to_merge(layers, LAYERS_OVER_BASE if over_base else LAYERS_IN_GAP)
        if few:
            return Fold([], [ref for layer in few for ref in layer])
    return None


def barriers(refs: Iterable[SegmentRef], damaged: Collection[str]) -> set[int]:
    """LSNs across which nothing is merged, so that what is damaged is as good as before once it is mended."""
    lsns: set[int] = set()
    for ref in refs:
        if ref.name in damaged and not is_base(ref):
            lsns |= {ref.lsn_from, ref.lsn_to - 1 if ref.kind == SegmentKind.MERGED else ref.lsn_to}
    return lsns


def _gaps(merged: Sequence[SegmentRef], ends: Sequence[int]) -> Iterator[list[SegmentRef]]:
    """Merged segments by the kept checkpoint up to which they tell; what no checkpoint follows yet is merged by thinning."""

    def gap(ref: SegmentRef) -> int:
        return bisect_left(ends, ref.lsn_to - 1)

    for number, found in groupby(sorted(merged, key=lambda ref: (gap(ref), ref.lsn_to, ref.lsn_from)), gap):
        if number < len(ends) or not ends:
            yield list(found)


def _layers(gap: Iterable[SegmentRef]) -> Iterator[list[SegmentRef]]:
    for _, layer in groupby(gap, lambda ref: (ref.lsn_to, ref.lsn_from)):
        yield list(layer)


def _is_due(base: Sequence[SegmentRef], gap: Sequence[SegmentRef], freed_bytes: Callable[[SegmentRef], int]) -> bool:
    enough = FOLD_SHARE * sum(ref.bytes for ref in base)
    return sum(ref.bytes for ref in gap) >= enough or sum(ref.bytes + freed_bytes(ref) for ref in gap) >= enough


def _to_merge(layers: Sequence[list[SegmentRef]], at_once: int) -> Sequence[list[SegmentRef]]:
    """The newest layers, as many as none of which outweighs those that are newer; beyond `LAYERS_MAX` the newer half."""
    sizes = [sum(ref.bytes for ref in layer) for layer in layers]
    for count in range(len(layers), at_once - 1, -1):
        if sizes[-count] <= sum(sizes[len(sizes) - count + 1 :]):
            return layers[-count:]
    return layers[LAYERS_MAX // 2 :] if len(layers) >= LAYERS_MAX else ()
