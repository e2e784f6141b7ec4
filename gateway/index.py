"""The system of record: one class over SQLite (default) or PostgreSQL, its methods by who asks.

Every method is one short transaction; each that changes something appends its audit event in that same transaction.
Nothing of SQLAlchemy comes out: rows are frozen values of `gateway.index_rows`. Driver errors come out as Unavailable,
OutOfResources or IntegrityError.
"""

from __future__ import annotations

from gateway.index_audit import AuditSearch
from gateway.index_browse import Browse
from gateway.index_care import Care
from gateway.index_certificate import Certified
from gateway.index_clock import Clocks
from gateway.index_commitment import CommitmentAsked
from gateway.index_commitment_out import CommitmentWanted
from gateway.index_correction import Corrections
from gateway.index_exports import Exports
from gateway.index_forward import Forwarding
from gateway.index_intake import (
    ENCODE_TASK,
    FORWARD_TASK,
    INDEX_TASK,
    QUEUE_OF,
    RECODE_TASK,
    RETRIEVE_TASK,
    WARM_TASK,
    Intake,
)
from gateway.index_ledger import Ledger
from gateway.index_probe import Probes
from gateway.index_rebuild import Rebuilding
from gateway.index_recode import Recoding
from gateway.index_rejection import Rejections
from gateway.index_report import Report
from gateway.index_rows import (
    Accepted,
    AlertRow,
    CandidateFacts,
    Counts,
    FailureGroup,
    ForwardRow,
    InstanceRow,
    NewInstance,
    OutboxMessage,
    StegoExport,
)
from gateway.index_search import Search
from gateway.index_session import Sessions
from gateway.index_shred import Shredding, Subject
from gateway.index_tally import Tallies
from gateway.index_work import Work
from gateway.index_worker import Beating

__all__ = [
    "ENCODE_TASK", "FORWARD_TASK", "INDEX_TASK", "QUEUE_OF", "RECODE_TASK", "RETRIEVE_TASK", "WARM_TASK",
    "Accepted", "AlertRow", "CandidateFacts", "Counts", "FailureGroup", "ForwardRow", "Index",
    "InstanceRow", "NewInstance", "OutboxMessage", "StegoExport", "Subject",
]  # fmt: skip


class Index(
    Intake,
    Work,
    Forwarding,
    CommitmentAsked,
    CommitmentWanted,
    Exports,
    Search,
    Shredding,
    Probes,
    Report,
    Tallies,
    Beating,
    Browse,
    Certified,
    Ledger,
    Corrections,
    Rejections,
    AuditSearch,
    Sessions,
    Care,
    Rebuilding,
    Recoding,
    Clocks,
):
    """`Index(url)`, then `create()` once per process: see the base classes for the doors they serve."""
