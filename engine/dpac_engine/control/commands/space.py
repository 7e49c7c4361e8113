"""`dpac space`: where a group's space at its targets goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpac_engine.control.commands.session import (
    GroupName,
    Json,
    client,
    console,
    escape,
    moment,
    print_json,
    say,
    size,
    table,
)

if TYPE_CHECKING:
    from dpac_api.models import TargetSpace


def space(group: GroupName, json: Json = False) -> None:
    """Show what a group takes at each target, what is shared, and what can be had back."""
    with client() as site:
        found = site.space(group)
    if json:
        print_json(found)
        return
    if not found:
        say("Nothing of the group lies at a target yet.")
    for target in found:
        _show(target)


def _show(target: TargetSpace) -> None:
    about = "about " if target.estimated else ""
    say(f"{escape(target.target)}: {about}{size(target.stored_bytes)}")
    rows = table("WHAT", "BYTES", "")
    rows.add_row("first copies", size(target.seed_bytes), "")
    for level, count in target.log_bytes.items():
        rows.add_row(f"log, level {level}", size(count), "as sealed" if level == "0" else "joined")
    rows.add_row("older than the history", size(target.merged_bytes), "merged")
    until = f"goes by itself, the last of it {moment(target.dropped_until)}" if target.dropped_until else ""
    rows.add_row("dropped", size(target.dropped_bytes), until)
    rows.add_row("orphans", size(target.orphan_bytes), "dropped by the next compaction" if target.orphan_bytes else "")
    rows.add_row("manifests, keys, tails", size(target.overhead_bytes), "")
    console().print(rows)
    say(
        f"Of what is live, {size(target.unique_bytes)} is needed by one kept checkpoint alone, {size(target.shared_bytes)} is shared."
    )
    say(f"Reclaimable: {size(target.reclaimable_bytes)}, by itself.")
    if target.content_stored_bytes:
        ratio = target.content_bytes / target.content_stored_bytes
        say(f"Compression: {size(target.content_bytes)} take {size(target.content_stored_bytes)} ({ratio:.1f}:1).")
    if target.kept:
        rows = table("CHECKPOINT", "TIME", "STORED", "UNIQUE")
        for kept in target.kept:
            unique = "-" if kept.unique_bytes is None else size(kept.unique_bytes)
            rows.add_row(kept.checkpoint, moment(kept.time), size(kept.stored_bytes), unique)
        console().print(rows)
