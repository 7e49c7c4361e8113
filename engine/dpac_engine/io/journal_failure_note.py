"""A word beside a volume's file that its journal failed, for when the journal's own disk cannot take it.

Once a journal has failed, its volumes go on without it, and nothing of it may be replayed over them. That is on record in `state.json`;
where that disk turned read-only it is said here, on the volume's side, before the first change goes past the journal.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from pathlib import Path

import msgspec

from dpac_engine.io.files import replace_file


class _Note(msgspec.Struct):
    member: str
    incarnation: int


def note_path(volume: Path) -> Path:
    """Where the note of a volume lies."""
    return volume.with_name(f".{volume.name}.dpac-journal-failed")


def leave(volume: Path, member_uid: str, incarnation: int) -> None:
    """Say, durably, that no record of this member up to that incarnation may be replayed. Blocks. Raises OSError; a device has no
    place beside it that outlives the host.
    """
    if not stat.S_ISREG(volume.stat().st_mode):
        raise OSError(errno.EROFS, "it is no file")
    replace_file(note_path(volume), msgspec.json.encode(_Note(member_uid, incarnation)))


def read(volume: Path, member_uid: str) -> int:
    """The incarnation that was said of this member; 0 if none was. Blocks. Raises OSError if that cannot be told."""
    try:
        note = msgspec.json.decode(note_path(volume).read_bytes(), type=_Note)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return 0  # it takes its name whole: what cannot be parsed is none of ours
    return note.incarnation if note.member == member_uid else 0


def remove(volume: Path, member_uid: str) -> None:
    """It is on record elsewhere. Blocks. What cannot be removed says nothing new to a later life."""
    with contextlib.suppress(OSError):
        if read(volume, member_uid):
            note_path(volume).unlink()
