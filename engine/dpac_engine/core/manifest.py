"""Manifests: the sole commits of a repository, and the state they add up to (docs/journal-format.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

import blake3
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dpac_api.errors import Corruption, Unsupported
from dpac_engine.core.checkpoints import Mark

FORMAT_VERSION = 1
_KEY = re.compile(r"m/[0-9]{16}")
FORGET_DROPPED_NS = 7 * 86_400 * 10**9
"""Complete manifests name what was dropped for so long; it is deleted after a day, and what is left then is found again."""
SHARDS_PREFIX = "shards/"
"""Below a group's prefix: the repositories of its shards after the first, by their number."""
COMPLETE_EVERY = 64
"""Each manifest whose number is a multiple of this holds the whole state."""


class MarkRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """The checkpoints in a segment, as a range."""

    first_sequence: int
    last_sequence: int
    first_stamp: int
    last_stamp: int
    count: int
    app_count: int = 0
    tags: list[tuple[str, int]] = []
    """(tag, sequence) of each tagged checkpoint."""


def mark_range(marks: Sequence[Mark]) -> MarkRange | None:
    """The range that a manifest says of a segment's checkpoints."""
    if not marks:
        return None
    return MarkRange(
        first_sequence=marks[0].sequence,
        last_sequence=marks[-1].sequence,
        first_stamp=marks[0].stamp_ns,
        last_stamp=marks[-1].stamp_ns,
        count=len(marks),
        app_count=sum(mark.body.app for mark in marks),
        tags=[(tag, mark.sequence) for mark in marks for tag in mark.body.tags],
    )


class SegmentRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A segment as a manifest names it."""

    name: str
    kind: int
    epoch: int
    lsn_from: int
    lsn_to: int
    stamp_from: int
    stamp_to: int
    bytes: int
    blake3: str
    level: int = 0
    marks: MarkRange | None = None


class Hold(msgspec.Struct, frozen=True, omit_defaults=True):
    """A checkpoint that stays until somebody releases it, whatever retention and size limits say."""

    checkpoint: str
    """Its id."""
    lsn: int
    since: int
    """Stamp at which it was held."""
    until: int = 0
    """Stamp at which it is released by itself; 0: never."""
    reason: str = ""

    def is_active(self, now_ns: int) -> bool:
        """Whether it holds then."""
        return not self.until or now_ns < self.until


PRESEEDED = -1
"""`MemberState.content` of a copy that did not come from the member itself: it is like no content that the member ever had."""


class MemberState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A member at this repository."""

    uid: str
    kind: str
    name: str
    content: int = 0
    """Rises when the member's content changed unseen: then what is here is seeded anew."""
    ready: list[tuple[int, int | None]] = []
    """Half-open LSN ranges in which the member is recoverable; the last one may be open-ended."""
    seed_position: int | None = None
    """While the member is being seeded: the next byte to fill (volumes; 0 for others)."""
    founding: bool = False
    """It was there from the group's first seed on: no checkpoint is recoverable before it is."""

    @property
    def was_whole(self) -> bool:
        """It is recoverable at some LSN, or was."""
        return any(end is None or begin < end for begin, end in self.ready)

    @property
    def is_ready(self) -> bool:
        """It is recoverable now."""
        return bool(self.ready) and self.ready[-1][1] is None

    def covers(self, lsn: int) -> bool:
        """It is recoverable at a checkpoint of that LSN."""
        return any(begin <= lsn and (end is None or lsn < end) for begin, end in self.ready)

    def joined_by(self, lsn: int) -> bool:
        """It was seeded at least once by that LSN."""
        return bool(self.ready) and self.ready[0][0] <= lsn

    def reseeding(self, from_lsn: int, content: int) -> MemberState:
        """The member once its seed begins (again): not recoverable from `from_lsn` on until that is done."""
        ready = list(self.ready)
        if self.is_ready:
            ready[-1] = (ready[-1][0], max(from_lsn, ready[-1][0]))
        return msgspec.structs.replace(self, ready=ready, seed_position=0, content=content)

    def at_seed_position(self, position: int) -> MemberState:
        """The member once its seed has come that far."""
        return msgspec.structs.replace(self, seed_position=position)

    def seeded(self, lsn: int) -> MemberState:
        """The member once it is seeded: recoverable from `lsn` on."""
        whole = [(begin, end) for begin, end in self.ready if begin != end]
        return msgspec.structs.replace(self, ready=[*whole, (lsn, None)], seed_position=None)

    def preseeded(self, position: int | None) -> MemberState:
        """The member while something like it comes from elsewhere: what is here is to be compared, and never recovered. `position` is
        how far that has come; None: it is all here."""
        return msgspec.structs.replace(self, content=PRESEEDED, ready=[(0, 0)], seed_position=position)


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One commit."""

    format: int
    seq: int
    repository: str
    group: str
    writer: str
    epoch: int
    created: int
    key_id: str
    spec: int
    membership_version: int
    epochs: list[tuple[int, int]]
    cursor: dict[str, int]
    members: dict[str, MemberState]
    """Member ordinal (as text) -> its state."""
    log_from: int = 0
    """From this LSN to the cursor the log is here without a gap."""
    add: list[SegmentRef] = []
    drop: list[str] = []
    complete: bool = False
    dropped: list[tuple[str, int]] = []
    """In a complete manifest: what left earlier and may still lie here, and the stamp at which it left."""
    incarnation: int = 0
    """A tail of an earlier incarnation of the shard tells nothing any more that is not here."""
    tails: bool = False
    """There may be tails (`core/tail.py`): the log goes on behind the cursor."""
    sync_lost: int = 0
    """A sync leg's stamp since when its primary acknowledges without this target; 0: it does not."""
    holds: list[Hold] = []
    """Every checkpoint that is held here."""

    @property
    def key(self) -> str:
        """The object's key below the group's prefix."""
        return manifest_key(self.seq)


