"""The index made anew from what archive objects say of themselves (worker/rebuild.py): rows, proofs, attributes,
forwards, each object in one transaction, so that a rebuild may be stopped anywhere and started again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent
from gateway.database import Database
from gateway.index_care import put_care, put_superseded
from gateway.index_forward import put_forward
from gateway.index_intake import fetch
from gateway.index_rows import InstanceRow, NewInstance
from gateway.index_schema import forward, instance, proof, stego_export, study, superseded
from gateway.index_search import put_attributes
from gateway.instance import UNFINISHED, Form, ForwardState, State

__all__ = ["FoundExport", "FoundInstance", "Placed", "Rebuilding"]

CURSOR: Final = "rebuild"
PAGE: Final = 200
ASSUMED: Final = "assumed"  # proof of a forward that must have been sent, because the source was released
Placed = Literal["added", "attached", "known", "duplicate", "superseded"]


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """An instance as its archive object tells it. received_at: seconds since the epoch, UTC.

    archive_digest: SHA-256 (hex) of the object; archived_size: bytes, of a group's object the share; member: as in
    `InstanceRow`; generation: how often it was coded anew (0: never), the highest is the instance's object. released:
    the spool has no copy. destinations: where it was or will be forwarded; sent: it is taken for sent there.
    subject: pseudonyms of study and patient.
    shredded_at: its patient's key is destroyed; then there are pseudonyms in `new` and no attributes.
    """

    new: NewInstance
    received_at: float
    archive_key: str
    archive_digest: str
    archived_size: int
    envelope_uid: str
    member: int | None
    form: Form
    coder: str | None
    carrier: str | None
    payload_bytes: int
    codec_bytes: int
    raw_pixel_bytes: int
    patient_key: str | None
    wraps: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, str | int] = field(default_factory=dict, repr=False)
    metadata_json: str = field(default="", repr=False)
    subject: tuple[str, str] | None = None
    generation: int = 0
    recode: bool = False
    released: bool = True
    destinations: tuple[str, ...] = ()
    sent: bool = True
    shredded_at: float | None = None


@dataclass(frozen=True, slots=True)
class FoundExport:
    """A viewable stego object as its restoration record tells it. created_at: seconds since the epoch, UTC.

    file_digest: of the received file; destination: a name, or one beginning with '?' where it is not certain.
    """

    file_digest: str
    destination: str
    mode: str
    object_id: str
    stego_uid: str
    record_key: str
    record_digest: str
    record_size: int
    wraps: tuple[str, ...]
    created_at: float


class Rebuilding(Database):
    """What `palimpsest rebuild` writes."""

    def is_empty(self) -> bool:
        """True while no instance is known."""
        with self.read() as conn:
            return conn.execute(sa.select(instance.c.id).limit(1)).first() is None

    def rebuild_begin(self, actor: str) -> None:
        """From now on an index that is not empty is a rebuild that was stopped."""
        with self.write() as conn:
            put_care(conn, CURSOR, {"state": "running"}, self.now())
            audit.append(conn, AuditEvent("rebuild-begun", actor), self.now())

    def rebuild_end(self, actor: str, count: int, failed: int) -> None:
        """The index holds all that could be read."""
        with self.write() as conn:
            put_care(conn, CURSOR, {"state": "done"}, self.now())
            outcome: audit.AuditOutcome = "failure" if failed else "success"
            audit.append(conn, AuditEvent("rebuilt", actor, outcome, detail={"count": count}), self.now())

    def rebuild_known(self, key: str) -> bool:
        """Whether the index knows that archive key: then nothing has to be read."""
        queries = (
            sa.select(instance.c.id).where(instance.c.archive_key == key),
            sa.select(stego_export.c.id).where(stego_export.c.record_key == key),
            sa.select(superseded.c.instance_id).where(superseded.c.archive_key == key),
        )
        with self.read() as conn:
            return any(conn.execute(query.limit(1)).first() is not None for query in queries)

    def rebuild_add(
        self, found: Sequence[FoundInstance], actor: str, generation_of: Callable[[InstanceRow], int]
    ) -> list[Placed]:
        """Record all instances of one archive object; what became of each.

        attached: the instance was known, unfinished or under an older object; superseded: it has a newer one;
        duplicate: the same data set was archived under another file meta information. generation_of: that of a row's
        object; the highest is the instance's, in whatever order they come. Audited as verified, because
        each was restored and compared with its signed record.
        """
        now = self.now()
        with self.write() as conn:
            return [_place(conn, each, actor, now, generation_of) for each in found]

    def rebuild_export(self, found: FoundExport) -> bool:
        """Record a stego object; False if its instance is not known."""
        with self.write() as conn:
            row = conn.execute(sa.select(instance.c.id).where(instance.c.digest == found.file_digest)).first()
            if row is None:
                return False
            if conn.execute(sa.select(stego_export.c.id).where(stego_export.c.object_id == found.object_id)).first():
                return True
            same = sa.and_(
                stego_export.c.instance_id == row.id, stego_export.c.destination == found.destination,
                stego_export.c.mode == found.mode,
            )  # fmt: skip
            taken = conn.execute(sa.select(stego_export.c.id).where(same)).first() is not None
            values = {
                "instance_id": row.id, "mode": found.mode, "object_id": found.object_id, "stego_uid": found.stego_uid,
                "destination": f"?{found.object_id}" if taken else found.destination,
                "record_key": found.record_key, "record_digest": found.record_digest,
                "record_size": found.record_size, "wraps": json.dumps(list(found.wraps)),
                "created_at": found.created_at,
            }  # fmt: skip
            conn.execute(stego_export.insert().values(**values))
            return True

    def rebuild_of_class(self, sop_class: str) -> Iterator[InstanceRow]:
        """Indexed instances of a SOP class, oldest first, a page at a time."""
        last = 0
        while True:
            query = sa.select(instance).where(instance.c.sop_class == sop_class, instance.c.id > last)
            query = query.where(instance.c.shredded_at.is_(None), instance.c.indexed_at.is_not(None))
            with self.read() as conn:
                page = conn.execute(query.order_by(instance.c.id).limit(PAGE)).mappings().all()
            yield from (InstanceRow.of(row) for row in page)
            if not page:
                return
            last = page[-1]["id"]

    def open_studies(self) -> int:
        """Studies that the ledger has to look at."""
        with self.read() as conn:
            query = sa.select(sa.func.count()).select_from(study).where(study.c.open)
            return int(conn.execute(query).scalar_one())


def _place(
    conn: Connection, found: FoundInstance, actor: str, now: float, generation_of: Callable[[InstanceRow], int]
) -> Placed:
    row = _find(conn, instance.c.digest == found.new.digest)
    if row is not None:
        return _join(conn, row, found, actor, now, older=found.generation <= generation_of(row))
    same = sa.and_(
        instance.c.transfer_syntax == found.new.transfer_syntax, instance.c.dataset_digest == found.new.dataset_digest
    )
    if found.new.dataset_digest and (row := _find(conn, same)) is not None:
        put_superseded(conn, row.id, found.archive_key, found.archive_digest, found.archived_size, now)
        _share(conn, row.id, found)
        return "duplicate"
    values: dict[str, Any] = {name: getattr(found.new, name) for name in NewInstance.__slots__}
    values |= {"received_at": found.received_at, "attempts": 0, "conflict": False, "queued_at": now}
    served = conn.execute(sa.select(instance.c.id).where(instance.c.sop_uid == found.new.sop_uid, instance.c.current))
    values |= {"current": served.first() is None, "shredded_at": found.shredded_at, "indexed_at": now}
    made = conn.execute(instance.insert().values(**values, **_archived(found, now))).inserted_primary_key
    assert made is not None  # a single-row INSERT always has one
    row = fetch(conn, made[0])
    _record(conn, row, found, actor, now)
    if not values["current"] and found.shredded_at is None:
        _settle(conn, found.new.sop_uid)
    return "added"


def _join(conn: Connection, row: InstanceRow, found: FoundInstance, actor: str, now: float, *, older: bool) -> Placed:
    """A known instance: this object is its own, or a newer one, or an older one (or as old: the known one stays)."""
    if row.archive_key == found.archive_key:
        return "known"
    if row.state not in UNFINISHED:
        if older:
            put_superseded(conn, row.id, found.archive_key, found.archive_digest, found.archived_size, now)
            _share(conn, row.id, found)
            return "superseded"
        put_superseded(conn, row.id, str(row.archive_key), str(row.archive_digest), row.archived_size or 0, now)
    # whoever holds its lease loses it: what it is about to archive is in the archive already
    free = {"lease_owner": None, "lease_until": None, "due_at": None, "last_error": None, "attempts": 0}
    state = {} if row.state is State.RELEASED else {"state": State.ARCHIVED, "released_at": None}
    conn.execute(
        sa.update(instance).where(instance.c.id == row.id).values(**{**_archived(found, now), **free, **state})
    )
    _record(conn, fetch(conn, row.id), found, actor, now)
    return "attached"


def _archived(found: FoundInstance, now: float) -> dict[str, Any]:
    state = State.RELEASED if found.released else State.ARCHIVED
    return {
        "state": state, "form": found.form, "envelope_uid": found.envelope_uid, "archive_key": found.archive_key,
        "archive_digest": found.archive_digest, "archived_size": found.archived_size, "coder": found.coder,
        "carrier": found.carrier, "payload_bytes": found.payload_bytes, "codec_bytes": found.codec_bytes,
        "raw_pixel_bytes": found.raw_pixel_bytes, "patient_key": found.patient_key, "member": found.member,
        "candidate_digest": found.archive_digest, "candidate_size": found.archived_size,
        "verified_at": now, "archived_at": now, "released_at": now if found.released else None,
        "recode_at": now if found.recode else None,
    }  # fmt: skip


def _record(conn: Connection, row: InstanceRow, found: FoundInstance, actor: str, now: float) -> None:
    """Proof, attributes and forwards."""
    conn.execute(sa.delete(superseded).where(superseded.c.archive_key == found.archive_key))  # a group's, for others
    facts = {**found.facts, "shared_with": _readers(conn, row.id, found)}
    if found.shredded_at is None:
        event = AuditEvent("verified", actor, instance_id=row.id, detail={"source": "archive"})
        facts["verified_seq"] = audit.append(conn, event, now)
        put_attributes(conn, row, found.attributes, found.metadata_json, found.new.pixel_digest, now, found.subject)
    conn.execute(sa.delete(proof).where(proof.c.instance_id == row.id))
    conn.execute(
        proof.insert().values(
            instance_id=row.id, facts=json.dumps(facts, sort_keys=True), wraps=json.dumps(list(found.wraps))
        )
    )
    known = set(conn.execute(sa.select(forward.c.destination).where(forward.c.instance_id == row.id)).scalars())
    for name in found.destinations:
        if name not in known and found.sent:
            values = {"state": ForwardState.SENT, "attempts": 0, "proof": ASSUMED, "created_at": now, "sent_at": now}
            conn.execute(forward.insert().values(instance_id=row.id, destination=name, priority=row.priority, **values))
        elif name not in known:
            put_forward(conn, row, name, now)


def _readers(conn: Connection, instance_id: int, found: FoundInstance) -> list[str]:
    """Whoever can read one of the instance's objects, the older ones included."""
    text = conn.execute(sa.select(proof.c.facts).where(proof.c.instance_id == instance_id)).scalar()
    known = json.loads(text).get("shared_with") if text is not None else None
    return sorted({*(known or ()), *(found.facts.get("shared_with") or ())})


