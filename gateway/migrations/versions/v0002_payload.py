"""Patient keys and shredding on instances, what was sent in which form, and the viewable stego objects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("instance", sa.Column("patient_key", sa.String(64)))
    op.add_column("instance", sa.Column("shredded_at", sa.Double()))
    op.create_index("ix_instance_patient_key", "instance", ["patient_key"])
    op.add_column("forward", sa.Column("representation", sa.String(16)))
    op.create_table(
        "stego_export",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("instance_id", BIG, sa.ForeignKey("instance.id"), nullable=False),
        sa.Column("destination", sa.String(64), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("object_id", sa.String(32), nullable=False),
        sa.Column("stego_uid", sa.String(64)),
        sa.Column("record_key", sa.String(128)),
        sa.Column("record_digest", sa.String(64)),
        sa.Column("record_size", sa.BigInteger()),
        sa.Column("wraps", sa.Text(), nullable=False),
        sa.Column("pixel_digest", sa.String(64)),
        sa.Column("digest", sa.String(64)),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("object_id"),
        sa.UniqueConstraint("instance_id", "destination", "mode", name="uq_stego_export"),
    )
    op.create_index("ix_stego_export_uid", "stego_export", ["stego_uid"])
    op.create_index("ix_stego_export_pixels", "stego_export", ["pixel_digest"])
