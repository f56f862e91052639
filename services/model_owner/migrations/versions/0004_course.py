"""Stopping and selection of runs, and evaluations of several models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, name, kind, default in (
        ("runs", "compared", JsonDocument, "[]"),
        ("runs", "course", JsonDocument, "{}"),
        ("participants", "evaluations", JsonDocument, "{}"),
        ("participants", "stopped", sa.Boolean, sa.false()),
    ):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column(name, kind, nullable=False, server_default=default))
            batch.alter_column(name, server_default=None)


def downgrade() -> None:
    for table, name in (
        ("participants", "stopped"),
        ("participants", "evaluations"),
        ("runs", "course"),
        ("runs", "compared"),
    ):
        with op.batch_alter_table(table) as batch:
            batch.drop_column(name)
