"""The index under forwarding, and the outbox: what must still go out, to destinations and to the queue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import LeaseLost, NotFound
from gateway.index_intake import FORWARD_TASK, fetch, put_outbox
from gateway.index_ledger import touch_study
from gateway.index_rows import ForwardRow, InstanceRow, OutboxMessage
from gateway.index_schema import forward, instance, outbox
from gateway.instance import DELIVERED, ForwardState
from gateway.policy import IDENTIFIED

NEWEST: Final = 1000
"""Messages at the outbox's end among which those of an instance just taken in must be (else the sweep sends them)."""

# Built once: building an expression costs more than running it.
WAITING_MESSAGES: Final = (
    sa.select(outbox).order_by(outbox.c.priority, outbox.c.id).limit(sa.bindparam("most", type_=sa.Integer))
)
NEWEST_MESSAGES: Final = WAITING_MESSAGES.where(
    outbox.c.id > sa.select(sa.func.max(outbox.c.id)).scalar_subquery() - sa.bindparam("newest", type_=sa.Integer),
    outbox.c.args.in_(sa.bindparam("theirs", expanding=True)),
)
FORGET: Final = sa.delete(outbox).where(outbox.c.id.in_(sa.bindparam("sent", expanding=True)))

#: SQLite would sort all dead letters for the newest few, were it not told.
NEWEST_DEAD: Final = {
    dialect: f"forward.id IN (SELECT f.id FROM forward f {hint} "  # constants  # nosec B608
    "WHERE f.state = 'DEAD' ORDER BY f.id DESC LIMIT :most)"
    for dialect, hint in (("sqlite", "INDEXED BY ix_forward_buried"), ("postgresql", ""))
}