def _share(conn: Connection, instance_id: int, found: FoundInstance) -> None:
    """Note who can read an older object: a shredding must not be called whole while they do."""
    text = conn.execute(sa.select(proof.c.facts).where(proof.c.instance_id == instance_id)).scalar()
    facts = json.dumps({**json.loads(text or "{}"), "shared_with": _readers(conn, instance_id, found)}, sort_keys=True)
    conn.execute(sa.update(proof).where(proof.c.instance_id == instance_id).values(facts=facts))


def _settle(conn: Connection, sop_uid: str) -> None:
    """Decide anew which version of a UID is served, as the door would have in the order of receipt."""
    query = sa.select(instance, proof.c.facts).outerjoin(proof, proof.c.instance_id == instance.c.id)
    rows = conn.execute(
        query.where(instance.c.sop_uid == sop_uid, instance.c.shredded_at.is_(None)).order_by(
            instance.c.received_at, instance.c.id
        )
    ).all()
    served, disputed = rows[0], False
    for row in rows[1:]:
        if _pixels(row) & _pixels(served):
            served = row
        else:
            disputed = True
    family = instance.c.sop_uid == sop_uid
    conn.execute(sa.update(instance).where(family).values(current=False, conflict=False))
    conn.execute(sa.update(instance).where(instance.c.id == served.id).values(current=True, conflict=disputed))
    if disputed:
        others = [row.id for row in rows if not _pixels(row) & _pixels(served)]
        conn.execute(sa.update(instance).where(instance.c.id.in_(others)).values(conflict=True))


def _pixels(row: sa.Row[Any]) -> set[str]:
    """Digests by which two versions have the same pixels: of the pixel value as received, which is not known any more
    where that was compressed, and of the samples, which tells for the same transfer syntax.
    """
    facts = json.loads(row.facts) if row.facts else {}
    samples = facts.get("pixel_sha256")
    return {each for each in (row.pixel_digest, f"{row.transfer_syntax}/{samples}" if samples else None) if each}


def _find(conn: Connection, where: sa.ColumnElement[bool]) -> InstanceRow | None:
    row = conn.execute(sa.select(instance).where(where)).mappings().first()
    return InstanceRow.of(row) if row is not None else None
