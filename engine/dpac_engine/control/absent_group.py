"""The status of a group that a worker was told to serve and does not: because it is starting, or because it failed."""

from __future__ import annotations

from dpac_api.errors import DpacError
from dpac_api.models import Condition, DataState, GroupStatus, MemberStatus, SlaState
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.moments import moment


def status(assignment: WorkerAssignment, failure: DpacError | None, since_ns: int) -> GroupStatus:
    """Nothing is known of its legs and journal, so nothing is said of them; its members are not served."""
    members = {
        name: MemberStatus(
            kind=spec.kind,
            state="Starting" if failure is None else "Failed",
            seeded=False,
            message="" if failure is None else failure.message,
        )
        for name, spec in assignment.spec.members.items()
        if name in assignment.own_members
    }
    conditions = []
    if failure is not None:
        conditions.append(
            Condition(
                type="GroupFailed",
                subject="group",
                message=f"The group cannot be started: {failure.message}",
                since=moment(since_ns),
                severity="error",
            )
        )
    return GroupStatus(
        data_state=DataState.STALLED,
        sla_state=SlaState.RPO_NOT_MET,
        protected=False,
        seeded=False,
        checkpoint_sequence=0,
        head_lsn=0,
        durable_lsn=0,
        spool_bytes=0,
        members=members,
        legs={},
        conditions=conditions,
        observed_generation=0,
    )