class Forwarding(Database):
    """One row per instance and destination; one destination's trouble never touches another's rows."""

    def forward_get(self, forward_id: int) -> ForwardRow:
        """The row of that id. Raises NotFound."""
        with self.read() as conn:
            return _fetch(conn, forward_id)

    def forward_claim(self, forward_id: int, owner: str, lease_seconds: float) -> ForwardRow | None:
        """Lease a waiting, due forward and count the attempt; None if there is nothing to do for this caller."""
        now = self.now()
        free = sa.or_(forward.c.lease_until.is_(None), forward.c.lease_until < now)
        waiting = forward.c.state == ForwardState.WAITING
        with self.write() as conn:
            taken = conn.execute(
                sa.update(forward)
                .where(forward.c.id == forward_id, waiting, free, forward.c.due_at <= now)
                .values(attempts=forward.c.attempts + 1, lease_owner=owner, lease_until=now + lease_seconds)
            )
            return _fetch(conn, forward_id) if taken.rowcount else None

    def forward_heartbeat(self, forward_id: int, owner: str, lease_seconds: float) -> None:
        """Prolong the lease. Raises LeaseLost."""
        with self.write(durable=False) as conn:
            _owned(conn, forward_id, owner)
            _set(conn, forward_id, lease_until=self.now() + lease_seconds)

    def forward_done(
        self,
        forward_id: int,
        owner: str,
        proof: str,
        *,
        representation: str = "envelope",
        reason: str | None = None,
        sent: tuple[str | None, str | None, str | None] = (None, None, None),
        commitment: bool = False,
    ) -> ForwardRow:
        """The destination has it. proof: machine word for what is known, e.g. 'accepted' or 'read-back'.

        representation: the form that was sent; reason: why it is not the one that the policy names first. sent: SOP
        class and instance UID and transfer syntax of what it has. commitment: to be asked for, from now on.
        """
        now = self.now()
        with self.write() as conn:
            row = _owned(conn, forward_id, owner)
            _set(
                conn, forward_id, state=ForwardState.SENT, sent_at=now, proof=proof, lease_owner=None, lease_until=None,
                due_at=None, reason=reason, representation=representation, sent_class=sent[0], sent_uid=sent[1],
                sent_syntax=sent[2], commit_due_at=now if commitment else None,
            )  # fmt: skip
            detail: Detail = {
                "destination": row.destination, "attempts": row.attempts, "kind": proof,
                "representation": representation, "reason": reason,
            }  # fmt: skip
            audit.append(conn, AuditEvent("forwarded", owner, instance_id=row.instance_id, detail=detail), now)
            return _fetch(conn, forward_id)

    def forward_failed(
        self, forward_id: int, owner: str, reason: str, *, due_at: float | None, count_attempt: bool = True
    ) -> ForwardRow:
        """It did not go out: try again at `due_at`, or, with None, dead letter until a person replays it.

        count_attempt=False: nothing was tried (circuit open), the attempt does not count.
        """
        dead = due_at is None
        with self.write() as conn:
            row = _owned(conn, forward_id, owner)
            _set(
                conn, forward_id, state=ForwardState.DEAD if dead else ForwardState.WAITING, due_at=due_at,
                reason=reason, lease_owner=None, lease_until=None,
                attempts=row.attempts if count_attempt else max(0, row.attempts - 1),
            )  # fmt: skip
            if dead or count_attempt:
                detail: Detail = {"destination": row.destination, "attempts": row.attempts, "reason": reason}
                name = "dead-letter" if dead else "forward-failed"
                event = AuditEvent(name, owner, "failure", row.instance_id, detail=detail)
                audit.append(conn, event, self.now())
            return _fetch(conn, forward_id)

    def sent_with_group(self, row: InstanceRow, destination: str) -> bool:
        """Whether the destination has the row's archive object already, sent for another instance of its group."""
        if row.member is None:
            return False
        joined = forward.join(instance, instance.c.id == forward.c.instance_id)
        query = sa.select(forward.c.id).select_from(joined).where(
            instance.c.archive_key == row.archive_key, instance.c.archive_digest == row.archive_digest,
            forward.c.destination == destination, forward.c.state.in_(DELIVERED),
            forward.c.representation == "envelope",
        )  # fmt: skip
        with self.read() as conn:
            return conn.execute(query.limit(1)).first() is not None

    def identities_at(self, study_uid: str, destination: str) -> set[bool]:
        """Whether a destination has objects of a study identified (True), under a pseudonym (False), or both."""
        joined = forward.join(instance, instance.c.id == forward.c.instance_id)
        query = sa.select(forward.c.representation).distinct().select_from(joined).where(
            instance.c.study_uid == study_uid, forward.c.destination == destination,
            forward.c.state.in_(DELIVERED),
        )  # fmt: skip
        with self.read() as conn:
            return {word in IDENTIFIED for word in conn.execute(query).scalars() if word is not None}

    def dead_letters(
        self, destination: str | None = None, reason: str | None = None, limit: int | None = None
    ) -> list[int]:
        """Ids of dead letters, oldest first: of a destination and for a reason where given."""
        query = sa.select(forward.c.id).where(forward.c.state == ForwardState.DEAD).order_by(forward.c.id)
        if destination is not None:
            query = query.where(forward.c.destination == destination)
        if reason is not None:
            query = query.where(forward.c.reason == reason)
        with self.read() as conn:
            return list(conn.execute(query.limit(limit)).scalars())

    def forward_replay(self, forward_id: int, actor: str) -> ForwardRow:
        """An administrator's replay of a dead letter (or of a waiting one, at once)."""
        now = self.now()
        with self.write() as conn:
            row = _fetch(conn, forward_id)
            if row.state not in DELIVERED:
                _set(
                    conn, forward_id, state=ForwardState.WAITING, attempts=0, due_at=now, queued_at=now, reason=None,
                    commit_attempts=0,
                )  # fmt: skip
                put_outbox(conn, FORWARD_TASK, [forward_id], fetch(conn, row.instance_id).priority, now)
            touch_study(conn, fetch(conn, row.instance_id).study_uid)
            detail = {"destination": row.destination, "kind": "forward"}
            audit.append(conn, AuditEvent("replay", actor, instance_id=row.instance_id, detail=detail), now)
            return _fetch(conn, forward_id)

    def forward_add(self, instance_id: int, destinations: Sequence[str]) -> list[ForwardRow]:
        """Forward an archived instance to further destinations; those it has already are left alone."""
        now = self.now()
        with self.write() as conn:
            row = fetch(conn, instance_id)
            names = sa.select(forward.c.destination).where(forward.c.instance_id == instance_id)
            known = set(conn.execute(names).scalars())
            for name in destinations:
                if name not in known:
                    put_forward(conn, row, name, now)
            made = conn.execute(
                sa.select(forward).where(forward.c.instance_id == instance_id, forward.c.destination.not_in(known))
            )
            rows = [ForwardRow.of(mapping) for mapping in made.mappings()]
            touch_study(conn, row.study_uid)
            return rows

    def forwards(
        self, instance_id: int | None = None, state: ForwardState | None = None, limit: int = 1000
    ) -> list[ForwardRow]:
        """Forwards of an instance and/or in a state, newest first."""
        query = sa.select(forward).order_by(forward.c.id.desc()).limit(limit)
        if instance_id is not None:
            query = query.where(forward.c.instance_id == instance_id)
        if state is ForwardState.DEAD and instance_id is None:
            query = query.where(sa.text(NEWEST_DEAD[self.dialect]).bindparams(most=limit))
        elif state is not None:
            query = query.where(forward.c.state == state)
        with self.read() as conn:
            return [ForwardRow.of(row) for row in conn.execute(query).mappings()]

    def forwards_overdue(self, limit: int, quiet_seconds: float, destination: str | None = None) -> list[ForwardRow]:
        """Waiting forwards that are due, leased by nobody, and not sent to the queue for `quiet_seconds`.

        destination: only those to that one.
        """
        now = self.now()
        query = (
            sa.select(forward)
            .where(
                forward.c.state == ForwardState.WAITING,
                forward.c.due_at <= now,
                sa.or_(forward.c.lease_until.is_(None), forward.c.lease_until < now),
                sa.or_(forward.c.queued_at.is_(None), forward.c.queued_at <= now - quiet_seconds),
            )
            .order_by(forward.c.priority, forward.c.id)
            .limit(limit)
        )
        if destination is not None:
            query = query.where(forward.c.destination == destination)
        with self.read() as conn:
            return [ForwardRow.of(row) for row in conn.execute(query).mappings()]

    def forwards_touch_queued(self, ids: Sequence[int]) -> None:
        """Note that these forwards were just sent to the queue (again)."""
        with self.write(durable=False) as conn:
            conn.execute(sa.update(forward).where(forward.c.id.in_(ids)).values(queued_at=self.now()))

    def outbox_due(self, limit: int = 500, instances: Sequence[int] | None = None) -> list[OutboxMessage]:
        """Messages not yet handed to the queue, most urgent first; of instances just made or changed, if given.

        For those only the newest messages are looked at: while the queue is down the outbox grows, and the door must
        not read all of it for each object.
        """
        query: sa.Select[Any] = WAITING_MESSAGES
        values: dict[str, Any] = {"most": limit}
        if instances is not None:
            query = NEWEST_MESSAGES
            values |= {"newest": NEWEST, "theirs": [json.dumps([number]) for number in instances]}
        with self.read() as conn:
            rows = conn.execute(query, values).all()
        return [OutboxMessage(row.id, row.task, tuple(json.loads(row.args)), row.queue, row.priority) for row in rows]

    def outbox_sent(self, ids: Sequence[int]) -> None:
        """The queue has these: forget them. Should it lose them, `overdue` finds their rows."""
        if ids:
            with self.write(durable=False) as conn:
                conn.execute(FORGET, {"sent": list(ids)})


