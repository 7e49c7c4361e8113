"""What a checkpoint holds and how two differ: answered from a target's indexes, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dpac_api.errors import Invalid, NotFound
from dpac_api.models import Change, DifferencePage, FileInfo, FilePage, MemberDifference
from dpac_engine.control.catalogue import utc
from dpac_engine.control.recovery import MemberView, Repository, TreeView
from dpac_engine.control.timeline import GroupView, Timeline
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.difference import FileChange
from dpac_engine.core.entries import ROOT, EntryType, decode_entry
from dpac_engine.core.globs import matching, text_of

_TYPES = {EntryType.FILE: "file", EntryType.DIRECTORY: "directory", EntryType.SYMLINK: "symlink"}
CURSOR = r"^ck-[0-9]+-[0-9]+(\.\.ck-[0-9]+-[0-9]+)?:[0-9]+$"


class _Cursor(NamedTuple):
    checkpoints: list[str]
    begin: int


def _parsed(cursor: str | None) -> _Cursor | None:
    if cursor is None:
        return None
    names, _, begin = cursor.rpartition(":")
    return _Cursor(names.split(".."), int(begin))


def files(
    timeline: Timeline,
    group: GroupView,
    member: str,
    selector: str,
    target: str | None,
    glob: str | None,
    limit: int,
    cursor: str | None,
) -> FilePage:
    """The paths of a directory at a checkpoint; Invalid for a volume, NotFound if the glob means nothing there."""
    found = _parsed(cursor)
    place, mark, _ = timeline.resolve(group, found.checkpoints[0] if found else selector, target)

    def look(repository: Repository) -> FilePage:
        ordinal = held_member(repository.members_at(mark), mark, member, kind="directory")
        tree = repository.image(mark).tree(ordinal)
        paths = [path for path in tree.paths() if path != ROOT]
        if glob is not None:
            paths = matching(paths, [glob])
        begin = found.begin if found else 0
        items = [_info(tree, path) for path in paths[begin : begin + limit]]
        more = f"{mark.id}:{begin + limit}" if begin + limit < len(paths) else None
        return FilePage(checkpoint=mark.id, items=items, next_cursor=more)

    return timeline.ask(group, place, look)


def _info(tree: TreeView, path: bytes) -> FileInfo:
    entry = decode_entry(tree.read_entry(path), tree.read_chunk)
    return FileInfo.model_validate(
        {
            "path": text_of(path),
            "type": _TYPES.get(entry.type, "other"),
            "size_bytes": entry.size,
            "mtime": utc(entry.mtime_ns),
            "mode": entry.mode,
        }
    )


def held_member(held: Mapping[int, MemberView], mark: Mark, name: str, kind: str | None = None) -> int:
    """The ordinal of a member that a checkpoint holds, which must be of that kind."""
    for ordinal, member in held.items():
        if member.name == name:
            if kind is not None and member.kind != kind:
                raise Invalid(
                    f"The member {name!r} is a {member.kind}: it has bytes and no paths. Mount it (`dpac mount`), and look "
                    "into its file system.",
                    property_path="member",
                )
            return ordinal
    there = ", ".join(sorted(member.name for member in held.values())) or "none"
    raise NotFound(f"Checkpoint {mark.id} does not hold the member {name!r} (it holds: {there}).")


def difference(
    timeline: Timeline,
    group: GroupView,
    before: str,
    after: str,
    member: str | None,
    target: str | None,
    limit: int,
    cursor: str | None,
) -> DifferencePage:
    """How two checkpoints at one target differ: member by member in numbers, and a page of what changed."""
    found = _parsed(cursor)
    if found is not None:
        before, after = found.checkpoints[0], found.checkpoints[-1]
    place, newer, _ = timeline.resolve(group, after, target)
    _, older, _ = timeline.resolve(group, before, place)

    def look(repository: Repository) -> DifferencePage:
        was, now = repository.members_at(older), repository.members_at(newer)
        shared = {ordinal: held for ordinal, held in now.items() if ordinal in was and member in (None, held.name)}
        if member is not None and not shared:
            held_member(was, older, member)
            held_member(now, newer, member)
            raise NotFound(f"{older.id} and {newer.id} hold two different members called {member!r}.")
        changes = [
            change for ordinal, held in shared.items() for change in _changes(repository, older, newer, ordinal, held)
        ]
        begin = found.begin if found else 0
        return DifferencePage(
            before=older.id,
            after=newer.id,
            members=[_summed(held, changes) for held in shared.values()],
            items=changes[begin : begin + limit],
            next_cursor=f"{older.id}..{newer.id}:{begin + limit}" if begin + limit < len(changes) else None,
        )

    return timeline.ask(group, place, look)


def _changes(repository: Repository, before: Mark, after: Mark, ordinal: int, member: MemberView) -> list[Change]:
    if member.kind == "volume":
        return [
            Change(member=member.name, what="changed", offset=offset, length=length)
            for offset, length in repository.changed_ranges(before, after, ordinal)
        ]
    return [_file_change(member.name, change) for change in repository.changed_files(before, after, ordinal)]


def _file_change(member: str, change: FileChange) -> Change:
    return Change(
        member=member,
        what="added" if change.size_before is None else "removed" if change.size_after is None else "changed",
        path=text_of(change.path),
        size_before=change.size_before,
        size_after=change.size_after,
    )


def _summed(member: MemberView, changes: list[Change]) -> MemberDifference:
    mine = [change for change in changes if change.member == member.name]
    return MemberDifference(
        member=member.name,
        kind=member.kind,
        added=sum(change.what == "added" for change in mine),
        removed=sum(change.what == "removed" for change in mine),
        changed=sum(change.what == "changed" for change in mine),
        changed_bytes=sum(change.length or 0 for change in mine),
    )
