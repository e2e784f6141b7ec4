"""The index at the door: one transaction makes the row, the audit event and the wake-up messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent
from gateway.database import Database
from gateway.errors import NotFound, Unavailable
from gateway.index_rows import Accepted, InstanceRow, NewInstance, Outcome
from gateway.index_schema import instance, outbox
from gateway.index_visible import visible
from gateway.instance import UNFINISHED, State

BEING_SHREDDED: Final = "being-shredded"
NOT_SPOOLED: Final = "not-spooled"
INDEX_TASK: Final = "palimpsest.index"
ENCODE_TASK: Final = "palimpsest.encode"
FORWARD_TASK: Final = "palimpsest.forward"
RETRIEVE_TASK: Final = "palimpsest.retrieve"
WARM_TASK: Final = "palimpsest.warm"
RECODE_TASK: Final = "palimpsest.recode"
QUEUE_OF: Final = {
    INDEX_TASK: "index",
    ENCODE_TASK: "encode",
    FORWARD_TASK: "forward",
    RETRIEVE_TASK: "retrieve",
    WARM_TASK: "retrieve",
    RECODE_TASK: "encode",
}

# Built once: building an expression costs more than running it.
KNOWN_UIDS: Final = sa.select(instance.c.sop_uid).where(instance.c.sop_uid.in_(sa.bindparam("wanted", expanding=True)))
INSERT_RETURNING: Final = instance.insert().returning(instance, sort_by_parameter_order=True)
INSERT_OUTBOX: Final = outbox.insert()


class Intake(Database):
    """Making instances known, and finding them."""

    def add_received(
        self,
        new: NewInstance,
        *,
        spooled: Callable[[str], bool] = lambda _: True,
        destroyed: Callable[[str], bool] = lambda _: False,
    ) -> Accepted:
        """Record a file that lies durably in the spool; on return row, audit event and wake-ups are committed.

        duplicate: same UID, syntax and data set: nothing is made, the existing row is given back; one that is not
        archived, and whose own file is lost, stands for this file from now on, and is worked on from its beginning.
        version: same UID and same pixel bytes under another header: made, and served from now on.
        conflict: same UID, other (or unknown) pixel bytes: made and flagged, the earlier one stays served.
        spooled: whether the spool has the file of a digest (SHA-256 in hex); destroyed: whether a patient key is. Both
        are asked with the writers' lock held, see `let_go`. Raises Unavailable ``being-shredded`` for a duplicate of
        what nobody can open any more, ``not-spooled`` where no file is left to stand for the row.
        """
        now = self.now()
        with self.write() as conn:
            known = self._known(conn, new)
            if known is not None and known.state in UNFINISHED and not spooled(known.digest) and spooled(new.digest):
                return Accepted(self._replace_file(conn, known, new, now), "duplicate")
            if known is not None and known.patient_key is not None and destroyed(known.patient_key):
                message = "what this repeats is being shredded: send it again when that is done, and it is taken as new"
                raise Unavailable(BEING_SHREDDED, message)
            if not (spooled(new.digest) if known is None else known.state not in UNFINISHED or spooled(known.digest)):
                raise Unavailable(NOT_SPOOLED, "the received file was removed before it had a row: send it again")
            if known is not None:
                self._audit_receipt(conn, known.id, new, "duplicate", now)
                return Accepted(known, "duplicate")
            outcome, disputed = self._settle_versions(conn, new)
            row = self._insert(conn, new, now, current=outcome != "conflict", conflict=disputed)
            self._audit_receipt(conn, row.id, new, outcome, now)
            for task in (INDEX_TASK, ENCODE_TASK):
                put_outbox(conn, task, [row.id], row.priority, now)
        return Accepted(row, outcome)

    def add_received_many(
        self, news: Sequence[NewInstance], *, spooled: Callable[[str], bool] = lambda _: True
    ) -> list[InstanceRow | None]:
        """`add_received` for many files whose UIDs are new here, in one transaction and with one fsync.

        None, and nothing made, where the UID is known already (or comes twice), or the file is gone: such a file wants
        `add_received`, which says why.
        """
        now = self.now()
        with self.write() as conn:
            wanted = [new.sop_uid for new in news]
            known = set(conn.scalars(KNOWN_UIDS, {"wanted": wanted}))
            fresh: list[NewInstance] = []
            for new in news:
                if new.sop_uid not in known and spooled(new.digest):
                    known.add(new.sop_uid)
                    fresh.append(new)
            made = {new.sop_uid: (new, row) for new, row in zip(fresh, _insert_many(conn, fresh, now), strict=True)}
            audit.append_many(conn, [_receipt(row.id, new, "new") for new, row in made.values()], now)
            put_outbox_many(
                conn,
                [(task, row.id, row.priority) for _, row in made.values() for task in (INDEX_TASK, ENCODE_TASK)],
                now,
            )
        return [made[new.sop_uid][1] if made.get(new.sop_uid, (None,))[0] is new else None for new in news]

    def let_go(self, digest: str, remove: Callable[[str], None]) -> bool:
        """Have a file of the spool removed, unless a row that is not RELEASED needs it; whether it was.

        Every removal comes through here: it holds the writers' lock, and a receipt looks for its file with that lock
        held. So the receipt was committed before, and its file stays; or it comes later, and finds the file gone.
        Removed after the commit, a file could go that was received anew, and acknowledged, in between. (Where the file
        system hangs, PostgreSQL takes the lock back after `database.FROZEN_SECONDS`, and this raises Unavailable.)
        """
        with self.write(durable=False) as conn:
            state = conn.scalar(sa.select(instance.c.state).where(instance.c.digest == digest))
            if state is not None and state != State.RELEASED:
                return False
            remove(digest)
            return True

    def find_duplicate(self, sop_uid: str, transfer_syntax: str, dataset_digest: str) -> InstanceRow | None:
        """The row of the same UID, syntax and data set, if there is one."""
        with self.read() as conn:
            return _one(conn, _duplicate(sop_uid, transfer_syntax, dataset_digest))

    def get(self, instance_id: int) -> InstanceRow:
        """The row of that id. Raises NotFound."""
        with self.read() as conn:
            return fetch(conn, instance_id)

    def by_sop(self, sop_uid: str) -> InstanceRow | None:
        """The row served under a SOP Instance UID."""
        with self.read() as conn:
            return _one(conn, sa.select(instance).where(instance.c.sop_uid == sop_uid, visible()))

    def versions(self, sop_uid: str) -> list[InstanceRow]:
        """All rows of a SOP Instance UID, newest first."""
        with self.read() as conn:
            return _all(conn, sa.select(instance).where(instance.c.sop_uid == sop_uid).order_by(instance.c.id.desc()))

    def by_digest(self, digest: str) -> InstanceRow | None:
        """The row of a received file by its SHA-256 (hex)."""
        with self.read() as conn:
            return _one(conn, sa.select(instance).where(instance.c.digest == digest))

    def by_study(self, study_uid: str, series_uid: str | None = None) -> list[InstanceRow]:
        """Served rows of a study, or of one of its series, oldest first; empty if unknown."""
        query = sa.select(instance).where(instance.c.study_uid == study_uid, visible())
        if series_uid is not None:
            query = query.where(instance.c.series_uid == series_uid)
        with self.read() as conn:
            return _all(conn, query.order_by(instance.c.id))

    def recent(self, limit: int = 50) -> list[InstanceRow]:
        """The newest rows, newest first."""
        with self.read() as conn:
            return _all(conn, sa.select(instance).order_by(instance.c.id.desc()).limit(limit))

    def make_current(self, instance_id: int, actor: str) -> InstanceRow:
        """An administrator's decision: this version is served from now on, and the conflict is settled."""
        with self.write() as conn:
            row = fetch(conn, instance_id)
            family = instance.c.sop_uid == row.sop_uid
            conn.execute(sa.update(instance).where(family).values(current=False, conflict=False))
            conn.execute(sa.update(instance).where(instance.c.id == row.id).values(current=True))
            audit.append(conn, AuditEvent("version-chosen", actor, instance_id=row.id), self.now())
            return fetch(conn, instance_id)

    def audit(self, event: AuditEvent) -> None:
        """One audit event in a transaction of its own. Raises Unavailable: then the action it describes must fail."""
        with self.write() as conn:
            audit.append(conn, event, self.now())

    def _known(self, conn: Connection, new: NewInstance) -> InstanceRow | None:
        return _one(conn, _duplicate(new.sop_uid, new.transfer_syntax, new.dataset_digest))

    def _settle_versions(self, conn: Connection, new: NewInstance) -> tuple[Outcome, bool]:
        """What the newcomer is, and whether its UID is in dispute: a correction does not settle what a person must."""
        current = _one(conn, sa.select(instance).where(instance.c.sop_uid == new.sop_uid, instance.c.current))
        if current is None:
            return "new", False
        if current.pixel_digest is not None and current.pixel_digest == new.pixel_digest:
            conn.execute(sa.update(instance).where(instance.c.id == current.id).values(current=False))
            return "version", current.conflict
        conn.execute(sa.update(instance).where(instance.c.id == current.id).values(conflict=True))
        return "conflict", True

    def _insert(self, conn: Connection, new: NewInstance, now: float, *, current: bool, conflict: bool) -> InstanceRow:
        result = conn.execute(instance.insert().values(_first_values(new, now, current=current, conflict=conflict)))
        key = result.inserted_primary_key
        assert key is not None  # a single-row INSERT always has one
        return fetch(conn, key[0])

    def _replace_file(self, conn: Connection, known: InstanceRow, new: NewInstance, now: float) -> InstanceRow:
        """The same data set under other file meta information takes the place of a file that the spool lost.

        A candidate was made of the lost one, whose bytes it gives back: whoever works on it loses the lease.
        """
        values: dict[str, Any] = {
            "digest": new.digest, "size": new.size, "state": State.RECEIVED, "form": None, "reason": None,
            "candidate_digest": None, "candidate_size": None, "envelope_uid": None, "patient_key": None, "member": None,
            "verified_at": None, "recode_at": None, "lease_owner": None, "lease_until": None, "attempts": 0,
            "last_error": None, "due_at": now, "queued_at": now,
        }  # fmt: skip
        conn.execute(sa.update(instance).where(instance.c.id == known.id).values(**values))
        receipt = _receipt(known.id, new, "duplicate")
        audit.append(conn, replace(receipt, detail={**receipt.detail, "reason": "spool-file-lost"}), now)
        for task in (INDEX_TASK, ENCODE_TASK):
            put_outbox(conn, task, [known.id], known.priority, now)
        return fetch(conn, known.id)

    def _audit_receipt(self, conn: Connection, row_id: int, new: NewInstance, outcome: Outcome, now: float) -> None:
        audit.append(conn, _receipt(row_id, new, outcome), now)


