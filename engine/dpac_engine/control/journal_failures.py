"""That a journal failed, when `state.json` could not be told: read from beside the volumes, and put on record.

Without it a start would replay what the journal held over what the volumes got after it had failed.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from dpac_engine.control.group_state import GroupState, MemberMemory
from dpac_engine.io import journal_failure_note

log = logging.getLogger(__name__)


def take_up(memory: MemberMemory, durable_lsn: int) -> bool:
    """Enter what was noted beside a volume since its state was stored; False if nothing was. Blocks. Raises OSError."""
    failed = journal_failure_note.read(Path(memory.path), memory.uid)
    if failed <= memory.void_incarnation:
        return False
    log.warning("%s went on without its journal, which had failed: nothing is replayed over it", memory.path)
    memory.void_incarnation = failed
    memory.content += 1
    memory.content_lsns[memory.content] = durable_lsn
    return True


def take_up_all(state: GroupState) -> None:
    """`take_up` of every volume that is there; of the others it is done when they are attached. Blocks."""
    for memory in state.members.values():
        if memory.kind == "volume":
            with contextlib.suppress(OSError):
                take_up(memory, state.durable_lsn)


def forget(memory: MemberMemory) -> None:
    """The state that is stored says it. Blocks."""
    if memory.kind == "volume" and memory.void_incarnation:
        journal_failure_note.remove(Path(memory.path), memory.uid)


def forget_all(state: GroupState) -> None:
    """`forget` of every member. Blocks."""
    for memory in state.members.values():
        forget(memory)
