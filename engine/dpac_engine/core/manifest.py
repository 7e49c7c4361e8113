"""Manifests: the sole commits of a repository, and the state they add up to (docs/journal-format.md)."""

from __future__ import annotations

from collections.abc import Iterable

import blake3
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dpac_api.errors import Corruption, Unsupported

FORMAT_VERSION = 1
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


class MemberState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A member at this repository. `ready_lsn` None: still being seeded, `seed_position` says how far."""

    uid: str
    kind: str
    name: str
    ready_lsn: int | None = None
    seed_position: int = 0
    """Next byte to fill for a volume that is being seeded."""
    founding: bool = False
    """It was there at the repository's first seed: no checkpoint is recoverable before it is ready."""


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
    add: list[SegmentRef] = []
    drop: list[str] = []
    complete: bool = False

    @property
    def key(self) -> str:
        """The object's key below the group's prefix."""
        return manifest_key(self.seq)


class _Envelope(msgspec.Struct):
    body: str
    mac: str


def manifest_key(seq: int) -> str:
    """Where manifest `seq` lies."""
    return f"m/{seq:016d}"


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
    envelope, manifest = _parse(data)
    if manifest.group != group_uid or envelope.mac != _mac(data_key, group_uid, envelope.body.encode()):
        raise Corruption(f"Manifest {manifest.seq} fails its authentication: it is damaged, forged or another group's.")
    return manifest


def _parse(data: bytes) -> tuple[_Envelope, Manifest]:
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        manifest = msgspec.json.decode(envelope.body, type=Manifest)
    except msgspec.MsgspecError as error:
        raise Corruption(f"A manifest cannot be read: {error}.") from None
    if manifest.format != FORMAT_VERSION:
        raise Unsupported(
            f"The manifest has format {manifest.format}; this build reads {FORMAT_VERSION}. Use a newer dpac."
        )
    return envelope, manifest


class RepositoryState(msgspec.Struct, frozen=True):
    """What all manifests up to `last.seq` add up to. Segments are in LSN order."""

    last: Manifest
    segments: dict[str, SegmentRef]

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
    def recoverable_from_lsn(self) -> int | None:
        """The least LSN at which a checkpoint is recoverable here; None while the founding members are being seeded."""
        ready = [member.ready_lsn for member in self.members.values() if member.founding]
        if None in ready:
            return None
        return max((lsn for lsn in ready if lsn is not None), default=0)

    def complete_manifest(self, manifest: Manifest) -> Manifest:
        """`manifest` rewritten so that nothing before it is needed."""
        after = step(self, manifest)
        return msgspec.structs.replace(manifest, complete=True, add=list(after.segments.values()), drop=[])


def step(state: RepositoryState | None, manifest: Manifest) -> RepositoryState:
    """The state after one more manifest. Corruption if its number is not the next."""
    if manifest.complete:
        return RepositoryState(manifest, {ref.name: ref for ref in manifest.add})
    if state is None:
        if manifest.seq != 1:
            raise Corruption(f"Manifest {manifest.seq} comes first but is not complete: earlier manifests are missing.")
        return RepositoryState(manifest, {ref.name: ref for ref in manifest.add})
    if manifest.seq != state.last.seq + 1:
        raise Corruption(f"Manifest {manifest.seq} follows {state.last.seq}: one is missing.")
    segments = dict(state.segments)
    for name in manifest.drop:
        segments.pop(name, None)
    for ref in manifest.add:
        segments[ref.name] = ref
    return RepositoryState(manifest, segments)


def fold(manifests: Iterable[Manifest], state: RepositoryState | None = None) -> RepositoryState | None:
    """The state after `manifests`, in order, starting from `state`."""
    for manifest in manifests:
        state = step(state, manifest)
    return state
