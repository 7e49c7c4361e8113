"""What a group remembers on this host beside its spool: `groups/<uid>/state.json`, replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from dpac_api.errors import Corruption
from dpac_api.models import LegSpec


class MemberMemory(msgspec.Struct):
    """A member between two runs."""

    uid: str
    kind: str
    path: str
    start_lsn: int
    """Where its first record may lie."""
    seeded_lsn: int | None = None
    """Directories: the log holds all of it before this LSN."""
    content: int = 0
    """Rises when its content changed unseen, so that every leg seeds it anew."""
    content_began: bool = False
    """It was attached once: a missing file is a loss, not something to create."""
    content_lsns: dict[int, int] = {}
    """What `content` rose to -> where: the log before it does not tell what is after it."""
    void_incarnation: int = 0
    """Records up to this incarnation are not replayed: the journal failed in it, and the file went on without."""
    aside_lsn: int = 0
    """Its records before this LSN are not replayed from the spool: they were set aside (`io/unapplied.py`)."""
    signature: tuple[int, ...] | None = None
    """Volumes: how the file was left by a clean detach (size, mtime, inode, device)."""
    attached: tuple[int, int] | None = None
    """Volumes: (inode, device) of the file that was attached last."""


class Paused(msgspec.Struct, frozen=True):
    """That somebody paused a leg."""

    by: str
    """The name of the token that asked."""
    since_ns: int
    reason: str = ""


class LegMemory(msgspec.Struct):
    """A leg between two runs."""

    cursor: int
    """The log before this LSN is at the target, or not wanted there."""
    target: str = ""
    """Its name; empty if an earlier version remembered it."""
    repository_uid: str = ""
    """What it found, or made, at its target: nothing else is ever written to in its place."""
    lost: bool = False
    """The spool could not wait for it: it must be seeded anew."""
    tracked: bool = False
    """Dirty bitmaps tell what the target lacks of the volumes (`tracking.py`), until it has all of it again."""
    delta: list[int] = []
    """Ordinals whose resync brings what is dirty alone; all else of them is at the target."""
    paused: Paused | None = None
    """Nothing is shipped until somebody resumes it."""
    resync: Literal["compare", "anew"] | None = None
    """Somebody asked for every member to be brought there again, and that has not begun."""
    anew: list[int] = []
    """Ordinals that a resync sends in full: what the target holds of them is not looked at."""
    sync: Literal["in sync", "lost"] | None = None
    """Of a sync leg: what its pledge is, on record before it is acted on; None: it was never in sync."""
    sync_lost: int = 0
    """Stamp since when something may be acknowledged without the target."""


class GroupState(msgspec.Struct):
    """The whole of it."""

    incarnation: int = 0
    sequence: int = 0
    void_from: int = 0
    """See `shared_mark.Held.void_from`."""
    scan_lsn: int = 0
    """Everything before it is in the volumes' files and the directories' indexes, durably."""
    durable_lsn: int = 0
    """Everything before it was durable when this was stored: where it cannot be read, it was damaged since."""
    boot_id: str = ""
    """Of the host's start in which the incarnation began: without a loss of power since, all that was appended is there."""
    scan_incarnation: int = 0
    """The earliest incarnation whose records may lie from `scan_lsn` on; older ones there are stale."""
    stamp: int = 0
    members: dict[int, MemberMemory] = {}
    legs: dict[str, LegMemory] = {}
    epochs: list[tuple[int, int]] = []


def load(path: Path) -> GroupState | None:
    """The remembered state, None for a new group; Corruption if it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=GroupState)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise Corruption(
            f"{path} cannot be read: {error}. Restore the group from a target (`dpac restore`)."
        ) from error


def withdraw(state: GroupState, declared: Mapping[str, LegSpec]) -> list[str]:
    """Forget what the declaration no longer says; the names of the legs that went.

    A leg that leads to another target now is another one. One that is no sync leg any more pledges nothing: what is acknowledged
    without it would make its record untrue.
    """
    gone = [name for name, leg in state.legs.items() if not _is_declared(leg, declared.get(name))]
    for name in gone:
        del state.legs[name]
    for name, leg in state.legs.items():
        if declared[name].mode != "sync":
            leg.sync = None
    return gone


def _is_declared(leg: LegMemory, spec: LegSpec | None) -> bool:
    return spec is not None and leg.target in ("", spec.target)


def encode(state: GroupState) -> bytes:
    """The bytes to store."""
    return msgspec.json.encode(state)


def told(state: GroupState) -> bytes:
    """The state but for what moves all the time and may be stored late: LSNs that only save work, and stamps."""
    legs = {name: msgspec.structs.replace(leg, cursor=0) for name, leg in state.legs.items()}
    return encode(
        msgspec.structs.replace(state, scan_lsn=0, durable_lsn=0, stamp=0, sequence=0, void_from=0, legs=legs)
    )
