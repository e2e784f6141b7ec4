"""Study ledger, events for subscribers, corrections and rejections."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _ledger()
    _corrections()
    op.create_index("ix_commitment_item_sop", "commitment_item", ["sop_uid"])


def _ledger() -> None:
    op.create_table(
        "study",
        sa.Column("study_uid", sa.String(64), primary_key=True),
        sa.Column("newest_id", sa.BigInteger(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("announced", sa.Text(), nullable=False),
        sa.Column("checked_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_study_newest", "study", ["newest_id"])
    op.create_index("ix_study_state", "study", ["state", "newest_id"])
    op.create_table(
        "study_evidence",
        sa.Column("id", Big, primary_key=True, autoincrement=True),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("expected", sa.Integer()),
        sa.Column("missing", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_index("ix_study_evidence", "study_evidence", ["study_uid", "kind"])
    op.create_table(
        "study_event",
        sa.Column("id", Big, primary_key=True, autoincrement=True),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("destination", sa.String(64)),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_index("ix_study_event", "study_event", ["study_uid"])
    op.create_table(
        "subscriber",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("reason", sa.String(64)),
    )


def _corrections() -> None:
    op.create_table(
        "correction",
        sa.Column("id", Big, primary_key=True, autoincrement=True),
        sa.Column("study_uid", sa.String(64)),
        sa.Column("patient_id", sa.Text()),
        sa.Column("issuer", sa.Text()),
        sa.Column("changes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("revoked_at", sa.Double()),
        sa.Column("revoked_by", sa.String(64)),
        sa.Column("pending", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_correction_study", "correction", ["study_uid"])
    op.create_index("ix_correction_patient", "correction", ["patient_id"])
    op.create_table(
        "coercion",
        sa.Column("instance_id", Big, sa.ForeignKey("instance.id"), primary_key=True),
        sa.Column("patient_id", sa.Text()),
        sa.Column("applied", sa.Text(), nullable=False),
        sa.Column("original", sa.Text(), nullable=False),
        sa.Column("replacement", sa.Text(), nullable=False),
    )
    op.create_index("ix_coercion_patient", "coercion", ["patient_id"])
    op.add_column("instance", sa.Column("coerced", sa.String(16)))
    op.create_table(
        "rejection",
        sa.Column("id", Big, primary_key=True, autoincrement=True),
        sa.Column("note_id", Big, sa.ForeignKey("instance.id"), nullable=False),
        sa.Column("code", sa.String(16), nullable=False),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.Column("sop_uid", sa.String(64), nullable=False),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double()),
        sa.Column("revoked_by", sa.String(64)),
        sa.UniqueConstraint("note_id", "sop_uid", name="uq_rejection"),
    )
    op.create_index("ix_rejection_sop", "rejection", ["sop_uid", "hidden"])
