"""Care of the archive: cursors of scrub and rebuild, damage, recoding; STAT first among forwards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("instance", sa.Column("recode_at", sa.Double()))
    op.create_index("ix_instance_recode", "instance", ["recode_at"])
    op.add_column("forward", sa.Column("priority", sa.Integer(), nullable=False, server_default="5"))
    op.execute(
        "UPDATE forward SET priority = (SELECT priority FROM instance WHERE instance.id = forward.instance_id) "
        "WHERE state = 'WAITING' OR state = 'DEAD'"
    )
    op.create_index("ix_forward_order", "forward", ["destination", "state", "priority", "id"])
    op.create_table(
        "care",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_table(
        "damage",
        sa.Column("archive_key", sa.String(128), primary_key=True),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("found_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("mended_at", sa.Double()),
        sa.Column("mended_from", sa.String(64)),
    )
    op.create_index("ix_damage_open", "damage", ["mended_at"])
    op.create_table(
        "superseded",
        sa.Column("archive_key", sa.String(128), primary_key=True),
        sa.Column("archive_digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("instance_id", Big, sa.ForeignKey("instance.id"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_index("ix_superseded_instance", "superseded", ["instance_id"])
