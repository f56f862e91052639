"""Searches for hyperparameters and their trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument, UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("state", sa.String(12), nullable=False, index=True),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("request", JsonDocument, nullable=False),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False, index=True),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("ended", UtcDateTime),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_table(
        "trials",
        sa.Column("study", sa.String(32), sa.ForeignKey("studies.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("parameters", JsonDocument, nullable=False),
        sa.Column("value", sa.Float),
        sa.Column("reports", JsonDocument, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("trials")
    op.drop_table("studies")
