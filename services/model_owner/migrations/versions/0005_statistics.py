"""Statistics of a run's sites, and the normalisation of the versions trained with them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("statistics", JsonDocument))
    op.add_column("model_versions", sa.Column("normalisation", JsonDocument))
    with op.batch_alter_table("rounds") as rounds:
        rounds.add_column(
            sa.Column("purpose", sa.String(12), nullable=False, server_default="train")
        )
        rounds.add_column(sa.Column("secure", sa.Boolean))
        rounds.add_column(sa.Column("needed", sa.Integer))
    op.execute(
        "UPDATE rounds SET secure = (SELECT secure FROM runs WHERE runs.id = rounds.run), "
        "needed = (SELECT needed FROM runs WHERE runs.id = rounds.run)"
    )
    with op.batch_alter_table("rounds") as rounds:
        rounds.alter_column("purpose", existing_type=sa.String(12), server_default=None)
        rounds.alter_column("secure", existing_type=sa.Boolean, nullable=False)
        rounds.alter_column("needed", existing_type=sa.Integer, nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("rounds") as rounds:
        for column in ("needed", "secure", "purpose"):
            rounds.drop_column(column)
    op.drop_column("model_versions", "normalisation")
    op.drop_column("runs", "statistics")
