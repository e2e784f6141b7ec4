"""Group envelopes: one archive object of several instances, and which of them a row is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("member", sa.Integer()))
    op.create_index("ix_instance_archive_key", "instance", ["archive_key"])
    op.create_index("ix_instance_candidate", "instance", ["candidate_digest"])
