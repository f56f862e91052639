"""Training at this site: runs, rounds, their secrets, work items, events, the agent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _runs()
    _rounds()
    _work_items()
    op.create_table(
        "run_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", JsonDocument, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
    )
    op.create_index("ix_run_events_run", "run_events", ["run"])
    op.create_table("agents", sa.Column("id", sa.String(64), primary_key=True), *_lease())


def _lease() -> list[sa.Column[object]]:
    return [
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    ]


def _runs() -> None:
    op.create_table(
        "run_approvals",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("proposal", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("slot", sa.Integer, unique=True),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("dataset", sa.String(32)),
        sa.Column("dataset_name", sa.String(64)),
        sa.Column("decided_by", sa.String(64)),
        sa.Column("rounds_done", sa.Integer, nullable=False),
        sa.Column("evaluation", JsonDocument),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_detail", sa.String(2000)),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("decided", UtcDateTime),
        sa.Column("ended", UtcDateTime),
    )
    op.create_index("ix_run_approvals_state", "run_approvals", ["state"])


def _rounds() -> None:
    op.create_table(
        "local_rounds",
        sa.Column("run", sa.String(32), sa.ForeignKey("run_approvals.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("phase", sa.String(12), nullable=False),
        sa.Column("report", JsonDocument, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
    )
    op.create_table(
        "round_secrets",
        sa.Column("run", sa.String(32), sa.ForeignKey("run_approvals.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )


def _work_items() -> None:
    op.create_table(
        "work_items",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("path", sa.String(200)),
        sa.Column("answer", sa.Text),
        sa.Column("not_before", UtcDateTime),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("answered", UtcDateTime),
        sa.Column("sent", UtcDateTime),
        *_lease(),
        sa.UniqueConstraint("run", "round", "kind"),
    )
    op.create_index("ix_work_items_run", "work_items", ["run"])
    op.create_index("ix_work_items_state", "work_items", ["state"])


def downgrade() -> None:
    for table in (
        "agents",
        "run_events",
        "work_items",
        "round_secrets",
        "local_rounds",
        "run_approvals",
    ):
        op.drop_table(table)
