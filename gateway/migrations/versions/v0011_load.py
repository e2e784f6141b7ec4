"""Memory and use of a worker's GPU in its heartbeat; the oldest instance that is not indexed yet, by an index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

NOT_INDEXED = sa.text("indexed_at IS NULL")


def upgrade() -> None:
    for name in ("memory_used", "memory_total", "busy"):
        op.add_column("worker", sa.Column(name, sa.BigInteger()))
    op.drop_index("ix_instance_unindexed", "instance")
    op.create_index(
        "ix_instance_unindexed", "instance", ["received_at", "queued_at"],
        postgresql_where=NOT_INDEXED, sqlite_where=NOT_INDEXED,
    )  # fmt: skip
    # tries of what waits to be coded anew are counted from now on: those were the first coding's
    op.execute("UPDATE instance SET attempts = 0 WHERE recode_at IS NOT NULL AND archived_at IS NOT NULL")
