"""Deals that a node keeps ahead of any image."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deals") as deals:
        deals.add_column(sa.Column("ahead", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("deals") as deals:
        deals.alter_column("ahead", existing_type=sa.Boolean, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("deals") as deals:
        deals.drop_column("ahead")
