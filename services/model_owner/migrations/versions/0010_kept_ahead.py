"""Sessions whose material is kept ahead of images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("expires", UtcDateTime))
        sessions.add_column(
            sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0")
        )
        sessions.add_column(
            sa.Column("stored", sa.Boolean, nullable=False, server_default=sa.false())
        )
        sessions.add_column(sa.Column("offline", sa.String(64)))
    with op.batch_alter_table("sessions") as sessions:
        sessions.alter_column("size_bytes", existing_type=sa.BigInteger, server_default=None)
        sessions.alter_column("stored", existing_type=sa.Boolean, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        for column in ("offline", "stored", "size_bytes", "expires"):
            sessions.drop_column(column)
