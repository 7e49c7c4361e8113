"""What a group at work says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from dpac_api.errors import Conflict, Corruption, Denied, DpacError, Unsupported
from dpac_api.models import (
    Checkpoint,
    Condition,
    Cut,
    DataState,
    GroupStatus,
    JournalSpec,
    LegStatus,
    ShardStatus,
    SlaState,
    TargetTraffic,
)
from dpac_api.quantities import Duration, Size
from dpac_engine.control import leg_orders
from dpac_engine.control.member import Replaced
from dpac_engine.control.moments import moment
from dpac_engine.control.shipper import Shipper
from dpac_engine.control.sync_leg import SyncLeg
from dpac_engine.core import retention
from dpac_engine.core.checkpoints import CutBody, Mark
from dpac_engine.core.ports import TargetMissing
from dpac_engine.core.retention import Shortfall
from dpac_engine.core.sync import Phase

if TYPE_CHECKING:
    from dpac_engine.control.group import Group
    from dpac_engine.control.member import Member

WORST = (
    DataState.CONTINUOUS,
    DataState.BACKLOG,
    DataState.INITIAL_SYNC,
    DataState.DELTA_RESYNC,
    DataState.FULL_RESYNC,
    DataState.PAUSED,
    DataState.DISCONNECTED,
    DataState.BITMAP_TRACKING,
    DataState.STALLED,
)


_TARGET_CONDITIONS: dict[type[DpacError], str] = {
    TargetMissing: "TargetMissing",
    Denied: "TargetDenied",
    Conflict: "TargetConflict",
    Corruption: "TargetDamaged",
    Unsupported: "TargetUnfit",
    DpacError: "TargetUnavailable",
}
"""Why a leg does not ship -> the condition that says so; the first that fits."""


def cut_of(body: CutBody) -> Cut:
    """A member's cut as the API tells it."""
    return Cut(
        kind=body.kind,  # type: ignore[arg-type]
        as_of=moment(body.as_of_ns) if body.as_of_ns else None,
        skew_seconds=body.skew_ns / 1e9 if body.kind == "observed" else None,
    )


def checkpoint_of(mark: Mark, shard_uid: str, names: dict[int, str]) -> Checkpoint:
    """A mark as the API tells it, without what targets have of it."""
    return Checkpoint(
        id=mark.id,
        time=moment(mark.stamp_ns),
        lsn={shard_uid: mark.lsn},
        membership_version=mark.body.membership_version,
        consistency="app" if mark.body.app else "crash",
        tags=mark.body.tags,
        cuts={names[int(ordinal)]: cut_of(cut) for ordinal, cut in mark.body.cuts.items() if int(ordinal) in names},
    )


def of(group: Group) -> GroupStatus:
    """The group's status now."""
    legs = {
        name: _leg(leg, group.sync_legs.get(name), group.traffic(leg.spec.target)) for name, leg in group.legs.items()
    }
    members = {member.name: member.status(_seeded(group, ordinal)) for ordinal, member in group.members.items()}
    for member in group.members.values():
        if members[member.name].seeded:
            member.changed = ""  # every target has it as it is now
    if (
        members
        and all(member.seeded for member in members.values())
        and not any(leg.memory.lost for leg in group.legs.values())
    ):
        group.journal_damage = ""
    seeded = bool(members) and all(member.seeded for member in members.values())
    late = any(leg.lag_seconds > leg.rpo_seconds for leg in legs.values())
    copied = bool(legs) and all(leg.latest_checkpoint is not None or leg.paused for leg in legs.values())
    pledged = all(sync.in_sync for sync in group.sync_legs.values())
    attached = all(member.state == "Attached" for member in members.values())
    return GroupStatus(
        data_state=DataState.STALLED
        if group.journal_error
        else max((leg.data_state for leg in legs.values()), key=WORST.index, default=DataState.CONTINUOUS),
        sla_state=SlaState.RPO_NOT_MET
        if late or group.journal_error
        else SlaState.HISTORY_NOT_MET
        if any(_shortfall(group, leg) for leg in group.legs.values())
        else SlaState.MEETING,
        protected=seeded and copied and attached and pledged and not late and not group.journal_error,
        seeded=seeded,
        checkpoint_sequence=group.state.sequence,
        head_lsn=group.spool.head_lsn,
        durable_lsn=group.spool.durable_lsn,
        spool_bytes=group.spool.stored_bytes,
        members=members,
        legs=legs,
        conditions=list(_conditions(group)),
        flush_wait=group.gate.waits,
        shards=[_shard(group)] if group.assignment.shards > 1 else [],
        observed_generation=group.assignment.generation,
    )


