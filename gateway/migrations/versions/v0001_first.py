"""First schema: instances, proofs, attributes, forwards, outbox, alerts, audit trail."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")

SQLITE_APPEND_ONLY = """
CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END
"""
POSTGRESQL_APPEND_ONLY = (
    """
CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$
""",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_append_only()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
)


def _columns(spec: str) -> list[sa.Column[Any]]:
    """Columns from words name:kind[!]; s<n> string, t text, i integer, n bigint, d double, b boolean, ! not null."""
    kinds: dict[str, sa.types.TypeEngine[Any]] = {
        "t": sa.Text(),
        "i": sa.Integer(),
        "n": sa.BigInteger(),
        "d": sa.Double(),
        "b": sa.Boolean(),
    }
    columns: list[sa.Column[Any]] = []
    for word in spec.split():
        name, kind = word.rstrip("!").split(":")
        type_: sa.types.TypeEngine[Any] = sa.String(int(kind[1:])) if kind.startswith("s") else kinds[kind]
        columns.append(sa.Column(name, type_, nullable=not word.endswith("!")))
    return columns


def upgrade() -> None:
    _instance()
    _details()
    _work()
    op.create_table(
        "audit",
        sa.Column("seq", BIG, primary_key=True, autoincrement=False),
        *_columns("at_us:n! event:s32! actor:s64! outcome:s16! instance_id:n study:s64 detail:t! hash:s64!"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(SQLITE_APPEND_ONLY.format(verb=verb))
    else:
        for statement in POSTGRESQL_APPEND_ONLY:
            op.execute(statement)


def _instance() -> None:
    op.create_table(
        "instance",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *_columns(
            """sop_uid:s64! sop_class:s64! study_uid:s64 series_uid:s64 transfer_syntax:s64! digest:s64!
            dataset_digest:s64! pixel_digest:s64 size:n! source:s16! calling_ae:s64! priority:i! received_at:d!
            state:s16! form:s16 reason:s64 attempts:i! lease_owner:s128 lease_until:d due_at:d queued_at:d
            candidate_digest:s64 candidate_size:n envelope_uid:s64 archive_key:s128 archive_digest:s64 archived_size:n
            coder:s32 carrier:s32 payload_bytes:n codec_bytes:n raw_pixel_bytes:n modality:s16 verified_at:d
            archived_at:d released_at:d indexed_at:d current:b! conflict:b! last_error:s64"""
        ),
        sa.UniqueConstraint("digest"),
        sa.UniqueConstraint("transfer_syntax", "dataset_digest", name="uq_instance_dataset"),
    )
    op.create_index("ix_instance_sop", "instance", ["sop_uid", "current"])
    op.create_index("ix_instance_study", "instance", ["study_uid", "series_uid"])
    op.create_index("ix_instance_work", "instance", ["state", "due_at"])
    op.create_index("ix_instance_unindexed", "instance", ["indexed_at", "queued_at"])


def _details() -> None:
    op.create_table(
        "proof",
        sa.Column("instance_id", BIG, sa.ForeignKey("instance.id"), primary_key=True),
        *_columns("facts:t! wraps:t!"),
    )
    op.create_table(
        "attributes",
        sa.Column("instance_id", BIG, sa.ForeignKey("instance.id"), primary_key=True),
        *_columns(
            """study_uid:s64 series_uid:s64 sop_uid:s64 sop_class:s64 patient_name:t patient_name_key:t patient_id:t
            birth_date:t sex:t study_date:t study_time:t accession:t study_id:t study_description:t
            referring_physician:t referring_physician_key:t modality:t series_number:n series_description:t body_part:t
            series_date:t instance_number:n rows:n columns:n bits_allocated:n frames:n metadata:t!"""
        ),
    )
    op.create_index("ix_attributes_study", "attributes", ["study_uid", "series_uid"])
    op.create_index("ix_attributes_patient", "attributes", ["patient_id"])
    op.create_index("ix_attributes_name", "attributes", ["patient_name_key"])
    op.create_index("ix_attributes_date", "attributes", ["study_date"])
    op.create_index("ix_attributes_accession", "attributes", ["accession"])


def _work() -> None:
    op.create_table(
        "forward",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("instance_id", BIG, sa.ForeignKey("instance.id"), nullable=False),
        *_columns(
            """destination:s64! state:s16! attempts:i! lease_owner:s128 lease_until:d due_at:d queued_at:d
            reason:s64 proof:s64 created_at:d! sent_at:d"""
        ),
        sa.UniqueConstraint("instance_id", "destination", name="uq_forward"),
    )
    op.create_index("ix_forward_work", "forward", ["state", "due_at"])
    op.create_table(
        "outbox",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *_columns("task:s64! args:t! queue:s32! priority:i! created_at:d!"),
    )
    op.create_table(
        "alert",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        *_columns(
            """kind:s64! subject:s64! severity:s16! message:s200! count:i! raised_at:d! last_at:d! acked_at:d
            acked_by:s64"""
        ),
    )
    op.create_index("ix_alert_open", "alert", ["acked_at", "kind", "subject"])
