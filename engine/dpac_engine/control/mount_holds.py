"""What open mounts hold at their targets: segments that they read stay there, however long ago compaction dropped them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dpac_api.errors import Corruption
from dpac_engine.core.manifest import MemberState, SegmentRef
from dpac_engine.io.files import replace_file

_FILE = "held.json"


class Hold(msgspec.Struct, frozen=True):
    """`mounts/<id>/held.json`: all that is needed to open the mount again, without looking for its checkpoint."""

    group_uid: str
    lsn: int
    segments: list[SegmentRef]
    members: dict[int, MemberState]
    others: list[Hold] = []
    """The same of the other shards, if the group has several; `group_uid` is the shard's key then."""


def hold(folder: Path, held: Hold) -> None:
    """Hold it, durably, for the mount in that folder."""
    replace_file(folder / _FILE, msgspec.json.encode(held))


def let_go(folder: Path) -> None:
    """The mount needs nothing of its target any more."""
    (folder / _FILE).unlink(missing_ok=True)


def read_hold(folder: Path) -> Hold | None:
    """What the mount holds; None if nothing. Corruption if that cannot be read."""
    path = folder / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Hold)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError) as error:
        raise Corruption(f"{path} cannot be read ({error}). Unmount {folder.name}.") from error


def held_segments(mounts: Path, key: str) -> frozenset[str]:
    """Names of the segments that mounts of a group, or of one of its shards, hold. Corruption if that cannot be told: then nothing may be deleted."""
    held = (read_hold(path.parent) for path in mounts.glob(f"*/{_FILE}"))
    shards = (shard for one in held if one for shard in (one, *one.others))
    return frozenset(ref.name for shard in shards if shard.group_uid == key for ref in shard.segments)
