"""The privacy ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "privacy_charges",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("dataset", sa.String(32), nullable=False),
        sa.Column("dataset_name", sa.String(64), nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("noise_multiplier", sa.Float),
        sa.Column("sample_rate", sa.Float),
        sa.Column("steps", sa.Integer),
    )
    op.create_index("ix_privacy_charges_owner", "privacy_charges", ["owner"])
    op.create_index("ix_privacy_charges_dataset", "privacy_charges", ["dataset"])


def downgrade() -> None:
    op.drop_table("privacy_charges")
