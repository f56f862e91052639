"""Party 1 of encrypted inference: requests and their events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "inferences",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("result", sa.String(8), nullable=False),
        sa.Column("images", JsonDocument, nullable=False),
        sa.Column("served", JsonDocument, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("cost", JsonDocument, nullable=False),
        sa.Column("deal", sa.String(32)),
        sa.Column("session", sa.String(32)),
        sa.Column("pixels", sa.LargeBinary),
        sa.Column("outcome", sa.LargeBinary),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("finished", UtcDateTime),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("ix_inferences_state", "inferences", ["state", "created"])
    op.create_table(
        "inference_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("inference", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", JsonDocument, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
    )
    op.create_index("ix_inference_events_inference", "inference_events", ["inference"])
    op.create_table(
        "prefetched_deals",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("plan", sa.String(32), nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("served", sa.String, nullable=False),
        sa.Column("deal", sa.String(32)),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("expires", UtcDateTime),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("ix_prefetched_deals_plan", "prefetched_deals", ["plan", "batch", "state"])


def downgrade() -> None:
    op.drop_table("prefetched_deals")
    op.drop_table("inference_events")
    op.drop_table("inferences")
