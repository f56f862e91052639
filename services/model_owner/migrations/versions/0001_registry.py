"""Models, their versions, and the nodes' last visits."""

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
        "models",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("spec", JsonDocument, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(64), sa.ForeignKey("models.name"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("source", sa.String(12), nullable=False),
        sa.Column("parent", sa.Integer),
        sa.Column("run", sa.String(32)),
        sa.Column("image_size", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64)),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("parameters", sa.BigInteger),
        sa.Column("buffers", sa.BigInteger),
        sa.Column("metrics", JsonDocument),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.UniqueConstraint("model", "version"),
        sa.UniqueConstraint("run"),
    )
    op.create_index("ix_model_versions_model", "model_versions", ["model"])
    op.create_index("ix_model_versions_state", "model_versions", ["state"])
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("seen", UtcDateTime, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("nodes")
    op.drop_table("model_versions")
    op.drop_table("models")
