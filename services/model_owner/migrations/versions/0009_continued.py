"""Studies that go on after they have failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("continued", sa.Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("studies") as studies:
        studies.alter_column("continued", existing_type=sa.Integer, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.drop_column("continued")
