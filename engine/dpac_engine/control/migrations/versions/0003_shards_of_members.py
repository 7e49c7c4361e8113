"""Which shard of its group a member belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column: every group had one shard."""
    with op.batch_alter_table("members") as table:
        table.add_column(sa.Column("shard", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("members") as table:
        table.drop_column("shard")
