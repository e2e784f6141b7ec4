"""Audit: events name the patient's pseudonym; what a search needs; cursors of exports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("audit", sa.Column("patient", sa.String(64)))
    op.create_index("ix_audit_actor", "audit", ["actor", "seq"])
    op.create_index("ix_audit_at", "audit", ["at_us"])
    for name, column in (("instance", "instance_id"), ("study", "study"), ("patient", "patient")):
        there = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_audit_{name}", "audit", [column, "seq"], postgresql_where=there, sqlite_where=there)
    op.create_table(
        "audit_subject",
        sa.Column("instance_id", Big, primary_key=True, autoincrement=False),
        sa.Column("study", sa.String(64), nullable=False),
        sa.Column("patient", sa.String(64), nullable=False),
    )
    op.create_index("ix_audit_subject_study", "audit_subject", ["study"])
    op.create_index("ix_audit_subject_patient", "audit_subject", ["patient"])
    op.create_table(
        "audit_state",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
