"""What verifications found: the damage, and the newest manifest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns."""
    with op.batch_alter_table("verifications") as table:
        table.add_column(sa.Column("manifest", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("damage", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("verifications") as table:
        table.drop_column("damage")
        table.drop_column("manifest")
