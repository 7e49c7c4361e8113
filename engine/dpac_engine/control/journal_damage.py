"""A journal that its own disk damaged, met when its group starts.

A loss of power tears the end of a journal, behind what was durable: that end is where it ends. Before what was durable, or while the
host never lost power, a place that cannot be read is damage, and what lies behind it was acknowledged. It is never cut off in silence:
the volumes get every record that is whole, the journal begins anew behind all of them, and every target is copied anew, since
nobody knows what the lost records told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dpac_engine.control.group_state import GroupState
from dpac_engine.core.records import HEADER_BYTES
from dpac_engine.io import salvage, spool
from dpac_engine.io.unapplied import ASIDE, Record, read_aside, set_aside

log = logging.getLogger(__name__)


class Damage(NamedTuple):
    """Where a journal cannot be read, and the whole records behind that."""

    lsn: int
    records: list[Record]

    @property
    def message(self) -> str:
        """For people."""
        return (
            f"The journal is damaged at LSN {self.lsn}. {len(self.records)} whole records lie behind that; acknowledged writes "
            "between may be lost"
        )


def look(folder: Path, state: GroupState, end_lsn: int, shard_tag: int, boot_id: str) -> Damage | None:
    """Whether the journal in the spool `folder`, of which a scan found the end, goes on behind that. Blocks."""
    found = list(salvage.beyond(folder, end_lsn, state.durable_lsn, shard_tag, state.incarnation))
    # Where a journal failed, what a cut append left lies behind its end; that is known, and every target is copied anew already.
    failed = any(member.void_incarnation >= state.incarnation for member in state.members.values())
    newest = not failed and any(record[0].incarnation == state.incarnation for record in found)
    if end_lsn < state.durable_lsn or (newest and boot_id == state.boot_id):
        return Damage(end_lsn, found)
    return None


def begin_anew(
    damage: Damage, folder: Path, state: GroupState, volumes: Iterable[str], records: Sequence[Record]
) -> int:
    """The LSN behind everything, from which the journal goes on; `state` is as it shall be stored then.

    `volumes` are the uids of those among the members, `records` all that is whole since `scan_lsn`: they are set aside, to be brought to
    the volumes before anybody uses these. Blocks. Raises OSError.
    """
    log.error("%s: %s; every target is copied anew", folder, damage.message)
    ordinals = {member.uid: ordinal for ordinal, member in state.members.items()}
    for uid in volumes:
        ordinal = ordinals.get(uid)
        memory = state.members.get(ordinal) if ordinal is not None else None
        if memory is None:
            continue
        mine = [
            record
            for record in records
            if record[0].member == ordinal
            and record[0].incarnation > memory.void_incarnation
            and record[0].next_lsn > memory.aside_lsn
        ]
        aside = folder / "members" / uid / ASIDE
        if mine:
            set_aside(aside, [*read_aside(aside), *mine])
    ends = [record[0].next_lsn for record in damage.records] + [leg.cursor for leg in state.legs.values()]
    head_lsn = (max([damage.lsn, state.durable_lsn, *ends]) // spool.FILE_BYTES + 1) * spool.FILE_BYTES
    state.sequence += (
        head_lsn - state.scan_lsn
    ) // HEADER_BYTES  # what was lost may have been checkpoints: no number is used twice
    state.scan_lsn, state.scan_incarnation, state.durable_lsn = head_lsn, state.incarnation, head_lsn
    for leg in state.legs.values():
        leg.lost, leg.tracked = True, False
    return head_lsn
