"""Storage commitment, Push Model (PS3.4 J): what its messages say, and when an object is safe enough to answer for.

Success means that the requester may delete its copy. So it takes what the release of our own spool takes: proven by
another process, archived and read back, outside the demo profile its key in a backup; by policy further copies; and the
archive's bytes are read and compared once more, now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, InvalidInstance, NotFound, OutOfResources, Unavailable
from gateway.index_rows import CommitmentItem, CommitmentRow, InstanceRow
from gateway.instance import State
from gateway.uids import parse_sop_class, parse_sop_instance, parse_uid

PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
WELL_KNOWN: Final = "1.2.840.10008.1.20.1.1"
REQUEST: Final = 1  # Action Type ID (PS3.4 J.3.2)
ALL_KEPT, SOME_FAILED = 1, 2  # Event Type IDs (PS3.4 J.3.3)

#: Failure Reasons (PS3.3 C.14.1.1)
KEPT: Final = 0
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_OBJECT: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119

CHUNK: Final = 100
_SAFE: Final = frozenset({State.ARCHIVED, State.RELEASED})

Reference = tuple[str, str]


class BadCommitment(InvalidInstance):
    """A message of storage commitment that cannot be understood (PS3.7 C.4.2: invalid argument value)."""

    dimse_status = 0x0115
    title = "Invalid storage commitment message"


@dataclass(frozen=True, slots=True)
class Asked:
    """An N-ACTION's Action Information: each reference once, SOP class and instance UID, in its order."""

    uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An N-EVENT-REPORT's Event Information. failed: with the Failure Reason."""

    uid: str
    kept: frozenset[Reference]
    failed: Mapping[Reference, int]


def read_asked(dataset: Any, most: int) -> Asked:
    """What is asked for. dataset: a parsed data set, read by keyword.

    Raises BadCommitment; OutOfResources ``too-many-references`` for more than `most`.
    """
    uid = _transaction(dataset)
    items = _items(dataset, "ReferencedSOPSequence")
    if len(items) > most:
        raise OutOfResources("too-many-references", f"more than {most} references in one request: ask in parts")
    found = dict.fromkeys(_reference(item) for item in items)
    if not found:
        raise BadCommitment("no-references", "The request names no object.")
    if len({sop_uid for _, sop_uid in found}) != len(found):
        raise BadCommitment("class-twice", "The request names one object under two SOP classes.")
    return Asked(uid, tuple(found))


def read_answer(dataset: Any) -> Answer:
    """What a destination answered. Raises BadCommitment."""
    failed = {_reference(item): _reason(item) for item in _items(dataset, "FailedSOPSequence")}
    kept = frozenset(_reference(item) for item in _items(dataset, "ReferencedSOPSequence"))
    return Answer(_transaction(dataset), kept - failed.keys(), failed)


def judge(gw: Gateway, row: CommitmentRow, items: Sequence[CommitmentItem]) -> Iterator[dict[int, int]]:
    """Outcomes of undecided items, some at a time: item -> KEPT or a Failure Reason; those not in it stay open.

    Raises Unavailable.
    """
    backed_up = _BackedUp(gw)
    intact: dict[str, bool | None] = {}
    for start in range(0, len(items), CHUNK):
        part = items[start : start + CHUNK]
        evidence = gw.index.commitment_evidence({item.sop_uid for item in part})
        copies = gw.index.copies_of([each.id for rows in evidence.values() for each in rows])
        age = gw.index.now() - row.created_at
        outcomes = {}
        for item in part:
            rows = evidence.get(item.sop_uid, [])
            outcome = _judge_one(gw, item, rows, copies, backed_up, intact)
            if outcome is None:
                outcome = _overdue(gw, age, known=bool(rows))
            if outcome is not None:
                outcomes[item.id] = outcome
        yield outcomes


def pause_before_next(age: float) -> float:
    """Seconds until an undecided transaction of that age (seconds) is looked at again."""
    return min(30.0, max(1.0, age / 10))


def _overdue(gw: Gateway, age: float, *, known: bool) -> int | None:
    """What waiting too long means."""
    if known:
        return PROCESSING_FAILURE if age >= gw.settings.commitment_wait_seconds else None
    return NO_SUCH_OBJECT if age >= gw.settings.commitment_unknown_seconds else None


def _judge_one(
    gw: Gateway,
    item: CommitmentItem,
    rows: Sequence[InstanceRow],
    copies: Mapping[int, int],
    backed_up: _BackedUp,
    intact: dict[str, bool | None],
) -> int | None:
    """One object: all that was ever received under its UID must be safe, for nobody says which of it is meant."""
    if not rows:
        return None
    if all(row.sop_class != item.sop_class for row in rows):
        return CLASS_CONFLICT
    if any(row.shredded_at is not None or _key_destroyed(gw, row) for row in rows):
        return NO_SUCH_OBJECT
    for row in rows:
        proven = row.state in _SAFE and row.verified_at is not None
        if not proven or copies.get(row.id, 0) < gw.settings.commitment_copies or not backed_up.holds(row):
            return None
    for row in rows:
        key = str(row.archive_key)
        if key not in intact:
            intact[key] = _read_back(gw, row)
        if intact[key] is None:
            return None
        if not intact[key]:
            return PROCESSING_FAILURE
    return KEPT


def _key_destroyed(gw: Gateway, row: InstanceRow) -> bool:
    return row.patient_key is not None and gw.keys.patients.destroyed(row.patient_key)


def _read_back(gw: Gateway, row: InstanceRow) -> bool | None:
    """Whether the archive gives the bytes that were put there; None if it cannot be asked now."""
    try:
        gw.archive.map(str(row.archive_key), str(row.archive_digest))
    except Unavailable:
        return None
    except (IntegrityError, NotFound) as error:
        message = f"an archive object is lost or damaged ({error.reason}); commitment to it was refused"
        gw.index.alert_raise("archive-damaged", f"instance {row.id}", message, "critical")
        return False
    return True


class _BackedUp:
    """Whether a key backup holds what opens an object; as the sweep asks before it releases the spool."""

    def __init__(self, gw: Gateway) -> None:
        self._keys = gw.keys
        self._needed = gw.settings.require_key_backup
        self._until = gw.keys.backed_up_until() if self._needed else None

    def holds(self, row: InstanceRow) -> bool:
        if not self._needed:
            return True
        if self._until is None or row.archived_at is None or row.archived_at >= self._until:
            return False
        return row.patient_key is None or row.patient_key in self._keys.backed_up([row.patient_key])


def _transaction(dataset: Any) -> str:
    try:
        return str(parse_uid(str(dataset.get("TransactionUID") or "")))
    except InvalidInstance:
        raise BadCommitment("bad-transaction-uid", "The Transaction UID is missing or no UID.") from None


def _items(dataset: Any, keyword: str) -> Collection[Any]:
    value = dataset.get(keyword)
    if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        return ()
    return value  # type: ignore[no-any-return]


def _reference(item: Any) -> Reference:
    try:
        sop_class = parse_sop_class(str(item.get("ReferencedSOPClassUID") or ""))
        return str(sop_class), str(parse_sop_instance(str(item.get("ReferencedSOPInstanceUID") or "")))
    except InvalidInstance:
        raise BadCommitment("bad-reference", "A reference has no SOP class or instance UID, or a wrong one.") from None


def _reason(item: Any) -> int:
    """A failure without a reason is a processing failure."""
    value = item.get("FailureReason")
    return value if isinstance(value, int) and 0 < value < 0xFFFF else PROCESSING_FAILURE