def put_forward(conn: Connection, row: InstanceRow, destination: str, now: float) -> None:
    """A waiting forward and its message, in the caller's write transaction; there must be none yet."""
    made = conn.execute(
        forward.insert().values(
            instance_id=row.id, destination=destination, state=ForwardState.WAITING, attempts=0, due_at=now,
            queued_at=now, created_at=now, priority=row.priority,
        )
    )  # fmt: skip
    assert made.inserted_primary_key is not None  # a single-row INSERT always has one
    put_outbox(conn, FORWARD_TASK, [made.inserted_primary_key[0]], row.priority, now)


def forget_sent(conn: Connection, ids: Sequence[int], renamed: Mapping[str, str]) -> None:
    """In the transaction that shreds these instances: identified objects went out under their own SOP Instance UIDs.

    renamed: UID -> its pseudonym. Nobody can be asked for a commitment to such an object any more.
    """
    query = sa.select(forward.c.id, forward.c.sent_uid)
    for number, uid in conn.execute(query.where(forward.c.instance_id.in_(ids), forward.c.sent_uid.in_(renamed))).all():
        _set(conn, number, sent_uid=renamed[uid], commit_due_at=None)


def _fetch(conn: Connection, forward_id: int) -> ForwardRow:
    row = conn.execute(sa.select(forward).where(forward.c.id == forward_id)).mappings().first()
    if row is None:
        raise NotFound("unknown-forward", "there is no such forward")
    return ForwardRow.of(row)


def _owned(conn: Connection, forward_id: int, owner: str) -> ForwardRow:
    row = _fetch(conn, forward_id)
    if row.lease_owner != owner or row.state is not ForwardState.WAITING:
        raise LeaseLost("lease-lost", "another worker owns this forward now")
    return row


def _set(conn: Connection, forward_id: int, **values: object) -> None:
    conn.execute(sa.update(forward).where(forward.c.id == forward_id).values(**values))