def _shard(group: Group) -> ShardStatus:
    coordinator = group.coordinator
    return ShardStatus(
        shard=group.assignment.shard,
        worker=group.assignment.worker,
        members=sorted(group.assignment.own_members),
        checkpoint_sequence=group.state.sequence,
        hold_wait=group.holding.waits.histogram(),
        holds_expired=group.holding.expired,
        checkpoints_skipped=coordinator.skipped if coordinator else 0,
        skip_reason=coordinator.reason if coordinator else "",
    )


def _shortfall(group: Group, leg: Shipper) -> Shortfall | None:
    """What the target lacks of the history that was asked for, because of what it may take."""
    state, now_ns = leg.repository, group.aging_ns()
    if state is None or now_ns is None:
        return None
    return retention.shortfall(state.segments.values(), group.assignment.journal, now_ns)


def _history_told(leg: Shipper, journal: JournalSpec, found: Shortfall) -> str:
    kept = Duration.of_milliseconds(int(found.kept_seconds) * 1000)
    told = (
        f"Target {leg.spec.target} keeps every checkpoint of the last {kept} only, and {journal.history} were asked for; what is "
        f"older is thinned as the leg's retention says. At the present rate a day of changes takes {_mib(found.day_bytes)} there. "
    )
    if found.fits:
        return f"{told}size_max ({journal.size_max}) is enough for that: the history grows back by itself."
    return (
        f"{told}size_max ({journal.size_max}) is too small for that: raise it to {_mib(found.size_needed_bytes)}, or ask for less "
        "`history`."
    )