def _first_values(new: NewInstance, now: float, *, current: bool = True, conflict: bool = False) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(new, name) for name in NewInstance.__slots__}
    values |= {"received_at": now, "state": State.RECEIVED, "attempts": 0, "due_at": now, "queued_at": now}
    return values | {"current": current, "conflict": conflict}


def _insert_many(conn: Connection, news: Sequence[NewInstance], now: float) -> list[InstanceRow]:
    """One row each, in the order given; the writer is alone, so nobody comes between."""
    if not news:
        return []
    statement = instance.insert().returning(instance, sort_by_parameter_order=True)
    return [
        InstanceRow.of(row) for row in conn.execute(statement, [_first_values(new, now) for new in news]).mappings()
    ]


def _receipt(row_id: int, new: NewInstance, outcome: Outcome) -> AuditEvent:
    name = "duplicate" if outcome == "duplicate" else "received"
    detail: dict[str, Any] = {"source": new.source, "bytes": new.size, "outcome": outcome}
    return AuditEvent(name, new.calling_ae, instance_id=row_id, detail=detail)


def put_outbox(conn: Connection, task: str, args: Sequence[int | str], priority: int, now: float) -> None:
    """A task message in the caller's transaction: it will be sent if, and only if, that commits."""
    conn.execute(
        outbox.insert().values(
            task=task, args=json.dumps(list(args)), queue=QUEUE_OF[task], priority=priority, created_at=now
        )
    )


