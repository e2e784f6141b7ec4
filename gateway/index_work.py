"""The index under the workers: leases, states, proofs, and what is overdue.

A claim is a lease with an owner; it is taken and its attempt counted in one commit *before* any work, so that a file
which kills its worker is counted too. Every change of state is checked against `gateway.instance.TRANSITIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import LeaseLost
from gateway.index_forward import put_forward
from gateway.index_intake import ENCODE_TASK, INDEX_TASK, fetch, put_outbox
from gateway.index_recode import put_recode
from gateway.index_report import RECODE_FAILED
from gateway.index_rows import CandidateFacts, InstanceRow
from gateway.index_schema import damage, forward, instance, proof
from gateway.instance import DELIVERED, UNFINISHED, Form, ForwardState, State, check_transition


class Work(Database):
    """From RECEIVED to RELEASED."""

    def claim(self, instance_id: int, owner: str, lease_seconds: float) -> InstanceRow | None:
        """Lease an unfinished, due instance and count the attempt. None: leased by another, not due, or finished."""
        now = self.now()
        free = sa.or_(instance.c.lease_until.is_(None), instance.c.lease_until < now)
        with self.write() as conn:
            taken = conn.execute(
                sa.update(instance)
                .where(instance.c.id == instance_id, instance.c.state.in_(UNFINISHED), free, instance.c.due_at <= now)
                .values(attempts=instance.c.attempts + 1, lease_owner=owner, lease_until=now + lease_seconds)
            )
            return fetch(conn, instance_id) if taken.rowcount else None

    def claim_mates(
        self, row: InstanceRow, owner: str, lease_seconds: float, *, limit: int, size_limit: int
    ) -> list[InstanceRow]:
        """Lease the oldest waiting instances of the row's series, at most `limit` of `size_limit` bytes, in one commit.

        Only such as nobody has claimed before, counted or not: what a worker died over, or failed at, must not take
        others with it again.
        """
        now = self.now()
        waiting = sa.select(instance.c.id, instance.c.size).where(
            instance.c.study_uid == row.study_uid,
            instance.c.series_uid == row.series_uid,
            instance.c.state == State.RECEIVED,
            instance.c.attempts == 0,
            instance.c.last_error.is_(None),
            instance.c.lease_until.is_(None),
            instance.c.due_at <= now,
        )
        with self.write() as conn:
            ids: list[int] = []
            for found, size in conn.execute(waiting.order_by(instance.c.priority, instance.c.id).limit(limit)):
                size_limit -= size
                if size_limit < 0:
                    break
                ids.append(found)
            conn.execute(
                sa.update(instance)
                .where(instance.c.id.in_(ids))
                .values(attempts=1, lease_owner=owner, lease_until=now + lease_seconds)
            )
            return [fetch(conn, each) for each in ids]

    def heartbeat(self, instance_id: int, owner: str, lease_seconds: float) -> None:
        """Prolong the lease. Raises LeaseLost if another has it or nobody."""
        with self.write(durable=False) as conn:
            self._owned(conn, instance_id, owner)
            self._set(conn, instance_id, lease_until=self.now() + lease_seconds)

    def release_claim(
        self, instance_id: int, owner: str, *, due_at: float, reason: str | None, count_attempt: bool = True
    ) -> None:
        """Give the lease back, to be tried again at `due_at`. count_attempt=False: it was not the file's fault."""
        with self.write() as conn:
            row = self._owned(conn, instance_id, owner)
            attempts = row.attempts if count_attempt else max(0, row.attempts - 1)
            self._set(
                conn, instance_id, lease_owner=None, lease_until=None, due_at=due_at, last_error=reason,
                attempts=attempts,
            )  # fmt: skip

    def set_candidate(self, instance_id: int, owner: str, candidate: CandidateFacts) -> InstanceRow:
        """An archive object was stored durably under its digest: -> CANDIDATE. Wraps are committed with it."""
        return self.set_candidates(owner, {instance_id: candidate})[0]

    def set_candidates(self, owner: str, candidates: Mapping[int, CandidateFacts]) -> list[InstanceRow]:
        """The same for all instances of a group's object in one commit: a row never names half of a group."""
        with self.write() as conn:
            return [self._set_candidate(conn, each, owner, facts) for each, facts in candidates.items()]

    def _set_candidate(self, conn: Connection, instance_id: int, owner: str, candidate: CandidateFacts) -> InstanceRow:
        self._move(conn, instance_id, owner, State.CANDIDATE)
        self._set(
            conn,
            instance_id,
            candidate_digest=candidate.digest,
            candidate_size=candidate.size,
            form=candidate.form,
            reason=candidate.reason,
            envelope_uid=candidate.envelope_uid,
            coder=candidate.coder,
            carrier=candidate.carrier,
            payload_bytes=candidate.payload_bytes,
            codec_bytes=candidate.codec_bytes,
            raw_pixel_bytes=candidate.raw_pixel_bytes,
            patient_key=candidate.patient_key,
            member=candidate.member,
            verified_at=None,
            recode_at=self.now() if candidate.quick else None,
        )
        conn.execute(sa.delete(proof).where(proof.c.instance_id == instance_id))
        conn.execute(
            proof.insert().values(
                instance_id=instance_id,
                facts=json.dumps(dict(candidate.facts), sort_keys=True),
                wraps=json.dumps(candidate.wraps, sort_keys=True),
            )
        )
        event = "passthrough" if candidate.form is Form.PASSTHROUGH else "candidate"
        detail = {"reason": candidate.reason, "bytes": candidate.size, "coder": candidate.coder}
        self._note(conn, event, owner, instance_id, detail)
        return fetch(conn, instance_id)

    def drop_candidate(self, instance_id: int, owner: str, reason: str) -> InstanceRow:
        """The candidate failed its proof or was lost: -> RECEIVED, the lease stays. Audited as 'quarantined'."""
        with self.write() as conn:
            self._move(conn, instance_id, owner, State.RECEIVED)
            self._set(
                conn, instance_id, candidate_digest=None, candidate_size=None, envelope_uid=None, form=None,
                verified_at=None, last_error=reason, member=None,
            )  # fmt: skip
            self._note(conn, "quarantined", owner, instance_id, {"reason": reason}, failed=True)
            return fetch(conn, instance_id)

    def set_verified(self, instance_id: int, owner: str, facts: Mapping[str, Any] | None = None) -> InstanceRow:
        """Another process rebuilt the received file from the candidate: -> VERIFIED.

        `facts` join the recorded ones, with the number of this event in the trail as `verified_seq`.
        """
        with self.write() as conn:
            self._move(conn, instance_id, owner, State.VERIFIED)
            self._set(conn, instance_id, verified_at=self.now())
            seq = self._note(conn, "verified", owner, instance_id, {})
            merged = {**self._facts(conn, instance_id), **(facts or {}), "verified_seq": seq}
            text = json.dumps(merged, sort_keys=True)
            conn.execute(sa.update(proof).where(proof.c.instance_id == instance_id).values(facts=text))
            return fetch(conn, instance_id)

    def set_archived(
        self, instance_id: int, owner: str, key: str, digest: str, size: int, destinations: Sequence[str] = ()
    ) -> InstanceRow:
        """It is in the archive and was read back: -> ARCHIVED. Makes one forward and its message per destination."""
        now = self.now()
        with self.write() as conn:
            row = self._move(conn, instance_id, owner, State.ARCHIVED)
            self._set(
                conn, instance_id, archive_key=key, archive_digest=digest, archived_size=size, archived_at=now,
                lease_owner=None, lease_until=None, due_at=None, last_error=None,
                **({"attempts": 0} if row.recode_at is not None else {}),
            )  # fmt: skip
            for destination in destinations:
                put_forward(conn, row, destination, now)
            self._note(conn, "archived", owner, instance_id, {"bytes": size, "envelope_uid": row.envelope_uid})
            return fetch(conn, instance_id)

    def set_released(self, instance_id: int, actor: str = "sweep") -> InstanceRow:
        """The policy's proofs are there, the spool's copy may go: -> RELEASED. Commit first, delete afterwards.

        One that is RELEASED stays as it is: the sweep and a shredding may come to the same.
        """
        with self.write() as conn:
            row = fetch(conn, instance_id)
            if row.state is State.RELEASED:
                return row
            check_transition(row.state, State.RELEASED)
            self._set(conn, instance_id, state=State.RELEASED, released_at=self.now())
            self._note(conn, "released", actor, instance_id, {})
            return fetch(conn, instance_id)

    def retry(self, instance_id: int, actor: str) -> InstanceRow:
        """An administrator's replay of an unfinished instance: attempts start again, due now, message sent. One that
        was tried in vain to be coded anew is to be tried again.
        """
        now = self.now()
        with self.write() as conn:
            row = fetch(conn, instance_id)
            if row.state in UNFINISHED:
                self._set(conn, instance_id, attempts=0, due_at=now, queued_at=now, last_error=None)
                put_outbox(conn, ENCODE_TASK, [instance_id], row.priority, now)
            elif (row.last_error or "").startswith(RECODE_FAILED) and row.shredded_at is None:
                put_recode(conn, instance_id, now)
            if row.indexed_at is None:
                put_outbox(conn, INDEX_TASK, [instance_id], row.priority, now)
            self._note(conn, "replay", actor, instance_id, {"kind": "instance"})
            return fetch(conn, instance_id)

    def facts(self, instance_id: int) -> dict[str, Any]:
        """What set_candidate and set_verified recorded; empty before."""
        with self.read() as conn:
            return self._facts(conn, instance_id)

    def wraps(self, instance_id: int) -> Any:
        """The wrapped keys as recorded with the candidate; None before."""
        with self.read() as conn:
            text = conn.execute(sa.select(proof.c.wraps).where(proof.c.instance_id == instance_id)).scalar()
        return json.loads(text) if text is not None else None

    def overdue(self, limit: int, quiet_seconds: float) -> list[InstanceRow]:
        """Unfinished instances that are due, leased by nobody, and not sent to the queue for `quiet_seconds`."""
        now = self.now()
        query = sa.select(instance).where(
            instance.c.state.in_(UNFINISHED),
            instance.c.due_at <= now,
            sa.or_(instance.c.lease_until.is_(None), instance.c.lease_until < now),
            sa.or_(instance.c.queued_at.is_(None), instance.c.queued_at <= now - quiet_seconds),
        )
        return self._list(query.order_by(instance.c.priority, instance.c.id).limit(limit))

    def unindexed(self, limit: int, quiet_seconds: float) -> list[InstanceRow]:
        """Instances whose attributes were not read yet, not sent to the queue for `quiet_seconds`."""
        query = sa.select(instance).where(
            instance.c.indexed_at.is_(None),
            sa.or_(instance.c.queued_at.is_(None), instance.c.queued_at <= self.now() - quiet_seconds),
        )
        return self._list(query.order_by(instance.c.priority, instance.c.id).limit(limit))

    def candidate_digests(self) -> set[str]:
        """Digests of the stored candidates that unfinished instances still need."""
        query = sa.select(instance.c.candidate_digest).where(
            instance.c.state.in_(UNFINISHED), instance.c.candidate_digest.is_not(None)
        )
        with self.read() as conn:
            return set(conn.execute(query).scalars())

    def candidate_needed(self, digest: str) -> bool:
        """Whether an unfinished instance still needs the stored candidate of that digest."""
        query = sa.select(instance.c.id).where(instance.c.candidate_digest == digest, instance.c.state.in_(UNFINISHED))
        with self.read() as conn:
            return conn.execute(query.limit(1)).first() is not None

    def touch_queued(self, ids: Sequence[int]) -> None:
        """Note that these instances were just sent to the queue (again)."""
        with self.write(durable=False) as conn:
            conn.execute(sa.update(instance).where(instance.c.id.in_(ids)).values(queued_at=self.now()))

    def releasable(
        self, limit: int, *, need_sent: bool = True, archived_before: float | None = None, after: int = 0
    ) -> list[InstanceRow]:
        """Archived, indexed instances whose forwards are all sent, and committed to where that is wanted (need_sent),
        or at least not waiting any more; by number, behind `after`.

        archived_before: seconds since the epoch; None: whenever. Not while the archive object is known to be damaged:
        the source may be the last copy.
        """
        lacking = sa.or_(forward.c.state.not_in(DELIVERED), forward.c.commit_due_at.is_not(None))
        blocking = lacking if need_sent else forward.c.state == ForwardState.WAITING
        open_forward = sa.exists().where(forward.c.instance_id == instance.c.id, blocking)
        broken = sa.exists().where(damage.c.archive_key == instance.c.archive_key, damage.c.mended_at.is_(None))
        query = sa.select(instance).where(
            instance.c.state == State.ARCHIVED, instance.c.indexed_at.is_not(None), ~open_forward, ~broken,
            instance.c.id > after,
        )  # fmt: skip
        if archived_before is not None:
            query = query.where(instance.c.archived_at < archived_before)
        return self._list(query.order_by(instance.c.id).limit(limit))

    def _list(self, query: sa.Select[Any]) -> list[InstanceRow]:
        with self.read() as conn:
            return [InstanceRow.of(row) for row in conn.execute(query).mappings()]

    def _owned(self, conn: Connection, instance_id: int, owner: str) -> InstanceRow:
        """The row, if `owner` still holds it; an expired lease that nobody took over still counts."""
        row = fetch(conn, instance_id)
        if row.lease_owner != owner:
            raise LeaseLost("lease-lost", "another worker owns this instance now")
        return row

    def _move(self, conn: Connection, instance_id: int, owner: str, new: State) -> InstanceRow:
        row = self._owned(conn, instance_id, owner)
        check_transition(row.state, new)
        self._set(conn, instance_id, state=new)
        return row

    def _set(self, conn: Connection, instance_id: int, **values: Any) -> None:
        conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**values))

    def _facts(self, conn: Connection, instance_id: int) -> dict[str, Any]:
        text = conn.execute(sa.select(proof.c.facts).where(proof.c.instance_id == instance_id)).scalar()
        return dict(json.loads(text)) if text is not None else {}

    def _note(
        self, conn: Connection, event: str, actor: str, instance_id: int, detail: Detail, failed: bool = False
    ) -> int:
        outcome: audit.AuditOutcome = "failure" if failed else "success"
        return audit.append(conn, AuditEvent(event, actor, outcome, instance_id, detail=detail), self.now())
