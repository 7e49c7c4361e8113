"""Members' identities: an ordinal in the journal's records and a uid, neither ever used twice.

A member is the same one as long as its name, kind and path stay. If its kind or path changes, the
old member is removed and a new one takes its name with a new ordinal: it joins the checkpoints once it is
seeded, and older checkpoints keep the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from dpac_api.models import MemberSpec


class Identity(NamedTuple):
    """A member of the group, present or removed."""

    name: str
    ordinal: int
    uid: str
    kind: str
    path: str


class Membership(NamedTuple):
    """What a new spec makes of the members."""

    kept: list[Identity]
    removed: list[Identity]
    added: list[Identity]

    @property
    def changed(self) -> bool:
        """Whether `membership_version` rises."""
        return bool(self.removed or self.added)


def assign(
    present: Iterable[Identity], wanted: Mapping[str, MemberSpec], ordinal_next: int, new_uid: Callable[[], str]
) -> Membership:
    """Which members stay, go and come, given who is present and what is wanted by name."""
    by_name = {identity.name: identity for identity in present}
    kept = [
        identity
        for name, identity in by_name.items()
        if name in wanted and (wanted[name].kind, wanted[name].path) == (identity.kind, identity.path)
    ]
    staying = {identity.name for identity in kept}
    removed = [identity for name, identity in by_name.items() if name not in staying]
    arriving = sorted(name for name in wanted if name not in staying)
    added = [
        Identity(name, ordinal, new_uid(), wanted[name].kind, wanted[name].path)
        for ordinal, name in enumerate(arriving, start=ordinal_next)
    ]
    return Membership(kept, removed, added)
