"""Checkpoints: marks in the journal, and the selectors by which people name them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from dpac_api.errors import Invalid, Unrecoverable


class CutBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """How exact one member is: `exact`, `barrier` or `observed`; times in nanoseconds."""

    kind: str
    as_of_ns: int = 0
    skew_ns: int = 0


class MarkBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload of a mark record."""

    sequence: int
    membership_version: int
    cuts: dict[str, CutBody] = {}
    """Member ordinal (as text, JSON has no other keys) -> its cut."""
    app: bool = False
    tags: list[str] = []
    epoch: int = 0
    """The epoch in which it was made: a merged segment may hold marks of several. 0: that of its record or segment."""
    shards: int = 0
    """Of how many shards it is a checkpoint: it counts where each has a mark of this sequence. 0: of this one alone."""
    stamp_ns: int = 0
    """When it was taken, the same in every shard. 0: the record's stamp."""
    void_from: int = 0
    void_to: int = 0
    """Half-open range of earlier sequences that not every shard has: they are no checkpoints."""

    def encode(self) -> bytes:
        """The payload as it lies in the record."""
        return msgspec.json.encode(self)


_decode_body = msgspec.json.Decoder(MarkBody).decode


class Mark(msgspec.Struct, frozen=True):
    """A checkpoint: the mark's place in the shard and what it says."""

    epoch: int
    lsn: int
    stamp_ns: int
    body: MarkBody
    other_lsns: tuple[int, ...] = ()
    """Where it lies in the shards after the first, if the group has several."""

    @property
    def id(self) -> str:
        """`ck-EPOCH-SEQUENCE`."""
        return checkpoint_id(self.epoch, self.body.sequence)

    @property
    def sequence(self) -> int:
        """Number of the mark in the group, rising by one with each."""
        return self.body.sequence


def decode_mark(epoch: int, lsn: int, stamp_ns: int, payload: bytes | memoryview) -> Mark:
    """The checkpoint that a mark record makes."""
    body = _decode_body(payload)
    return Mark(body.epoch or epoch, lsn, body.stamp_ns or stamp_ns, body)


def checkpoint_id(epoch: int, sequence: int) -> str:
    """A checkpoint's id."""
    return f"ck-{epoch}-{sequence}"


def sequence_of(checkpoint: str) -> int:
    """The sequence in a checkpoint's id; Invalid if it is none."""
    match = re.fullmatch(r"ck-[0-9]+-([0-9]+)", checkpoint)
    if match is None:
        raise Invalid(f"{checkpoint!r} is not a checkpoint id; they look like ck-1-4711 (`dpac checkpoints GROUP`).")
    return int(match[1])


def select(marks_newest_first: Iterable[Mark], selector: str) -> Mark:
    """The checkpoint that `selector` names among those recoverable; Unrecoverable if there is none.

    `latest-clean` equals `latest`: whoever knows of damage leaves out the checkpoints that it hurts.
    """
    wanted = matches(selector)
    for mark in marks_newest_first:
        if wanted(mark):
            return mark
    raise Unrecoverable(
        f"No checkpoint at the target satisfies {selector!r}. See what there is with `dpac checkpoints GROUP`."
    )


def timestamp_ns(text: str) -> int:
    """Nanoseconds of an RFC 3339 timestamp; without a zone it is UTC. Invalid if it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{text!r} is not a timestamp; write it like 2026-11-21T09:30:00Z.") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000) * 1000


def matches(selector: str) -> Callable[[Mark], bool]:
    """Tells whether a checkpoint is one that the selector may mean; Invalid if it is no selector."""
    if selector in ("latest", "latest-clean"):
        return lambda _: True
    if selector == "latest-app":
        return lambda mark: mark.body.app
    kind, _, value = selector.partition(":")
    if kind == "tag" and value:
        return lambda mark: value in mark.body.tags
    if kind == "before" and value:
        limit = timestamp_ns(value)
        return lambda mark: mark.stamp_ns < limit
    sequence = sequence_of(selector)
    return lambda mark: mark.sequence == sequence and mark.id == selector
