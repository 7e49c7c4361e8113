"""The catalogue's tables. A change here needs a migration in `migrations/versions`; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, ForeignKey, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

TENANT = "default"
"""The only tenant so far; every unique name is unique within its tenant."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back on the way out."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Root of the tables; constraints have names so that migrations can drop them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON(none_as_null=True), list[Any]: JSON(), datetime: UtcDateTime()}  # noqa: RUF012


class TargetRow(Base):
    """A target. `retired`: deleted, but a retained group's recovery points lie there."""

    __tablename__ = "targets"
    __table_args__ = (UniqueConstraint("tenant", "name"),)

    uid: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    owner: Mapped[dict[str, Any] | None]
    spec: Mapped[dict[str, Any]]
    path_real: Mapped[str]
    generation: Mapped[int]
    lifecycle: Mapped[str]  # active | retired
    created: Mapped[datetime]


class GroupRow(Base):
    """A group: what was asked for, its identity, and how far the worker was told of it."""

    __tablename__ = "groups"
    __table_args__ = (UniqueConstraint("tenant", "name"),)

    uid: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    owner: Mapped[dict[str, Any] | None]
    spec: Mapped[dict[str, Any]]
    generation: Mapped[int]  # rises with every change of what is wanted, lifecycle included
    applied_generation: Mapped[int]  # what the worker has last confirmed
    lifecycle: Mapped[str]  # active | retained | purging
    expires_at: Mapped[datetime | None]  # retained by `expire`: when it is purged
    shard_uid: Mapped[str]
    key_id: Mapped[str]
    epoch: Mapped[int]
    membership_version: Mapped[int]
    home_site: Mapped[str]
    active_site: Mapped[str]
    worker: Mapped[int]  # fixed at creation: it is in the members' NBD URIs
    ordinal_next: Mapped[int]
    targets_past: Mapped[list[Any]]  # of removed legs: recovery points may still lie there
    created: Mapped[datetime]
    members: Mapped[list[MemberRow]] = relationship(
        order_by="MemberRow.ordinal", cascade="all, delete-orphan", lazy="selectin"
    )


class MemberRow(Base):
    """A member's identity. Removed ones stay: their ordinals are never used again, and old checkpoints name them."""

    __tablename__ = "members"

    group_uid: Mapped[str] = mapped_column(ForeignKey("groups.uid"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str]
    name: Mapped[str]
    kind: Mapped[str]
    path: Mapped[str]
    path_real: Mapped[str] = mapped_column(index=True)
    removed: Mapped[bool]
    shard: Mapped[int] = mapped_column(default=0, server_default="0")  # for life


class OperationRow(Base):
    """An operation, journalled step by step."""

    __tablename__ = "operations"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    group_uid: Mapped[str] = mapped_column(index=True)
    group_name: Mapped[str]
    phase: Mapped[str] = mapped_column(index=True)
    steps: Mapped[list[Any]]
    request: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any]]
    error: Mapped[str | None]
    created: Mapped[datetime] = mapped_column(index=True)
    finished: Mapped[datetime | None]


class MountRow(Base):
    """A mount; `mount` is null between the decision to mount and the worker's answer."""

    __tablename__ = "mounts"

    id: Mapped[str] = mapped_column(primary_key=True)
    group_uid: Mapped[str] = mapped_column(index=True)
    worker: Mapped[int]
    mount: Mapped[dict[str, Any] | None]
    created: Mapped[datetime]


class VerificationRow(Base):
    """What the last verification of a target's copy of a group found."""

    __tablename__ = "verifications"

    group_uid: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int]  # of the newest checkpoint that was proven readable; 0: none was
    checkpoint: Mapped[str]
    verified_at: Mapped[datetime]
    manifest: Mapped[int] = mapped_column(server_default="0")  # number of the newest one there was
    damage: Mapped[list[Any]] = mapped_column(server_default="[]")  # known_damage.to_catalogue


class TokenRow(Base):
    """A token; of its secret only a digest."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    scope: Mapped[str]
    digest: Mapped[str]
    created: Mapped[datetime]
    last_used: Mapped[datetime | None]


class RequestRow(Base):
    """The answer to a changing request, given again to its retry."""

    __tablename__ = "request_ids"

    id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    answer: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(index=True)
