"""Rounds that measure."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("local_rounds") as rounds:
        rounds.add_column(sa.Column("kind", sa.String(12), nullable=False, server_default="train"))
    with op.batch_alter_table("local_rounds") as rounds:
        rounds.alter_column("kind", existing_type=sa.String(12), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("local_rounds") as rounds:
        rounds.drop_column("kind")
