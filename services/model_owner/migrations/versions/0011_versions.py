"""Studies over several models: the version that the trials of each start from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("versions", JsonDocument, nullable=False, server_default="{}")
    with op.batch_alter_table("studies") as studies:
        studies.add_column(column)
    with op.batch_alter_table("studies") as studies:
        studies.alter_column("versions", existing_type=JsonDocument, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.drop_column("versions")
