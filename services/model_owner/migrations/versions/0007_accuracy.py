"""Plans of two accuracies, and how well a plan agrees with its model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# The constraint of the first revision has no name of its own: databases and Alembic give it this.
_NAMES = {"uq": "%(table_name)s_%(column_0_name)s_%(column_1_name)s_%(column_2_name)s_key"}
_OLD, _NEW = "compiled_plans_model_version_result_key", "uq_compiled_plans_kind"


def upgrade() -> None:
    with op.batch_alter_table("compiled_plans", naming_convention=_NAMES) as plans:
        plans.add_column(
            sa.Column("accuracy", sa.String(12), nullable=False, server_default="exact")
        )
        plans.add_column(sa.Column("agreement", JsonDocument))
        plans.drop_constraint(_OLD, type_="unique")
        plans.create_unique_constraint(_NEW, ["model", "version", "result", "accuracy"])
    with op.batch_alter_table("compiled_plans") as plans:
        plans.alter_column("accuracy", existing_type=sa.String(12), server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM compiled_plans WHERE accuracy <> 'exact'")
    with op.batch_alter_table("compiled_plans") as plans:
        plans.drop_constraint(_NEW, type_="unique")
        plans.drop_column("agreement")
        plans.drop_column("accuracy")
        plans.create_unique_constraint(_OLD, ["model", "version", "result"])
