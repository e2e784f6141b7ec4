"""Storage commitment, asked of us and by us."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "commitment",
        sa.Column("id", Big, primary_key=True, autoincrement=True),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_until", sa.Double()),
        sa.Column("reason", sa.String(64)),
        sa.Column("done_at", sa.Double()),
        sa.UniqueConstraint("role", "peer", "transaction_uid", name="uq_commitment"),
    )
    op.create_index("ix_commitment_work", "commitment", ["role", "state", "due_at"])
    op.create_table(
        "commitment_item",
        sa.Column("id", Big, primary_key=True, autoincrement=True),
        sa.Column("commitment_id", Big, sa.ForeignKey("commitment.id"), nullable=False),
        sa.Column("sop_class", sa.String(64), nullable=False),
        sa.Column("sop_uid", sa.String(64), nullable=False),
        sa.Column("forward_id", Big, sa.ForeignKey("forward.id")),
        sa.Column("outcome", sa.Integer()),
    )
    op.create_index("ix_commitment_item", "commitment_item", ["commitment_id", "outcome"])
    op.add_column("forward", sa.Column("commit_due_at", sa.Double()))
    op.add_column("forward", sa.Column("commit_attempts", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_forward_commit", "forward", ["commit_due_at"])
