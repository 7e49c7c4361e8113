"""Declared resources from what a backend has: the same rules, after the fact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dpac_api.models import Group, GroupStatus, Operation, Phase, Target
from dpac_policy.declared import DRILL, GROUP, TARGET, Declared

_KEY_CONDITIONS = ("KeyNotEscrowed", "KeyMissing")


def of_site(
    groups: Mapping[str, tuple[Group, GroupStatus]], targets: Iterable[Target], drills: Iterable[Operation]
) -> list[Declared]:
    """Groups with their status, targets, and the drills that passed."""
    found = [_group(group, status) for group, status in groups.values()]
    for target in targets:
        properties = {**target.spec.model_dump(mode="json", exclude_none=True), "name": target.name}
        found.append(Declared(TARGET, target.name, f"target/{target.name}", properties))
    for drill in drills:
        if drill.phase is Phase.SUCCEEDED and drill.result.get("passed") is True:
            proven = {"group": drill.group, "checkpoint_time": drill.result.get("checkpoint_time")}
            found.append(Declared(DRILL, drill.id, f"operation/{drill.id}", proven))
    return found


def _group(group: Group, status: GroupStatus) -> Declared:
    escrowed = not any(condition.type in _KEY_CONDITIONS for condition in status.conditions)
    properties = {
        **group.spec.model_dump(mode="json", exclude_none=True),
        "name": group.name,
        "key_escrowed": escrowed,
    }
    return Declared(GROUP, group.name, f"group/{group.name}", properties)
