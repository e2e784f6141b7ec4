"""The index under backlogs: how long work waits, and coding anew, when there is time, what was coded in a hurry.

A row that waits for it has `recode_at`. The older archive object stays where it is, listed in `superseded`. `attempts`
of an archived row are those of coding it anew, counted before the work: what kills its workers is left in the end, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import LeaseLost
from gateway.index_care import put_superseded
from gateway.index_intake import FORWARD_TASK, fetch, put_outbox
from gateway.index_report import RECODE_FAILED, put_alert
from gateway.index_rows import CandidateFacts, InstanceRow
from gateway.index_schema import forward, instance, proof
from gateway.instance import DELIVERED, UNFINISHED, ForwardState, State

__all__ = ["RECODE_RETRY", "RECODE_TRIES", "Recoding", "put_recode"]

RECODE_RETRY: Final = 3600.0  # seconds until what failed, or killed its worker, is tried again; twice that then ...
RECODE_LONGEST: Final = 24 * 3600.0
RECODE_TRIES: Final = 8  # in some three days: longer than most outages
DONE: Final = (State.ARCHIVED, State.RELEASED)


class Recoding(Database):
    """Age of the backlog; instances whose archive object is to be made anew."""

    def backlog_age(self) -> float:
        """Seconds for which the oldest instance has waited that nobody has begun; 0 without any.

        What failed before does not count: it waits for something else than a worker.
        """
        c = instance.c
        waiting = sa.select(c.received_at).where(c.state == State.RECEIVED, c.attempts == 0, c.last_error.is_(None))
        with self.read() as conn:
            oldest = conn.execute(waiting.order_by(c.due_at).limit(1)).scalar()
        return max(0.0, self.now() - oldest) if oldest is not None else 0.0

    def is_idle(self) -> bool:
        """True while no instance waits to be archived."""
        query = sa.select(instance.c.id).where(instance.c.state.in_(UNFINISHED), instance.c.due_at <= self.now())
        with self.read() as conn:
            return conn.execute(query.limit(1)).first() is None

    def recode_due(self, limit: int) -> list[int]:
        """Ids of archived instances to be coded anew, the longest waiting first."""
        with self.read() as conn:
            query = sa.select(instance.c.id).where(*self._recodable())
            return list(conn.execute(query.order_by(instance.c.recode_at, instance.c.id).limit(limit)).scalars())

    def recode_claim(self, instance_id: int, owner: str, lease_seconds: float) -> InstanceRow | None:
        """Lease one of them and count the try; None: not to be coded anew, tried often enough, or another's. Whoever
        dies over it: it is due again after a while.
        """
        now = self.now()
        with self.write() as conn:
            attempts = conn.scalar(
                sa.select(instance.c.attempts).where(instance.c.id == instance_id, *self._recodable())
            )
            if attempts is None:
                return None
            if attempts >= RECODE_TRIES:
                self._leave(conn, instance_id, owner, "crashed")
                return None
            lease = {"lease_owner": owner, "lease_until": now + lease_seconds}
            values = {**lease, "attempts": attempts + 1, "recode_at": now + _pause(attempts + 1)}
            conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**values))
            return fetch(conn, instance_id)

    def recode_want(self, instance_id: int) -> None:
        """Have an archived instance coded anew: its archive object is damaged, and its source is here still."""
        with self.write() as conn:
            put_recode(conn, instance_id, self.now())

    def recode_given_up(self, instance_id: int, owner: str, reason: str) -> None:
        """The archive object that there is stays: no other is smaller, or none can be made."""
        with self.write() as conn:
            _owned(conn, instance_id, owner)
            self._free(conn, instance_id, recode_at=None)
            detail: Detail = {"outcome": "kept", "reason": reason}
            audit.append(conn, AuditEvent("recoded", owner, instance_id=instance_id, detail=detail), self.now())

    def recode_failed(self, instance_id: int, owner: str, reason: str) -> None:
        """Trouble that may pass: tried again after a while, RECODE_TRIES times in all; then left, and shown."""
        with self.write() as conn:
            row = _owned(conn, instance_id, owner)
            if row.attempts >= RECODE_TRIES:
                self._leave(conn, instance_id, owner, reason)
            else:
                self._free(conn, instance_id, recode_at=self.now() + _pause(row.attempts))

    def recode_spared(self, instance_id: int, owner: str) -> None:
        """Take the try back, for its worker is being stopped: should it be killed over it, the instance is not to
        blame. The lease stays, so what is done in time counts. Raises LeaseLost.
        """
        with self.write() as conn:
            row = _owned(conn, instance_id, owner)
            values = {"attempts": max(0, row.attempts - 1), "recode_at": self.now()}
            conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**values))

    def recode_done(
        self,
        instance_id: int,
        owner: str,
        candidate: CandidateFacts,
        key: str,
        *,
        forwards: Literal["keep", "send"] = "keep",
    ) -> InstanceRow:
        """The new object was proven, is in the archive and was read back: it is the instance's from now on.

        forwards: 'send' has it sent to every destination that got the older one as an envelope. Raises LeaseLost, also
        when the instance was shredded meanwhile.
        """
        now = self.now()
        with self.write() as conn:
            row = _owned(conn, instance_id, owner)
            if row.shredded_at is not None or candidate.patient_key != row.patient_key:
                raise LeaseLost("lease-lost", "the patient was shredded meanwhile")
            put_superseded(conn, row.id, str(row.archive_key), str(row.archive_digest), row.archived_size or 0, now)
            changes: dict[str, Any] = {
                name: getattr(candidate, name)
                for name in ("form", "reason", "envelope_uid", "coder", "carrier", "payload_bytes", "codec_bytes")
            }
            changes |= {"archive_key": key, "archive_digest": candidate.digest, "archived_size": candidate.size}
            changes |= {"candidate_digest": candidate.digest, "candidate_size": candidate.size, "member": None}
            self._free(conn, row.id, recode_at=None, last_error=None, verified_at=now, archived_at=now, **changes)
            detail: Detail = {
                "outcome": "smaller" if candidate.size < (row.archived_size or 0) else "anew",
                "bytes": candidate.size, "coder": candidate.coder, "envelope_uid": candidate.envelope_uid,
            }  # fmt: skip
            verified = AuditEvent("verified", owner, instance_id=row.id)
            seq = audit.append_many(
                conn, [AuditEvent("recoded", owner, instance_id=row.id, detail=detail), verified], now
            )
            shared = {"shared_with": _shared(conn, row.id, candidate)}
            facts = json.dumps({**candidate.facts, **shared, "verified_seq": seq}, sort_keys=True)
            wraps = json.dumps(candidate.wraps, sort_keys=True)
            conn.execute(sa.update(proof).where(proof.c.instance_id == row.id).values(facts=facts, wraps=wraps))
            if forwards == "send":
                _send_again(conn, row, now)
            return fetch(conn, row.id)

    def _recodable(self) -> Sequence[sa.ColumnElement[bool]]:
        now, c = self.now(), instance.c
        free = sa.or_(c.lease_until.is_(None), c.lease_until < now)
        return (c.recode_at <= now, c.state.in_(DONE), c.shredded_at.is_(None), free)

    def _leave(self, conn: Connection, instance_id: int, owner: str, reason: str) -> None:
        """The archive object that there is stays, among the failures; `Index.retry` has it tried again."""
        self._free(conn, instance_id, recode_at=None, last_error=f"{RECODE_FAILED}{reason}"[:64])
        detail: Detail = {"outcome": "kept", "reason": reason, "count": RECODE_TRIES}
        audit.append(conn, AuditEvent("recoded", owner, "failure", instance_id, detail=detail), self.now())
        message = (
            f"what was coded in a hurry could not be coded anew in {RECODE_TRIES} tries ({reason}): it stays as it is"
        )
        put_alert(conn, "recode-failed", "archive", message, "warning", self.now())

    def _free(self, conn: Connection, instance_id: int, **values: Any) -> None:
        changes = {"lease_owner": None, "lease_until": None, **values}
        conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**changes))


def put_recode(conn: Connection, instance_id: int, now: float) -> None:
    """As `Recoding.recode_want`, in the caller's write transaction. The tries of what waits already go on."""
    fresh = sa.and_(instance.c.id == instance_id, instance.c.recode_at.is_(None))
    conn.execute(sa.update(instance).where(fresh).values(attempts=0, last_error=None))
    conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(recode_at=now))


