"""What control asks of repositories, keys and restored trees: the ports that wiring fills and tests replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from dpac_api.models import TargetSpace, TargetSpec
from dpac_engine.control.worker_api import HoldChange
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.damage import Finding, Verification
from dpac_engine.core.difference import FileChange, RangeChange
from dpac_engine.core.image import StoredRun
from dpac_engine.core.manifest import Hold

Progress = Callable[[int, int | None], None]
"""Told the bytes done so far, and how many it will be (None: not known); raises to stop the work."""


class VolumeView(Protocol):
    """A volume at a checkpoint."""

    @property
    def size_bytes(self) -> int:
        """The device's size."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes `[offset, offset + length)`; Corruption if they are not what was written."""

    def extents(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is stored, in order; the rest reads as zeroes."""

    def runs(self) -> Iterator[StoredRun]:
        """All of that as it lies at the target, the newest segment first; no stored block is in two of them."""


class TreeView(Protocol):
    """A directory at a checkpoint."""

    def paths(self) -> list[bytes]:
        """Every path, sorted."""

    def read_entry(self, path: bytes) -> bytes:
        """The encoded entry of a path."""

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """(path, encoded entry), sorted by path."""

    def chunk_place(self, digest: bytes) -> tuple[int, int]:
        """Chunks are read fastest in the order of these."""

    def read_chunk(self, digest: bytes) -> bytes:
        """The content with that hash; Corruption if it is damaged or missing."""

    def runs(self, digests: Sequence[bytes]) -> Iterator[StoredRun]:
        """What is stored of some chunks, in the order of `digests`; the `offset` of a place is the position there."""


class TreeOutcome(NamedTuple):
    """What became of the content of a tree's files, in bytes."""

    written: int
    kept: int
    """Those that lay there from an earlier try."""


class ImageView(Protocol):
    """A group at a checkpoint; members by ordinal. NotFound where a member was not protected yet."""

    def volume(self, ordinal: int) -> VolumeView:
        """The volume."""

    def tree(self, ordinal: int) -> TreeView:
        """The directory."""


@dataclass(frozen=True)
class RangeView:
    """A run of recoverable checkpoints."""

    first: str
    last: str
    first_stamp_ns: int
    last_stamp_ns: int
    count: int
    app_count: int
    tags: list[str]


class MemberView(Protocol):
    """A member as the repository knows it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def kind(self) -> str:
        """`volume` or `directory`."""


@dataclass(frozen=True)
class MarkFilter:
    """Which checkpoints are wanted; None and False mean any."""

    before_sequence: int | None = None
    tag: str | None = None
    app: bool = False
    before_ns: int | None = None
    after_ns: int | None = None
    lsns: frozenset[int] | None = None
    """Only those at these positions."""

    def admits(self, mark: Mark) -> bool:
        """Whether the checkpoint is one of them."""
        return (
            (self.before_sequence is None or mark.sequence < self.before_sequence)
            and (self.tag is None or self.tag in mark.body.tags)
            and (mark.body.app or not self.app)
            and (self.before_ns is None or mark.stamp_ns < self.before_ns)
            and (self.after_ns is None or mark.stamp_ns > self.after_ns)
            and (self.lsns is None or mark.lsn in self.lsns)
        )


class Repository(Protocol):
    """What a target holds of a group, read only. Methods block; they raise Temporary while the target is away."""

    def refresh(self) -> None:
        """Look for what was written since. NotFound if there is no repository."""

    def marks(self, wanted: MarkFilter) -> Iterator[Mark]:
        """Recoverable checkpoints, newest first."""

    def ranges(self) -> Sequence[RangeView]:
        """The checkpoints as runs, oldest first."""

    def resolve(self, selector: str, damages: Sequence[Finding]) -> tuple[Mark, Mark | None]:
        """The newest checkpoint that a selector means and no damage hurts; and the newest that was passed over for that.

        An id means that very checkpoint. Unrecoverable if there is none here.
        """

    def space(self, target: str) -> TargetSpace:
        """Where the group's space there goes. Unrecoverable if there is nothing of it."""

    def holds(self) -> Sequence[Hold]:
        """Every checkpoint that was held here, those whose time is over too."""

    def needs(self, name: str) -> bool:
        """Whether something here needs the object still: compaction has not dropped it."""

    def members_at(self, mark: Mark) -> Mapping[int, MemberView]:
        """Ordinal -> the members that the checkpoint holds here."""

    def image(self, mark: Mark) -> ImageView:
        """The group at a checkpoint."""

    def changed_ranges(self, before: Mark, after: Mark, ordinal: int) -> list[RangeChange]:
        """What differs of a volume between two checkpoints; from indexes."""

    def changed_files(self, before: Mark, after: Mark, ordinal: int) -> list[FileChange]:
        """What differs of a directory between two checkpoints; from indexes and entries."""

    def verify(self, progress: Progress, manifest_before: int = 0) -> Verification:
        """Read and authenticate every object; never refreshed before. `manifest_before`: the newest manifest seen until now.

        Unrecoverable if the target holds nothing of the group.
        """


class Recovery(Protocol):
    """How control reaches what lies at targets. Methods block."""

    def open(self, target: TargetSpec, group_uid: str, shards: int = 1) -> Repository:
        """The group's repository at a target, that of all its shards; cheap, reads nothing yet."""

    def change_hold(self, target: TargetSpec, key: str, key_id: str, change: HoldChange) -> None:
        """Hold or release a shard's checkpoint where nobody else writes. Unrecoverable if it is not there."""

    def purge(self, target: TargetSpec, group_uid: str) -> None:
        """Delete everything the target holds of the group; what is gone already is no error."""

    def locked_until(self, target: TargetSpec, group_uid: str) -> datetime | None:
        """When the last lock ends, about, of what the target has of the group; None if nothing is locked."""

    def probe(self, target: TargetSpec) -> dict[str, str]:
        """Probe -> `ok`, or what is wrong and what to do; tries what replication needs, leaves nothing behind."""

    def restore_tree(self, tree: TreeView, to: Path, progress: Progress, partial: Path | None = None) -> TreeOutcome:
        """Write a directory to the empty or missing folder `to`.

        `partial`: where it is built. It stays if this fails, and a later call goes on with what is sound of it.
        """

    def read_tree(self, tree: TreeView, progress: Progress) -> int:
        """Read all of a directory; returns its bytes. Corruption if any of it is damaged."""

    def check(self, blueprint: str, root: Path) -> dict[str, str]:
        """The blueprint's checks of a recovered directory: check -> `ok`, or what is wrong."""


class Keyring(Protocol):
    """The data keys of this site's groups."""

    def create(self) -> str:
        """Make a data key; returns its key id. Durable when this returns."""

    def escrowed(self, key_id: str) -> bool:
        """Whether somebody confirmed a copy of it outside this host."""


class Signer(Protocol):
    """The site's signing key."""

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519."""

    def sign(self, message: bytes) -> bytes:
        """A raw Ed25519 signature."""
