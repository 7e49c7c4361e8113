"""Proves that a private escrow key opens what lies at a target, with nothing else at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from dpac_api.errors import DpacError, NotFound
from dpac_engine.control.moments import moment
from dpac_engine.control.repositories import group_prefix
from dpac_engine.core.ports import Store
from dpac_engine.io.escrow import PrivateKey
from dpac_engine.io.repository import RepositoryReader
from dpac_engine.io.stores.prefixed import PrefixedStore


@dataclass(frozen=True)
class EscrowCheck:
    """What the key opened of one group."""

    group_uid: str
    group: str | None = None
    """Its name, as the sealed declaration says; None if that did not open."""
    checkpoint: str | None = None
    """The newest that is recoverable there; None if there is none."""
    checkpoint_time: datetime | None = None
    problem: str | None = None
    """Why nothing opened; None: it did."""


def check_escrow(target: Store, key: PrivateKey, group_uid: str | None = None) -> list[EscrowCheck]:
    """What a private key opens at a target, a group each, or of one group. NotFound if nothing of dpac lies there."""
    uids = list(_groups(target)) if group_uid is None else [group_uid]
    if not uids:
        raise NotFound("No group's copies lie there. Name the folder of a target: it holds a folder `g`.")
    return [_check_group(target, key, uid) for uid in uids]


def _groups(target: Store) -> Iterator[str]:
    after = ""
    while name := next(target.list("g/", start_after=after), None):
        uid = name.split("/")[1]
        yield uid
        after = f"g/{uid}0"  # `0` follows `/`: past everything of this group


def _check_group(target: Store, key: PrivateKey, uid: str) -> EscrowCheck:
    store = PrefixedStore(target, group_prefix(uid))
    reader = RepositoryReader(store, uid, key.data_keys(store, uid))
    try:
        reader.refresh()
        declared = reader.spec()
        newest = next(reader.marks(), None)
    except DpacError as error:
        return EscrowCheck(uid, problem=error.message)
    if newest is None:
        return EscrowCheck(uid, declared.name)
    return EscrowCheck(uid, declared.name, newest.id, moment(newest.stamp_ns))