def _mib(count: int) -> Size:
    return Size.of_bytes(-(-count // 2**20) * 2**20)


def _seeded(group: Group, ordinal: int) -> bool:
    """The member is whole at every leg, and in a checkpoint there: one made before it was whole does not hold it."""
    return bool(group.legs) and all(
        not leg.memory.lost and ordinal in _held(leg) and leg.members[ordinal].is_ready for leg in group.legs.values()
    )


def _held(leg: Shipper) -> set[int]:
    """The members in the newest checkpoint at the leg's target, by ordinal; none if it is not recoverable there."""
    if leg.repository is None or leg.last_mark is None:
        return set()
    ordinals = (int(ordinal) for ordinal in leg.last_mark.body.cuts)
    return leg.repository.recoverable_members(ordinals, leg.last_mark.lsn) or set()


def _leg(leg: Shipper, sync: SyncLeg | None, traffic: TargetTraffic | None) -> LegStatus:
    state = leg.repository
    there = max(leg.memory.cursor, sync.confirmed_lsn if sync else 0)
    oldest = _oldest_stamp(leg)
    newest = leg.last_mark if _held(leg) else None
    locked_ns = leg.compactor.immutable_until_ns
    return LegStatus(
        mode=leg.spec.mode,
        target=leg.spec.target,
        data_state=leg.data_state,
        rpo_seconds=leg.spec.rpo.seconds,
        lag_seconds=leg.age_seconds(there),
        lag_bytes=max(0, leg.group.spool.head_lsn - there),
        seeded_fraction=leg.seeded_fraction,
        shipped_lsn=leg.memory.cursor,
        latest_checkpoint=newest.id if newest else None,
        latest_checkpoint_time=moment(newest.stamp_ns) if newest else None,
        oldest_checkpoint_time=moment(oldest) if newest and oldest else None,
        stored_bytes=state.stored_bytes if state else 0,
        immutable_until=moment(locked_ns) if locked_ns else None,
        traffic=traffic,
        message=leg.error.message if leg.error else "",
        escrow=leg.escrow,
        paused=leg_orders.status_of(leg.memory),
        in_sync=sync is not None and sync.in_sync,
        sync=sync.status() if sync else None,
    )


def _oldest_stamp(leg: Shipper) -> int | None:
    """Of the checkpoints that are recoverable at the target, as its manifests tell: to the segment."""
    state = leg.repository
    if state is None:
        return None
    first = state.recoverable_from or 0
    stamps = [ref.marks.first_stamp for ref in state.segments.values() if ref.marks and ref.lsn_to > first]
    return min(stamps, default=None)


def _whereabouts(member: Member) -> str:
    path = member.spec.path
    what = "is gone" if member.whereabouts == "missing" else "is another file now"
    return (
        f"{path} {what}; clients go on with the file that was opened, and it is replicated, but when the backend ends it can be "
        f"lost. Move it back to {path} (if it was deleted, restore it: `dpac restore`)."
    )


def key(condition: Condition) -> str:
    """What makes two conditions the same one."""
    return f"{condition.type}/{condition.subject}"


def _conditions(group: Group) -> Iterator[Condition]:
    now = datetime.now(UTC)

    def condition(kind: str, subject: str, message: str, severity: Literal["warning", "error"] = "error") -> Condition:
        since = group.since(f"{kind}/{subject}", now)
        return Condition(type=kind, subject=subject, message=message, since=since, severity=severity)

    if group.journal_error:
        yield condition(
            "JournalFailed",
            "group",
            f"{group.journal_error}. Writes go straight to the volumes and are not protected. Make room on its disk, or "
            "replace it; the group then journals again by itself, and its targets are copied anew.",
        )
    elif group.store_error:
        yield condition(
            "StateNotStored",
            "group",
            f"{group.store_error}. Changes are journalled, but the journal's space cannot be used again. Make room there.",
        )
    if group.journal_damage:
        yield condition(
            "JournalDamaged",
            "group",
            f"{group.journal_damage}. Volumes have every record that could be read, and all targets are copied anew. Look at the disk the "
            "journal lies on; check what the applications have, and go back to a checkpoint if need be.",
        )
    if group.quota.held and not group.journal_error:
        yield condition(
            "SpoolFull",
            "group",
            f"The spool has reached its limit ({group.assignment.journal.spool_max}): clients are slowed to what the "
            "volumes' files take. Use a faster disk for them, or raise `spool_max`.",
            "warning",
        )
    if group.coordinator is not None and group.coordinator.skipping:
        yield condition(
            "CheckpointsSkipped",
            "group",
            f"No checkpoint is taken: {group.coordinator.reason.rstrip('.')}. Writes go on and are shipped; what came since the last "
            "checkpoint is recoverable with the next one. It passes by itself once every shard answers.",
        )
    if group.clock_watch.message:
        yield condition("ClockStepped", "group", group.clock_watch.message, "warning")
    if not group.legs:
        yield condition(
            "NotReplicated",
            "group",
            "The group has no leg: nothing can be recovered. Add one to `replication`.",
            "warning",
        )
    for member in group.members.values():
        if member.error is not None:
            kind = "MemberMissing" if member.error.code == "not_found" else "MemberFailed"
            kind = "MemberReplaced" if isinstance(member.error, Replaced) else kind
            yield condition(kind, f"member/{member.name}", member.error.message)
        if member.whereabouts:
            yield condition(f"Member{member.whereabouts.capitalize()}", f"member/{member.name}", _whereabouts(member))
        if member.changed:
            yield condition(
                "MemberChanged",
                f"member/{member.name}",
                f"{member.changed}. It is copied to every target anew. Stop whatever writes to it: clients of its export may see "
                "data change under them.",
                "warning",
            )
        yield from member.conditions()
        if member.set_aside_bytes:
            yield condition(
                "WritesSetAside",
                f"member/{member.name}",
                f"{member.set_aside_bytes} bytes of acknowledged changes wait on this host for {member.spec.path}: they are brought "
                "to it when it comes back, before anybody may use it. Until then they lie here only.",
                "warning",
            )
    for leg in group.legs.values():
        if (paused := leg_orders.condition(leg, group.assignment.name)) is not None:
            yield paused
        if leg.error is not None:
            kind = next(name for error, name in _TARGET_CONDITIONS.items() if isinstance(leg.error, error))
            yield condition(kind, f"leg/{leg.name}", leg.error.message)
        if leg.damage:
            yield condition(
                "TargetDamaged",
                f"leg/{leg.name}",
                f"The newest checkpoint at target {leg.spec.target} cannot be read: {leg.damage} What changes is shipped all the same. "
                f"Run `dpac verify {group.assignment.name}` to see which checkpoints are whole; a copy at a new target is.",
            )
        elif damaged := leg.compactor.damaged:
            yield condition(
                "TargetDamaged",
                f"leg/{leg.name}",
                f"{len(damaged)} of the segments at target {leg.spec.target} cannot be read, {next(iter(damaged))} among them. They are left as "
                f"they are, and all else is thinned. Run `dpac verify {group.assignment.name}` to see which checkpoints need them; what is put "
                "back from a sound copy of the target is taken up again within minutes.",
            )
        if (found := _shortfall(group, leg)) is not None:
            told = _history_told(leg, group.assignment.journal, found)
            yield condition("HistoryNotMet", f"leg/{leg.name}", told, "warning")
        if behind := _lock_lag_seconds(leg, now):
            yield condition(
                "ImmutabilityBehind",
                f"leg/{leg.name}",
                f"Some of what lies at target {leg.spec.target} is locked for {behind / 3600:.1f} h less than immutable_for "
                f"({leg.spec.retention.immutable_for}) asks. Locks are extended while the target answers: see what else is said "
                "of the leg; it passes by itself after immutable_for was raised.",
                "warning",
            )
        if leg.data_state in (DataState.BITMAP_TRACKING, DataState.DELTA_RESYNC):
            yield condition(
                leg.data_state.value,
                f"leg/{leg.name}",
                f"Target {leg.spec.target} was away, or its leg paused, for longer than the spool could wait. Up to "
                f"{group.tracking.dirty_bytes(leg.name)} bytes changed since and are sent once it is there. Checkpoints from before "
                "stay; there are none of the time between.",
                "warning",
            )
        elif leg.memory.lost or leg.data_state == DataState.FULL_RESYNC:
            yield condition(
                "FullResync",
                f"leg/{leg.name}",
                f"The journal no longer holds all that target {leg.spec.target} lacks, or a member was changed unseen: the group "
                "is copied there anew. Checkpoints from before stay; there are none of the time between.",
                "warning",
            )
    for sync in group.sync_legs.values():
        yield from _sync_conditions(sync)


def _lock_lag_seconds(leg: Shipper, now: datetime) -> float:
    """By how much the first lock to end is shorter than asked for; 0 if it is not, or not known yet."""
    wanted, until_ns = leg.spec.retention.immutable_for, leg.compactor.immutable_until_ns
    if wanted is None or until_ns is None:
        return 0.0
    return min(wanted.seconds, max(0.0, now.timestamp() + wanted.seconds - until_ns / 1e9))


def _sync_conditions(sync: SyncLeg) -> Iterator[Condition]:
    """What became of a sync leg's pledge, since when, and what comes next."""
    match sync.phase:
        case Phase.RECORDING | Phase.ALONE:
            kind, severity = "SyncLost", "warning"
            message = (
                f"The leg is out of sync: {sync.reason or 'it was when its worker started'}. The application goes on "
                "without the target; what is acknowledged now would be lost with this host. The target is caught up with "
                "and the leg is in sync again by itself once the target answers: check it (`dpac target check`)."
            )
        case Phase.HELD:
            kind, severity = "SyncHeld", "error"
            message = (
                f"The leg is out of sync: {sync.reason}. Because of on_loss=stop what waits for the target is held, without "
                "an error, until it answers again. To go on without it, apply the group with on_loss=async, or without the leg."
            )
        case Phase.FENCED:
            kind, severity = "SyncHeld", "error"
            message = (
                f"{sync.reason} What waits for the target is held. If this site shall go on without the target, apply the "
                "group without the leg."
            )
        case _:
            return
    yield Condition(
        type=kind,
        subject=f"leg/{sync.name}",
        message=message,
        since=sync.since,
        severity=severity,  # type: ignore[arg-type]
    )
