"""The tables of the system of record. Times are seconds since the epoch, UTC, as doubles; digests are SHA-256 in hex.

Patient data lives in `attributes`, `correction` and `coercion` only. `audit` is append-only: triggers refuse UPDATE and
DELETE (see the migration).
The migrations build these tables; a test compares both.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

HEAD: Final = "0011"
"""Revision that this code needs."""

metadata = MetaData()

Big = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in INTEGER PRIMARY KEY columns


def _partial(name: str, *columns: str, where: str, sqlite: str | None = None) -> Index:
    """An index over the few rows that a question is about; the question must say `where` in the same words."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(sqlite or where))


instance = Table(
    "instance",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("sop_uid", String(64), nullable=False),
    Column("sop_class", String(64), nullable=False),
    Column("study_uid", String(64)),
    Column("series_uid", String(64)),
    Column("transfer_syntax", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("dataset_digest", String(64), nullable=False),
    Column("pixel_digest", String(64)),
    Column("size", BigInteger, nullable=False),
    Column("source", String(16), nullable=False),
    Column("calling_ae", String(64), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("form", String(16)),
    Column("reason", String(64)),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", String(128)),
    Column("lease_until", Double),
    Column("due_at", Double),
    Column("queued_at", Double),
    Column("candidate_digest", String(64)),
    Column("candidate_size", BigInteger),
    Column("envelope_uid", String(64)),
    Column("archive_key", String(128)),
    Column("archive_digest", String(64)),
    Column("archived_size", BigInteger),
    Column("coder", String(32)),
    Column("carrier", String(32)),
    Column("payload_bytes", BigInteger),
    Column("codec_bytes", BigInteger),
    Column("raw_pixel_bytes", BigInteger),
    Column("modality", String(16)),
    Column("verified_at", Double),
    Column("archived_at", Double),
    Column("released_at", Double),
    Column("indexed_at", Double),
    Column("current", Boolean, nullable=False),
    Column("conflict", Boolean, nullable=False),
    Column("last_error", String(64)),
    Column("patient_key", String(64)),
    Column("shredded_at", Double),
    Column("member", Integer),
    Column("coerced", String(16)),
    Column("recode_at", Double),
    Column("accession_pseudonym", String(16)),
    UniqueConstraint("transfer_syntax", "dataset_digest", name="uq_instance_dataset"),
    Index("ix_instance_sop", "sop_uid", "current"),
    Index("ix_instance_study", "study_uid", "series_uid"),
    Index("ix_instance_work", "state", "due_at"),
    _partial("ix_instance_unindexed", "received_at", "queued_at", where="indexed_at IS NULL"),
    Index("ix_instance_patient_key", "patient_key"),
    Index("ix_instance_archive_key", "archive_key"),
    Index("ix_instance_candidate", "candidate_digest"),
    Index("ix_instance_accession", "accession_pseudonym"),
    Index("ix_instance_state", "state", "id"),
    Index("ix_instance_archived", "archived_at"),
    _partial("ix_instance_waiting", "priority", "received_at", where="due_at IS NOT NULL"),
    _partial("ix_instance_leased", "lease_until", where="lease_until IS NOT NULL"),
    _partial("ix_instance_failed", "last_error", "id", where="last_error IS NOT NULL"),
    _partial("ix_instance_passed", "reason", "id", where="form = 'PASSTHROUGH'"),
    _partial("ix_instance_conflict", "id", where="conflict", sqlite="conflict = 1"),
    Index("ix_instance_recode", "recode_at"),
)

proof = Table(
    "proof",
    metadata,
    Column("instance_id", Big, ForeignKey("instance.id"), primary_key=True),
    Column("facts", Text, nullable=False),
    Column("wraps", Text, nullable=False),
)

attributes = Table(
    "attributes",
    metadata,
    Column("instance_id", Big, ForeignKey("instance.id"), primary_key=True),
    Column("study_uid", String(64)),
    Column("series_uid", String(64)),
    Column("sop_uid", String(64)),
    Column("sop_class", String(64)),
    Column("patient_name", Text),
    Column("patient_name_key", Text),
    Column("patient_id", Text),
    Column("birth_date", Text),
    Column("sex", Text),
    Column("study_date", Text),
    Column("study_time", Text),
    Column("accession", Text),
    Column("study_id", Text),
    Column("study_description", Text),
    Column("referring_physician", Text),
    Column("referring_physician_key", Text),
    Column("modality", Text),
    Column("series_number", BigInteger),
    Column("series_description", Text),
    Column("body_part", Text),
    Column("series_date", Text),
    Column("instance_number", BigInteger),
    Column("rows", BigInteger),
    Column("columns", BigInteger),
    Column("bits_allocated", BigInteger),
    Column("frames", BigInteger),
    Column("metadata", Text, nullable=False),
    Index("ix_attributes_study", "study_uid", "series_uid"),
    Index("ix_attributes_patient", "patient_id"),
    Index("ix_attributes_name", "patient_name_key"),
    Index("ix_attributes_date", "study_date"),
    Index("ix_attributes_accession", "accession"),
)

forward = Table(
    "forward",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("instance_id", Big, ForeignKey("instance.id"), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", String(128)),
    Column("lease_until", Double),
    Column("due_at", Double),
    Column("queued_at", Double),
    Column("reason", String(64)),
    Column("proof", String(64)),
    Column("created_at", Double, nullable=False),
    Column("sent_at", Double),
    Column("representation", String(16)),
    Column("sent_class", String(64)),
    Column("sent_uid", String(64)),
    Column("sent_syntax", String(64)),
    Column("commit_due_at", Double),
    Column("commit_attempts", Integer, nullable=False, server_default="0"),
    Column("priority", Integer, nullable=False, server_default="5"),
    UniqueConstraint("instance_id", "destination", name="uq_forward"),
    Index("ix_forward_work", "state", "due_at"),
    Index("ix_forward_sent_uid", "sent_uid"),
    Index("ix_forward_commit", "commit_due_at"),
    _partial("ix_forward_dead", "destination", "reason", "id", where="state = 'DEAD'"),
    _partial("ix_forward_buried", "id", where="state = 'DEAD'"),
    _partial("ix_forward_waiting", "destination", "created_at", where="due_at IS NOT NULL"),
    _partial("ix_forward_leased", "lease_until", where="lease_until IS NOT NULL"),
    Index("ix_forward_order", "destination", "state", "priority", "id"),
)

commitment = Table(
    "commitment",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("role", String(8), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("transaction_uid", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("due_at", Double),
    Column("lease_owner", String(128)),
    Column("lease_until", Double),
    Column("reason", String(64)),
    Column("done_at", Double),
    UniqueConstraint("role", "peer", "transaction_uid", name="uq_commitment"),
    Index("ix_commitment_work", "role", "state", "due_at"),
)

commitment_item = Table(
    "commitment_item",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("commitment_id", Big, ForeignKey("commitment.id"), nullable=False),
    Column("sop_class", String(64), nullable=False),
    Column("sop_uid", String(64), nullable=False),
    Column("forward_id", Big, ForeignKey("forward.id")),
    Column("outcome", Integer),
    Index("ix_commitment_item", "commitment_id", "outcome"),
    Index("ix_commitment_item_sop", "sop_uid"),
)

probe = Table(
    "probe",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("place", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("result", Text, nullable=False),
)

stego_export = Table(
    "stego_export",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("instance_id", Big, ForeignKey("instance.id"), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("object_id", String(32), nullable=False, unique=True),
    Column("stego_uid", String(64)),
    Column("record_key", String(128)),
    Column("record_digest", String(64)),
    Column("record_size", BigInteger),
    Column("wraps", Text, nullable=False),
    Column("pixel_digest", String(64)),
    Column("digest", String(64)),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("instance_id", "destination", "mode", name="uq_stego_export"),
    Index("ix_stego_export_uid", "stego_uid"),
    Index("ix_stego_export_pixels", "pixel_digest"),
)

study = Table(
    "study",
    metadata,
    Column("study_uid", String(64), primary_key=True),
    Column("newest_id", BigInteger, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("announced", Text, nullable=False),
    Column("checked_at", Double, nullable=False),
    Index("ix_study_newest", "newest_id"),
    Index("ix_study_state", "state", "newest_id"),
)

study_evidence = Table(
    "study_evidence",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("study_uid", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("source", String(64), nullable=False),
    Column("expected", Integer),
    Column("missing", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_study_evidence", "study_uid", "kind"),
)

study_event = Table(
    "study_event",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("study_uid", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("destination", String(64)),
    Column("count", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_study_event", "study_uid"),
)

subscriber = Table(
    "subscriber",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("last_event", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("reason", String(64)),
)

correction = Table(
    "correction",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("study_uid", String(64)),
    Column("patient_id", Text),
    Column("issuer", Text),
    Column("changes", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("revoked_at", Double),
    Column("revoked_by", String(64)),
    Column("pending", Boolean, nullable=False),
    Index("ix_correction_study", "study_uid"),
    Index("ix_correction_patient", "patient_id"),
)

coercion = Table(
    "coercion",
    metadata,
    Column("instance_id", Big, ForeignKey("instance.id"), primary_key=True),
    Column("patient_id", Text),
    Column("applied", Text, nullable=False),
    Column("original", Text, nullable=False),
    Column("replacement", Text, nullable=False),
    Index("ix_coercion_patient", "patient_id"),
)

rejection = Table(
    "rejection",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("note_id", Big, ForeignKey("instance.id"), nullable=False),
    Column("code", String(16), nullable=False),
    Column("study_uid", String(64), nullable=False),
    Column("sop_uid", String(64), nullable=False),
    Column("hidden", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("revoked_by", String(64)),
    UniqueConstraint("note_id", "sop_uid", name="uq_rejection"),
    Index("ix_rejection_sop", "sop_uid", "hidden"),
)

care = Table(
    "care",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
    Column("at", Double, nullable=False),
)

damage = Table(
    "damage",
    metadata,
    Column("archive_key", String(128), primary_key=True),
    Column("reason", String(64), nullable=False),
    Column("found_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("mended_at", Double),
    Column("mended_from", String(64)),
    Index("ix_damage_open", "mended_at"),
)

superseded = Table(
    "superseded",
    metadata,
    Column("archive_key", String(128), primary_key=True),
    Column("archive_digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("instance_id", Big, ForeignKey("instance.id"), nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_superseded_instance", "instance_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("task", String(64), nullable=False),
    Column("args", Text, nullable=False),
    Column("queue", String(32), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

alert = Table(
    "alert",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("kind", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("message", String(200), nullable=False),
    Column("count", Integer, nullable=False),
    Column("raised_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("acked_at", Double),
    Column("acked_by", String(64)),
    Index("ix_alert_open", "acked_at", "kind", "subject"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Big, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("event", String(32), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("instance_id", BigInteger),
    Column("study", String(64)),
    Column("detail", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("patient", String(64)),
    Index("ix_audit_actor", "actor", "seq"),
    Index("ix_audit_at", "at_us"),
    _partial("ix_audit_instance", "instance_id", "seq", where="instance_id IS NOT NULL"),
    _partial("ix_audit_study", "study", "seq", where="study IS NOT NULL"),
    _partial("ix_audit_patient", "patient", "seq", where="patient IS NOT NULL"),
)

audit_subject = Table(
    "audit_subject",
    metadata,
    Column("instance_id", Big, primary_key=True, autoincrement=False),
    Column("study", String(64), nullable=False),
    Column("patient", String(64), nullable=False),
    Index("ix_audit_subject_study", "study"),
    Index("ix_audit_subject_patient", "patient"),
)

audit_state = Table(
    "audit_state",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
