"""Registered data sets, their manifests, problems and uses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("place", sa.String(4096), nullable=False),
        sa.Column("patient_pattern", sa.String(200)),
        sa.Column("bad_files", sa.String(8), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(1000), nullable=False),
        sa.Column("classes", JsonDocument, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("patients", sa.Integer, nullable=False),
        sa.Column("errors", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64)),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("validated", UtcDateTime),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("ix_datasets_state", "datasets", ["state"])
    op.create_table(
        "dataset_manifests",
        sa.Column(
            "dataset",
            sa.String(32),
            sa.ForeignKey("datasets.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "dataset_uses",
        sa.Column("dataset", sa.String(32), sa.ForeignKey("datasets.id"), primary_key=True),
        sa.Column("user", sa.String(80), primary_key=True),
    )
    op.create_table(
        "dataset_problems",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column(
            "dataset",
            sa.String(32),
            sa.ForeignKey("datasets.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("file", sa.String(1000), nullable=False),
        sa.Column("severity", sa.String(8), nullable=False),
        sa.Column("reason", sa.String(1000), nullable=False),
    )
    op.create_index("ix_dataset_problems_dataset", "dataset_problems", ["dataset"])


def downgrade() -> None:
    for table in ("dataset_problems", "dataset_uses", "dataset_manifests", "datasets"):
        op.drop_table(table)