class _Envelope(msgspec.Struct):
    body: str
    mac: str


class _Head(msgspec.Struct):
    """What must be known of a manifest of any format to authenticate it."""

    format: int
    seq: int
    group: str
    key_id: str


def manifest_key(seq: int) -> str:
    """Where manifest `seq` lies."""
    return f"m/{seq:016d}"


def is_manifest_key(key: str) -> bool:
    """Whether an object of that key is a manifest."""
    return _KEY.fullmatch(key) is not None


def _mac(data_key: bytes, group_uid: str, body: bytes) -> str:
    key = HKDF(hashes.SHA256(), 32, salt=bytes.fromhex(group_uid), info=b"dpac manifest 1").derive(data_key)
    return blake3.blake3(body, key=key).hexdigest()


def encode_manifest(manifest: Manifest, data_key: bytes) -> bytes:
    """The manifest's bytes, authenticated."""
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Envelope(body.decode(), _mac(data_key, manifest.group, body)))


def manifest_key_id(data: bytes) -> str:
    """The id of the data key that a stored manifest names; Corruption if the bytes are no manifest."""
    return _parse(data)[1].key_id


def decode_manifest(data: bytes, data_key: bytes, group_uid: str) -> Manifest:
    """The manifest; Corruption if it is damaged, forged or another group's."""
    envelope, head = _parse(data)
    if head.group != group_uid or envelope.mac != _mac(data_key, group_uid, envelope.body.encode()):
        raise Corruption(f"Manifest {head.seq} fails its authentication: it is damaged, forged or another group's.")
    if head.format != FORMAT_VERSION:
        raise Unsupported(
            f"The manifest has format {head.format}; this build reads {FORMAT_VERSION}. Use a newer dpac."
        )
    return _decoded(envelope.body, Manifest)


_T = TypeVar("_T")


