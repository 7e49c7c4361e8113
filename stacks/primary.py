"""The program `primary`: the site at which applications run, the targets it copies to, and the groups it protects."""

from __future__ import annotations

import pulumi
from declared import Mistake, declare


def declare_primary() -> None:
    """Declare the targets and groups in the stack's configuration at the site that `dpac:site` names."""
    config = pulumi.Config("dpac")
    groups = config.get_object("groups")
    if not groups:
        raise Mistake("dpac:groups is empty, so nothing would be protected; stacks/README.md shows what it may hold.")
    declare(config.get_object("targets") or {}, groups, site=config.get("site"))
