"""Party 0 of encrypted inference: what is served, and sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "compiled_plans",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("result", sa.String(8), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("stock", sa.Integer, nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64)),
        sa.Column("document", sa.Text),
        sa.Column("opening_bytes", sa.BigInteger),
        sa.Column("opening_sha256", sa.String(64)),
        sa.Column("created", UtcDateTime, nullable=False),
        *_lease(),
        sa.UniqueConstraint("model", "version", "result"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("plan", sa.String(32), nullable=False),
        sa.Column("node", sa.String(64), nullable=False),
        sa.Column("deal", sa.String(32), nullable=False, unique=True),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("host", sa.String(255)),
        sa.Column("token", sa.LargeBinary),
        sa.Column("largest_body", sa.BigInteger, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("alive_until", UtcDateTime, nullable=False),
        *_lease(),
    )
    op.create_index("ix_sessions_state", "sessions", ["state", "node"])


def _lease() -> list[sa.Column[object]]:
    return [
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    ]


def downgrade() -> None:
    op.drop_table("sessions")
    op.drop_table("compiled_plans")
