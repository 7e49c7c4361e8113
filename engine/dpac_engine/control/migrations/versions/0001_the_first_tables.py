"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from dpac_engine.control.catalogue_schema import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False)


def _json(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=nullable)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, UtcDateTime(), nullable=nullable)


def upgrade() -> None:
    """Create every table."""
    _create_declared()
    _create_observed()
    _create_access()


def _create_declared() -> None:
    op.create_table(
        "targets",
        _text("uid"),
        _text("tenant"),
        _text("name"),
        _json("owner", nullable=True),
        _json("spec"),
        _text("path_real"),
        _number("generation"),
        _text("lifecycle"),
        _moment("created"),
        sa.PrimaryKeyConstraint("uid", name="pk_targets"),
        sa.UniqueConstraint("tenant", "name", name="uq_targets_tenant"),
    )
    op.create_table(
        "groups",
        _text("uid"),
        _text("tenant"),
        _text("name"),
        _json("owner", nullable=True),
        _json("spec"),
        _number("generation"),
        _number("applied_generation"),
        _text("lifecycle"),
        _moment("expires_at", nullable=True),
        _text("shard_uid"),
        _text("key_id"),
        _number("epoch"),
        _number("membership_version"),
        _text("home_site"),
        _text("active_site"),
        _number("worker"),
        _number("ordinal_next"),
        _json("targets_past"),
        _moment("created"),
        sa.PrimaryKeyConstraint("uid", name="pk_groups"),
        sa.UniqueConstraint("tenant", "name", name="uq_groups_tenant"),
    )
    op.create_table(
        "members",
        _text("group_uid"),
        _number("ordinal"),
        _text("uid"),
        _text("name"),
        _text("kind"),
        _text("path"),
        _text("path_real"),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["group_uid"], ["groups.uid"], name="fk_members_group_uid"),
        sa.PrimaryKeyConstraint("group_uid", "ordinal", name="pk_members"),
    )
    op.create_index("ix_members_path_real", "members", ["path_real"])


def _create_observed() -> None:
    op.create_table(
        "operations",
        _text("id"),
        _text("kind"),
        _text("group_uid"),
        _text("group_name"),
        _text("phase"),
        _json("steps"),
        _json("request"),
        _json("result"),
        _text("error", nullable=True),
        _moment("created"),
        _moment("finished", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_operations"),
    )
    for column in ("group_uid", "phase", "created"):
        op.create_index(f"ix_operations_{column}", "operations", [column])
    op.create_table(
        "mounts",
        _text("id"),
        _text("group_uid"),
        _number("worker"),
        _json("mount", nullable=True),
        _moment("created"),
        sa.PrimaryKeyConstraint("id", name="pk_mounts"),
    )
    op.create_index("ix_mounts_group_uid", "mounts", ["group_uid"])
    op.create_table(
        "verifications",
        _text("group_uid"),
        _text("target"),
        _number("sequence"),
        _text("checkpoint"),
        _moment("verified_at"),
        sa.PrimaryKeyConstraint("group_uid", "target", name="pk_verifications"),
    )


def _create_access() -> None:
    op.create_table(
        "tokens",
        _text("id"),
        _text("name"),
        _text("scope"),
        _text("digest"),
        _moment("created"),
        _moment("last_used", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("name", name="uq_tokens_name"),
    )
    op.create_table(
        "request_ids",
        _text("id"),
        _text("fingerprint"),
        _json("answer"),
        _moment("created"),
        sa.PrimaryKeyConstraint("id", name="pk_request_ids"),
    )
    op.create_index("ix_request_ids_created", "request_ids", ["created"])


def downgrade() -> None:
    """Drop every table."""
    for table in ("request_ids", "tokens", "verifications", "mounts", "operations", "members", "groups", "targets"):
        op.drop_table(table)
