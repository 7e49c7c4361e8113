"""Damage that a verification found: remembered in the catalogue, weighed by recovery, shown as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dpac_api.models import Condition
from dpac_engine.core.damage import EVERY_CHECKPOINT, Finding, Run

RUNS_TOLD = 3
"""Runs of checkpoints that a condition names of an object; the rest is counted."""


def to_catalogue(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """What is remembered of findings: everything but the ranges and paths, which the verification's report has."""
    return [
        {
            "object": found.object,
            "problem": found.problem,
            "runs": [list(run) for run in found.runs],
            "exact": found.exact,
        }
        for found in findings
    ]


def from_catalogue(remembered: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The findings as they were remembered."""
    return [
        Finding(found["object"], found["problem"], [Run(*run) for run in found["runs"]], found["exact"])
        for found in remembered
    ]


def is_hurt(damages: Sequence[Finding], sequence: int) -> bool:
    """Whether the checkpoint of that number needs something damaged."""
    return any(sequence in run for found in damages for run in found.runs)


def checkpoints_told(found: Finding) -> str:
    """The checkpoints that need the object, in words."""
    if not found.runs:
        return "no checkpoint"
    if EVERY_CHECKPOINT in found.runs:
        return "every checkpoint there"
    told = [
        f"{run.first} to {run.last}{' and later ones' if run.last_sequence is None else ''}"
        for run in found.runs[:RUNS_TOLD]
    ]
    more = f" and {len(found.runs) - RUNS_TOLD} more runs" if len(found.runs) > RUNS_TOLD else ""
    return f"{'' if found.exact else 'at most '}{', '.join(told)}{more}"


def condition(subject: str, target: str, damages: Sequence[Finding], since: datetime) -> Condition:
    """What a person should know of a damaged target."""
    first = next((found for found in damages if found.runs), damages[0])
    others = f", and {len(damages) - 1} more objects" if len(damages) > 1 else ""
    return Condition(
        type="TargetDamaged",
        subject=subject,
        message=f"At {target} the object {first.object} is damaged{others}: {first.problem} It is needed by "
        f"{checkpoints_told(first)}. Recover from a checkpoint that is not affected, or from another target; put back a "
        "sound copy of the object if there is one, then run `dpac verify`, which clears this once all is sound.",
        since=since,
        severity="error" if any(found.runs for found in damages) else "warning",
    )
