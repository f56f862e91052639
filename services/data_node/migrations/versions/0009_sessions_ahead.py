"""The model owner's session of a deal ahead, and the share of its result."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prefetched_deals", sa.Column("session", sa.String(32)))
    op.add_column("prefetched_deals", sa.Column("share", sa.LargeBinary))


def downgrade() -> None:
    with op.batch_alter_table("prefetched_deals") as deals:
        deals.drop_column("share")
        deals.drop_column("session")
