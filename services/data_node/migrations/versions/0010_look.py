"""What the images of a data set are like: in colour or not, and how large."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("look", JsonDocument))


def downgrade() -> None:
    with op.batch_alter_table("datasets") as datasets:
        datasets.drop_column("look")
