"""What destinations were found to do (probes), and under which name each has an object."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "probe",
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("place", sa.String(64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
    )
    op.add_column("forward", sa.Column("sent_class", sa.String(64)))
    op.add_column("forward", sa.Column("sent_uid", sa.String(64)))
    op.add_column("forward", sa.Column("sent_syntax", sa.String(64)))
    op.create_index("ix_forward_sent_uid", "forward", ["sent_uid"])
