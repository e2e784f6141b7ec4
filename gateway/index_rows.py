"""What the index takes and gives: frozen values, never database rows. Times: seconds since the epoch, UTC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sqlalchemy import RowMapping

from gateway.instance import CommitmentState, Form, ForwardState, State

Outcome = Literal["new", "duplicate", "version", "conflict"]


@dataclass(frozen=True, slots=True)
class NewInstance:
    """A file that lies durably in the spool and wants a row.

    digest: of the whole file; dataset_digest: of the data set without file meta; size: bytes of the file;
    pixel_digest: of the raw pixel value, needed only if the SOP Instance UID is known already.
    """

    sop_uid: str
    sop_class: str
    study_uid: str | None
    series_uid: str | None
    transfer_syntax: str
    digest: str
    dataset_digest: str
    size: int
    source: str
    calling_ae: str
    priority: int
    pixel_digest: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One instance as recorded. Sizes in bytes; `current`: served under its UID; `conflict`: other pixels, same UID.

    patient_key: id of the key that the identity is sealed to; shredded_at: when that key was destroyed for good.
    member: which instance of a group's archive object it is, from 0; None: the object is its own. archived_size: of a
    group's object its share. coerced: names the corrections under which it is given back (changes with them), or None.
    recode_at: when an object that was coded in a hurry is to be coded anew; None: not.
    """

    id: int
    sop_uid: str
    sop_class: str
    study_uid: str | None
    series_uid: str | None
    transfer_syntax: str
    digest: str
    dataset_digest: str
    pixel_digest: str | None
    size: int
    source: str
    calling_ae: str
    priority: int
    received_at: float
    state: State
    form: Form | None
    reason: str | None
    attempts: int
    lease_owner: str | None
    lease_until: float | None
    due_at: float | None
    queued_at: float | None
    candidate_digest: str | None
    candidate_size: int | None
    envelope_uid: str | None
    archive_key: str | None
    archive_digest: str | None
    archived_size: int | None
    coder: str | None
    carrier: str | None
    payload_bytes: int | None
    codec_bytes: int | None
    raw_pixel_bytes: int | None
    modality: str | None
    verified_at: float | None
    archived_at: float | None
    released_at: float | None
    indexed_at: float | None
    current: bool
    conflict: bool
    last_error: str | None
    patient_key: str | None
    shredded_at: float | None
    member: int | None
    coerced: str | None = None
    recode_at: float | None = None

    @classmethod
    def of(cls, mapping: RowMapping) -> InstanceRow:
        """From a row of the `instance` table."""
        values: dict[str, Any] = {f.name: mapping[f.name] for f in fields(cls)}
        values["state"] = State(values["state"])
        values["form"] = Form(values["form"]) if values["form"] else None
        values["current"], values["conflict"] = bool(values["current"]), bool(values["conflict"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The row that now stands for what was sent, and what it was: new, duplicate, version or conflict."""

    row: InstanceRow
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """An archive object that was made and stored, unproven. `facts` and `wraps` are JSON-able, without patient data.

    size: bytes; of a group's object the share of the instance that is its `member`. quick: coded in a hurry, to be
    coded anew when there is time.
    """

    digest: str
    size: int
    form: Form
    reason: str | None
    envelope_uid: str
    coder: str | None = None
    carrier: str | None = None
    payload_bytes: int | None = None
    codec_bytes: int | None = None
    raw_pixel_bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    wraps: Any = field(default_factory=dict)
    patient_key: str | None = None
    member: int | None = None
    quick: bool = False


@dataclass(frozen=True, slots=True)
class ForwardRow:
    """One instance on its way to one destination.

    sent_class, sent_uid, sent_syntax: SOP class and instance UID and transfer syntax of what the destination has.
    commit_due_at: while commitment is wanted and not there, when it is asked for (again); else None. priority: the
    instance's, 0 (STAT) to 9.
    """

    id: int
    instance_id: int
    destination: str
    state: ForwardState
    attempts: int
    lease_owner: str | None
    lease_until: float | None
    due_at: float | None
    queued_at: float | None
    reason: str | None
    proof: str | None
    created_at: float
    sent_at: float | None
    representation: str | None
    sent_class: str | None
    sent_uid: str | None
    sent_syntax: str | None
    commit_due_at: float | None = None
    commit_attempts: int = 0
    priority: int = 5

    @classmethod
    def of(cls, mapping: RowMapping) -> ForwardRow:
        """From a row of the `forward` table."""
        values: dict[str, Any] = {f.name: mapping[f.name] for f in fields(cls)}
        values["state"] = ForwardState(values["state"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class CommitmentRow:
    """One storage commitment transaction. role: 'scp' (asked of us; peer: AE title) or 'scu' (by us; peer: name of the
    destination). items, failed: references, and those that were answered with a failure reason.
    """

    id: int
    role: str
    peer: str
    transaction_uid: str
    state: CommitmentState
    attempts: int
    created_at: float
    due_at: float | None
    lease_owner: str | None
    lease_until: float | None
    reason: str | None
    done_at: float | None
    items: int = 0
    failed: int = 0

    @classmethod
    def of(cls, mapping: RowMapping) -> CommitmentRow:
        """From a row of the `commitment` table, with or without the two counts."""
        values: dict[str, Any] = {f.name: mapping[f.name] for f in fields(cls) if f.name in mapping}
        values["state"] = CommitmentState(values["state"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class CommitmentItem:
    """One reference of a transaction. outcome: None while open, 0 for success, else a Failure Reason (0008,1197)."""

    id: int
    sop_class: str
    sop_uid: str
    outcome: int | None

    @classmethod
    def of(cls, mapping: RowMapping) -> CommitmentItem:
        """From a row of the `commitment_item` table."""
        return cls(**{f.name: mapping[f.name] for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class StegoExport:
    """One viewable stego object: what makes a retry the same object again, and what restores it.

    mode: 'self-contained' or 'hidden'; object_id: 16 bytes in hex; wraps: the data key's wraps in hex; record_key,
    record_digest, record_size (bytes): of the restoration record in the archive; digest: of the file that is sent;
    pixel_digest: of its pixels, by which an orphan without a header is found. None: not made yet, or no such record.
    """

    id: int
    instance_id: int
    destination: str
    mode: str
    object_id: str
    stego_uid: str | None
    record_key: str | None
    record_digest: str | None
    record_size: int | None
    wraps: tuple[str, ...]
    pixel_digest: str | None
    digest: str | None
    created_at: float

    @classmethod
    def of(cls, mapping: RowMapping) -> StegoExport:
        """From a row of the `stego_export` table."""
        values: dict[str, Any] = {f.name: mapping[f.name] for f in fields(cls)}
        values["wraps"] = tuple(json.loads(values["wraps"]))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A task message that waits to be handed to the queue: ids and machine words only."""

    id: int
    task: str
    args: tuple[int | str, ...]
    queue: str
    priority: int


@dataclass(frozen=True, slots=True)
class AlertRow:
    """Something a person must look at; equal (kind, subject) are counted on one open row."""

    id: int
    kind: str
    subject: str
    severity: str
    message: str
    count: int
    raised_at: float
    last_at: float
    acked_at: float | None
    acked_by: str | None

    @classmethod
    def of(cls, mapping: RowMapping) -> AlertRow:
        """From a row of the `alert` table."""
        return cls(**{f.name: mapping[f.name] for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals for status, dashboard and metrics. Dictionaries map a name to a number of instances (or bytes)."""

    by_state: Mapping[str, int]
    by_form: Mapping[str, int]
    passthrough_by_reason: Mapping[str, int]
    forwards: Mapping[str, Mapping[str, int]]  # destination -> state -> count
    by_modality: Mapping[str, Mapping[str, int]]  # modality -> instances, bytes_in, bytes_archived
    bytes_in: int  # of archived instances
    bytes_archived: int  # their archive objects, and the restoration records of what was sent as viewable images
    raw_pixel_bytes: int
    codec_bytes: int
    payload_bytes: int
    conflicts: int
    outbox: int
    open_alerts: int
    oldest_unfinished_at: float | None
    commitments: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # role -> state -> count
    studies: Mapping[str, int] = field(default_factory=dict)  # state as last looked at -> count
    shredded: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)  # priority -> unfinished instances

    @property
    def total(self) -> int:
        """All instances, versions included."""
        return sum(self.by_state.values())


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one kind: 'instance' (waiting for a retry), 'passthrough' or 'dead-letter', with up to 100 ids."""

    kind: str
    reason: str
    destination: str | None
    count: int
    ids: tuple[int, ...]
