"""Sums of figures: what sites add to them, and what they gave."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("evaluation", JsonDocument))
    op.add_column("rounds", sa.Column("figures", JsonDocument))
    with op.batch_alter_table("participants") as participants:
        participants.add_column(
            sa.Column("sums", JsonDocument, nullable=False, server_default="{}")
        )
    with op.batch_alter_table("participants") as participants:
        participants.alter_column("sums", existing_type=JsonDocument, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("participants") as participants:
        participants.drop_column("sums")
    op.drop_column("rounds", "figures")
    op.drop_column("runs", "evaluation")
