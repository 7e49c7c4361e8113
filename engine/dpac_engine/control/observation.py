"""A group's status: what its worker sees, and what only control knows. Observed, never assumed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime

from dpac_api.errors import Corruption, DpacError, NotFound, Temporary
from dpac_api.escrow_keys import fingerprint
from dpac_api.models import Condition, DataState, GroupStatus, LegStatus, MemberStatus, Role, SlaState
from dpac_engine.control import known_damage
from dpac_engine.control.recovery import Keyring
from dpac_engine.control.sharded_status import joined
from dpac_engine.control.timeline import GroupView
from dpac_engine.control.worker_api import WorkerApi
from dpac_engine.core.damage import Finding


async def observe(
    group: GroupView,
    workers: Sequence[WorkerApi],
    keyring: Keyring,
    problem: tuple[DpacError, datetime] | None,
    damages: Mapping[str, Sequence[Finding]],
    now: datetime,
) -> GroupStatus:
    """The worker's status with control's conditions; without the worker, what can be said without it."""
    try:
        status = await worker_status(group, workers)
    except (Temporary, NotFound) as cause:
        status = _unobserved(group, cause, now)
    conditions = [*status.conditions, *await asyncio.to_thread(_own_conditions, group, status, keyring, problem, now)]
    conditions += _damage_conditions(group, damages)
    legs = {
        name: leg.model_copy(update={"last_verified_checkpoint": group.verified[leg.target][1]})
        if leg.target in group.verified and group.verified[leg.target][1]
        else leg
        for name, leg in status.legs.items()
    }
    return status.model_copy(update={"conditions": conditions, "legs": legs})


async def worker_status(group: GroupView, workers: Sequence[WorkerApi]) -> GroupStatus:
    """What the group's workers say of it. Raises what the first of them that cannot be asked raised: all count."""
    for _, worker in group.shards:
        if worker >= len(workers):
            raise Temporary(
                f"Worker {worker} does not run; the backend has {len(workers)}. Start it with more --workers."
            )
    return joined(await asyncio.gather(*(workers[worker].status(key) for key, worker in group.shards)))


def _damage_conditions(group: GroupView, damages: Mapping[str, Sequence[Finding]]) -> list[Condition]:
    legs = {leg.target: f"leg/{name}" for name, leg in group.spec.replication.items()}
    return [
        known_damage.condition(legs.get(target, "group"), target, found, group.verified[target][2])
        for target, found in damages.items()
    ]


def with_crashing(status: GroupStatus, worker: int, last_exit: str, now: datetime) -> GroupStatus:
    """The status of a group whose worker dies again and again."""
    crashing = Condition(
        type="WorkerCrashing",
        subject="group",
        message=f"Worker {worker} keeps dying ({last_exit}); it is started again, with growing pauses. "
        "The backend's log has the reason.",
        since=now,
        severity="error",
    )
    return status.model_copy(update={"conditions": [*status.conditions, crashing]})


def _own_conditions(
    group: GroupView, status: GroupStatus, keyring: Keyring, problem: tuple[DpacError, datetime] | None, now: datetime
) -> list[Condition]:
    found: list[Condition] = []
    if problem is not None:
        error, since = problem
        found.append(
            Condition(type="NotApplied", subject="group", message=error.message, since=since, severity="error")
        )
    try:
        escrowed = keyring.escrowed(group.key_id)
    except (NotFound, Corruption) as error:
        return [
            *found,
            Condition(type="KeyMissing", subject="group", message=error.message, since=now, severity="error"),
        ]
    return [*found, *_escrow_conditions(group, status, escrowed, now)]


def _escrow_conditions(group: GroupView, status: GroupStatus, site_escrowed: bool, now: datetime) -> list[Condition]:
    """Whether the recovery points can be opened if this host is lost, and by whom else than the declaration says."""
    declared = {fingerprint(key) for key in group.spec.encryption.escrow}
    observed = status.observed_generation > 0
    missing = [name for name, leg in status.legs.items() if observed and not declared & set(leg.escrow)]
    found = [
        Condition(
            type="EscrowKeyRemoved",
            subject=f"leg/{name}",
            message=f"Escrow keys that the group does not declare still open what lies at {leg.target}, and what is written "
            f"there from now on ({', '.join(sorted(set(leg.escrow) - declared))}). Declare a new group to shut them out.",
            since=now,
            severity="info",
        )
        for name, leg in status.legs.items()
        if set(leg.escrow) - declared
    ]
    if site_escrowed or (declared and not missing):
        return found
    alone = "The key to the recovery points lies on this host only: if the host is lost, so are they. "
    remedy = (
        f"The declared escrow keys do not open what lies at {', '.join(missing)} yet: they will with the leg's next step."
        if declared
        else "Declare an escrow key (`dpac key generate-escrow`), or run `dpac key export --to FILE`, keep the file elsewhere, "
        "then `dpac key confirm`."
    )
    return [*found, Condition(type="KeyNotEscrowed", subject="group", message=alone + remedy, since=group.created)]


def _workers(group: GroupView) -> str:
    if len(group.shards) == 1:
        return f"Worker {group.worker} does"
    return f"One of the workers {group.worker} to {group.worker + len(group.shards) - 1} does"


def _unobserved(group: GroupView, cause: DpacError, now: datetime) -> GroupStatus:
    """Nothing is known while the worker is away, so nothing good is said."""
    starting = isinstance(cause, NotFound)
    return GroupStatus(
        role=Role.PRIMARY,
        data_state=DataState.DISCONNECTED,
        sla_state=SlaState.RPO_NOT_MET,
        protected=False,
        seeded=False,
        checkpoint_sequence=0,
        head_lsn=0,
        durable_lsn=0,
        spool_bytes=0,
        members={
            name: MemberStatus(kind=spec.kind, state="Starting" if starting else "Detached", seeded=False)
            for name, spec in group.spec.members.items()
        },
        legs={
            name: LegStatus(
                mode=leg.mode,
                target=leg.target,
                data_state=DataState.DISCONNECTED,
                rpo_seconds=leg.rpo.seconds,
                lag_seconds=0,
                lag_bytes=0,
                seeded_fraction=0,
                shipped_lsn=0,
                message="not known while the worker is away",
            )
            for name, leg in group.spec.replication.items()
        },
        conditions=[
            Condition(
                type="WorkerStarting" if starting else "WorkerDown",
                subject="group",
                message=f"{_workers(group)} not serve the group yet."
                if starting
                else f"{_workers(group)} not answer; the supervisor restarts it. {cause.message}",
                since=now,
                severity="warning" if starting else "error",
            )
        ],
        observed_generation=0,
    )
