"""The dealer's plans and deals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("stock", sa.Integer, nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("seed", sa.LargeBinary, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
    )
    op.create_table(
        "deals",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("plan", sa.String(32), sa.ForeignKey("plans.id"), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("node", sa.String(64)),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("bytes0", sa.BigInteger, nullable=False),
        sa.Column("bytes1", sa.BigInteger, nullable=False),
        sa.Column("sha_p0", sa.String(64)),
        sa.Column("sha_p1", sa.String(64)),
        sa.Column("sha_common", sa.String(64)),
        sa.Column("start0", sa.BigInteger),
        sa.Column("start1", sa.BigInteger),
        sa.Column("received0", sa.Boolean, nullable=False),
        sa.Column("received1", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("expires", UtcDateTime),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("ix_deals_stock", "deals", ["plan", "batch", "state"])
    op.create_index("ix_deals_node", "deals", ["node", "state"])


def downgrade() -> None:
    op.drop_table("deals")
    op.drop_table("plans")
