"""Programs, and their approval by hash."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "programs",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text),
        sa.Column("owner", sa.String(64)),
        sa.Column("model", sa.String(64)),
        sa.Column("seen", UtcDateTime),
        sa.Column("approved", UtcDateTime),
        sa.Column("approved_by", sa.String(64)),
    )


def downgrade() -> None:
    op.drop_table("programs")
