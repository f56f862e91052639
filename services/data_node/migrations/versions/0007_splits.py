"""One split of each data set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("validation_fraction", sa.Float))
    op.add_column("datasets", sa.Column("test_fraction", sa.Float))


def downgrade() -> None:
    with op.batch_alter_table("datasets") as datasets:
        datasets.drop_column("test_fraction")
        datasets.drop_column("validation_fraction")
