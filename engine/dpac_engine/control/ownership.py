"""Whose declaration a resource is. An owner is a label, not an access right: it stops two programs from fighting."""

from __future__ import annotations

from dpac_api.errors import Conflict
from dpac_api.models import Owner


def settle(what: str, existing: Owner | None, asked: Owner | None, *, adopt: bool) -> Owner | None:
    """Who owns the existing `what` (`group 'shop'`) after a put by `asked`; None is the CLI, which never takes over.

    Conflict names the present owner, and `adopt`, unless it is the same one.
    """
    if asked is None or asked == existing or adopt:
        return asked or existing
    if existing is None:
        raise Conflict(
            f"The {what} exists already, made by the CLI. Set adopt=True to declare it in {asked} from now on, or choose another name."
        )
    raise Conflict(
        f"The {what} belongs to {existing}. Set adopt=True to take it over to {asked}, refer to it by a get function, "
        "or choose another name."
    )
