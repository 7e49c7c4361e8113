"""Whose declaration a target or a group is: an owner is a label, and changes hands only when somebody says so.

`written_by` in a resource's outputs is the owner that this stack last wrote. While the backend still names that one, an
update may rewrite it, so a renamed stack or project heals. If it names another, somebody adopted it.
"""

from __future__ import annotations

from dpac_api.errors import Conflict
from dpac_api.models import Group, Target
from dpac_provider.values import Properties

WRITTEN_BY = "written_by"


def may_rewrite(live: Group | Target, old: Properties, wanted_owner: str | None) -> bool:
    """Whether an update may put its own owner without `adopt`."""
    return live.owner is None or str(live.owner) in (old.get(WRITTEN_BY), wanted_owner)


def require_ours(live: Group | Target, old: Properties, what: str) -> None:
    """Raise `Conflict` before a delete if another owner has taken it over since."""
    if live.owner is not None and str(live.owner) != old.get(WRITTEN_BY):
        raise Conflict(
            f"{what} {live.name!r} now belongs to {live.owner}, so this stack does not delete it. "
            "Take it out of this stack's state: `pulumi state delete URN`.",
            property_path="owner",
        )