def put_outbox_many(conn: Connection, messages: Sequence[tuple[str, int, int]], now: float) -> None:
    """As `put_outbox`, for (task, instance id, priority)."""
    values = [
        {"task": task, "args": json.dumps([row_id]), "queue": QUEUE_OF[task], "priority": priority, "created_at": now}
        for task, row_id, priority in messages
    ]
    if values:
        conn.execute(INSERT_OUTBOX, values)


def fetch(conn: Connection, instance_id: int) -> InstanceRow:
    """The row of that id in the caller's transaction. Raises NotFound."""
    row = _one(conn, sa.select(instance).where(instance.c.id == instance_id))
    if row is None:
        raise NotFound("unknown-instance", "there is no such instance")
    return row


def _duplicate(sop_uid: str, transfer_syntax: str, dataset_digest: str) -> sa.Select[Any]:
    return sa.select(instance).where(
        instance.c.sop_uid == sop_uid,
        instance.c.transfer_syntax == transfer_syntax,
        instance.c.dataset_digest == dataset_digest,
    )


def _one(conn: Connection, query: sa.Select[Any]) -> InstanceRow | None:
    row = conn.execute(query).mappings().first()
    return InstanceRow.of(row) if row is not None else None


def _all(conn: Connection, query: sa.Select[Any]) -> list[InstanceRow]:
    return [InstanceRow.of(row) for row in conn.execute(query).mappings()]
