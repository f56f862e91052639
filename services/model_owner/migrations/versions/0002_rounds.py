"""Training runs: participants, rounds, contributions, envelopes, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from primia.chassis.db import JsonDocument, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("request", JsonDocument, nullable=False),
        sa.Column("proposal", JsonDocument, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("final_version", sa.Integer),
        sa.Column("secure", sa.Boolean, nullable=False),
        sa.Column("needed", sa.Integer, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("repeats", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("weights", sa.String(255), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("buffers", sa.BigInteger, nullable=False),
        sa.Column("deadline", UtcDateTime),
        sa.Column("cleaned", sa.Boolean, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("ended", UtcDateTime),
        *_lease(),
    )
    op.create_index("ix_runs_state", "runs", ["state"])
    op.create_index("ix_runs_deadline", "runs", ["deadline"])
    op.create_index("ix_runs_created", "runs", ["created"])
    op.create_table(
        "participants",
        sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("engaged", sa.Boolean, nullable=False),
        sa.Column("samples", sa.BigInteger, nullable=False),
        sa.Column("classes", JsonDocument, nullable=False),
        sa.Column("evaluation", JsonDocument),
        sa.Column("failed", sa.String(2000)),
        sa.Column("acknowledged", sa.Boolean, nullable=False),
        sa.Column("answers", JsonDocument, nullable=False),
    )
    op.create_index(
        "one_run_a_node",
        "participants",
        ["node"],
        unique=True,
        sqlite_where=sa.text("engaged"),
        postgresql_where=sa.text("engaged"),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.Column("summed", sa.Integer, nullable=False),
        sa.Column("started", UtcDateTime, nullable=False),
        sa.Column("ended", UtcDateTime),
        *_lease(),
        sa.UniqueConstraint("run", "number"),
    )
    op.create_index("ix_rounds_run", "rounds", ["run"])
    op.create_index("ix_rounds_phase", "rounds", ["phase"])
    op.create_table(
        "contributions",
        sa.Column("round", sa.String(32), sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("dropped", sa.String(2000)),
        sa.Column("report", JsonDocument),
        sa.Column("upload", sa.String(255)),
        sa.Column("confirmation", sa.String(128)),
        sa.Column("reveal", sa.LargeBinary),
        sa.Column("answers", JsonDocument, nullable=False),
        sa.Column("bytes_up", sa.BigInteger, nullable=False),
        sa.Column("bytes_down", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "envelopes",
        sa.Column("round", sa.String(32), sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("dealer", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(64), primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
    )
    op.create_table(
        "run_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer),
        sa.Column("node", sa.String(64)),
        sa.Column("detail", JsonDocument, nullable=False),
    )
    op.create_index("ix_run_events_run", "run_events", ["run"])


def _lease() -> tuple[sa.Column[str], sa.Column[object], sa.Column[int]]:
    return (
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    for table in ("run_events", "envelopes", "contributions", "rounds", "participants", "runs"):
        op.drop_table(table)