def _pause(attempts: int) -> float:
    """Seconds until the next try after so many."""
    return min(RECODE_LONGEST, RECODE_RETRY * 2.0 ** (attempts - 1))


def _owned(conn: Connection, instance_id: int, owner: str) -> InstanceRow:
    row = fetch(conn, instance_id)
    if row.lease_owner != owner:
        raise LeaseLost("lease-lost", "another worker owns this instance now")
    return row


def _shared(conn: Connection, instance_id: int, candidate: CandidateFacts) -> list[str]:
    """Whoever can read one of the instance's objects: the older one stays readable for its recipients."""
    text = conn.execute(sa.select(proof.c.facts).where(proof.c.instance_id == instance_id)).scalar()
    older = json.loads(text).get("shared_with") if text is not None else None
    return sorted({*(older or ()), *(candidate.facts.get("shared_with") or ())})


def _send_again(conn: Connection, row: InstanceRow, now: float) -> None:
    same = sa.and_(
        forward.c.instance_id == row.id, forward.c.state.in_(DELIVERED), forward.c.representation == "envelope"
    )
    for number in conn.execute(sa.select(forward.c.id).where(same)).scalars().all():
        values = {"state": ForwardState.WAITING, "attempts": 0, "due_at": now, "queued_at": now, "commit_due_at": None}
        conn.execute(sa.update(forward).where(forward.c.id == number).values(**values))
        put_outbox(conn, FORWARD_TASK, [number], row.priority, now)