def _decoded(data: bytes | str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Corruption(f"A manifest cannot be read: {error}.") from None


def _parse(data: bytes) -> tuple[_Envelope, _Head]:
    envelope = _decoded(data, _Envelope)
    return envelope, _decoded(envelope.body, _Head)


class RepositoryState(msgspec.Struct, frozen=True):
    """What all manifests up to `last.seq` add up to. Segments are in LSN order."""

    last: Manifest
    segments: dict[str, SegmentRef]
    dropped: dict[str, int]
    """Objects that no manifest needs any more -> stamp since when; deleted after a grace."""

    @property
    def cursor(self) -> dict[str, int]:
        """Shard uid -> LSN up to which the log is here."""
        return self.last.cursor

    @property
    def members(self) -> dict[int, MemberState]:
        """Member ordinal -> its state here."""
        return {int(ordinal): member for ordinal, member in self.last.members.items()}

    @property
    def stored_bytes(self) -> int:
        """Bytes of all live segments."""
        return sum(ref.bytes for ref in self.segments.values())

    @property
    def recoverable_from(self) -> int | None:
        """No checkpoint before this LSN is recoverable: every founding member must be whole. Where all of them left before they
        ever were, the first of the others that is. None: none is recoverable yet.
        """
        founding = [member.ready for member in self.members.values() if member.founding]
        if not founding:
            return min((member.ready[0][0] for member in self.members.values() if member.ready), default=None)
        return max(ready[0][0] for ready in founding) if all(founding) else None

    def recoverable_members(self, ordinals: Iterable[int], lsn: int) -> set[int] | None:
        """Of the members in a mark, those its checkpoint holds here; None if it is not recoverable here.

        A member joins once it is seeded, and the others do not wait for it, but for the founding ones; a member
        that had joined and is being seeded anew makes a gap.
        """
        held: set[int] = set()
        for ordinal in ordinals:
            member = self.members.get(ordinal)
            if member is None:
                continue
            if member.covers(lsn):
                held.add(ordinal)
            elif member.founding or member.joined_by(lsn):
                return None
        return held or None

    def complete_manifest(self, manifest: Manifest) -> Manifest:
        """`manifest` rewritten so that nothing before it is needed."""
        after = step(self, manifest)
        dropped = [
            (name, since) for name, since in after.dropped.items() if manifest.created - since < FORGET_DROPPED_NS
        ]
        return msgspec.structs.replace(
            manifest, complete=True, add=list(after.segments.values()), drop=[], dropped=dropped
        )


def held_lsns(state: RepositoryState | None, now_ns: int) -> set[int]:
    """LSNs of the checkpoints that are held."""
    return {hold.lsn for hold in state.last.holds if hold.is_active(now_ns)} if state else set()


def step(state: RepositoryState | None, manifest: Manifest) -> RepositoryState:
    """The state after one more manifest. Corruption if its number is not the next."""
    if manifest.complete or (state is None and manifest.seq == 1):
        return RepositoryState(manifest, {ref.name: ref for ref in manifest.add}, dict(manifest.dropped))
    if state is None:
        raise Corruption(f"Manifest {manifest.seq} comes first but is not complete: earlier manifests are missing.")
    if manifest.seq != state.last.seq + 1:
        raise Corruption(f"Manifest {manifest.seq} follows {state.last.seq}: one is missing.")
    segments, dropped = dict(state.segments), dict(state.dropped)
    for name in manifest.drop:
        segments.pop(name, None)
        dropped[name] = manifest.created
    for ref in manifest.add:
        segments[ref.name] = ref
        dropped.pop(ref.name, None)
    return RepositoryState(manifest, segments, dropped)


def fold(manifests: Iterable[Manifest], state: RepositoryState | None = None) -> RepositoryState | None:
    """The state after `manifests`, in order, starting from `state`."""
    for manifest in manifests:
        state = step(state, manifest)
    return state
