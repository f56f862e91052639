"""When to ask once more for a deal ahead."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prefetched_deals", sa.Column("again", UtcDateTime))


def downgrade() -> None:
    with op.batch_alter_table("prefetched_deals") as deals:
        deals.drop_column("again")
