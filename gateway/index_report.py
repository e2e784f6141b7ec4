"""The index under status, admin page and metrics: totals, failures by reason, alerts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent
from gateway.database import Database
from gateway.errors import NotFound
from gateway.index_rows import AlertRow, Counts, FailureGroup, InstanceRow
from gateway.index_schema import alert, forward, instance, outbox
from gateway.index_schema_admin import instance_tally, row_tally
from gateway.instance import Form, ForwardState, State

MAX_IDS: Final = 100
RECODE_FAILED: Final = "recode-"
"""How `last_error` begins of an archived instance that is not tried any more to be coded anew."""
MOST_COUNTED: Final = 10_000
ARCHIVED: Final = (State.ARCHIVED, State.RELEASED)
#: In the words of the partial indexes, or the database does not see that they fit: literals, not parameters.
PASSED: Final = sa.text("instance.form = 'PASSTHROUGH'")
DEAD: Final = sa.text("forward.state = 'DEAD'")


class Report(Database):
    """Questions that people ask."""

    def counts(self) -> Counts:
        """Totals as of now, in one transaction; read from the tallies that triggers keep, however many rows there are.

        outbox, open_alerts: not counted beyond MOST_COUNTED.
        """
        with self.read() as conn:
            instances = conn.execute(sa.select(instance_tally)).all()
            rows = conn.execute(sa.select(row_tally)).all()
            done = [row for row in instances if row.state in ARCHIVED]
            records = sum(int(row.bytes) for row in rows if row.topic == "stego_export")
            return Counts(
                by_state=_summed(instances, "state"),
                by_form=_summed([row for row in instances if row.form], "form"),
                passthrough_by_reason=_summed([row for row in instances if row.form == Form.PASSTHROUGH], "reason"),
                forwards=_nested(rows, "forward"),
                commitments=_nested(rows, "commitment"),
                by_modality=_modalities(done),
                bytes_in=sum(int(row.bytes_in) for row in done),
                bytes_archived=sum(int(row.bytes_archived) for row in done) + records,
                raw_pixel_bytes=sum(int(row.raw_pixel_bytes) for row in done),
                codec_bytes=sum(int(row.codec_bytes) for row in done),
                payload_bytes=sum(int(row.payload_bytes) for row in done),
                conflicts=sum(int(row.instances) for row in instances if row.conflict),
                outbox=count_some(conn, sa.select(outbox.c.id)),
                open_alerts=count_some(conn, sa.select(alert.c.id).where(alert.c.acked_at.is_(None))),
                oldest_unfinished_at=_oldest(conn, {row.priority for row in instances if row.priority >= 0}),
                studies=_summed([row for row in rows if row.topic == "study"], "a", "rows"),
                shredded=sum(int(row.instances) for row in instances if row.shredded),
                waiting=_summed([row for row in instances if row.priority >= 0], "priority"),
            )

    def queue_ages(self) -> dict[str, float]:
        """Seconds that the oldest work waits which is due and leased by nobody, by queue; 0: none. In one transaction.

        From the rows, not from the messages: a queue that lost everything still shows what waits.
        """
        i, f, now = instance.c, forward.c, self.now()
        free, due = (  # each in the order of a partial index, one walk for each priority and destination
            sa.and_(c.due_at.is_not(None), c.due_at <= now, sa.or_(c.lease_until.is_(None), c.lease_until < now))
            for c in (i, f)
        )
        tally, rows = instance_tally.c, row_tally.c
        priorities = sa.select(tally.priority).where(tally.priority >= 0).distinct()
        waiting = sa.select(rows.a).where(rows.topic == "forward", rows.b == ForwardState.WAITING)
        unindexed = sa.select(sa.func.min(i.received_at)).where(i.indexed_at.is_(None))
        encode = sa.select(sa.func.min(i.received_at)).where(free, i.priority == sa.bindparam("name"))
        send = sa.select(sa.func.min(f.created_at)).where(due, f.destination == sa.bindparam("name"))
        with self.read() as conn:
            found = {
                "index": [conn.execute(unindexed).scalar()],
                "encode": [conn.execute(encode, {"name": n}).scalar() for n in conn.execute(priorities).scalars()],
                "forward": [conn.execute(send, {"name": n}).scalar() for n in conn.execute(waiting).scalars()],
            }
        return {queue: max([0.0, *(now - at for at in ats if at is not None)]) for queue, ats in found.items()}

    def anything_archived(self) -> bool:
        """True once an object was archived or is about to be: from then on the key ring must not be lost."""
        with self.read() as conn:
            query = sa.select(instance.c.id).where(instance.c.candidate_digest.is_not(None)).limit(1)
            return conn.execute(query).first() is not None

    def archived_sample(self, count: int, before: float) -> list[InstanceRow]:
        """Up to `count` instances that were archived before then (seconds since the epoch), drawn at random."""
        query = sa.select(instance).where(instance.c.archived_at < before).order_by(sa.func.random()).limit(count)
        with self.read() as conn:
            return [InstanceRow.of(row) for row in conn.execute(query).mappings()]

    def sealed_to(self, key_id: str) -> bool:
        """Whether an archived object is sealed to this patient key."""
        c = instance.c
        query = sa.select(c.id).where(c.patient_key == key_id, c.archived_at.is_not(None)).limit(1)
        with self.read() as conn:
            return conn.execute(query).first() is not None

    def patient_keys(self) -> set[str]:
        """Ids of every patient key that an instance is sealed to."""
        with self.read() as conn:
            found = conn.execute(sa.select(instance.c.patient_key).distinct()).scalars()
            return {key_id for key_id in found if key_id}

    def failures(self) -> list[FailureGroup]:
        """What failed, grouped by kind, reason and destination, most frequent first, each with its newest ids."""
        found: Counter[tuple[str, str, str | None]] = Counter()
        with self.read() as conn:
            for row in conn.execute(sa.select(instance_tally)):
                if row.error:
                    found["instance", row.error, None] += int(row.instances)
                if row.form == Form.PASSTHROUGH:
                    found["passthrough", row.reason, None] += int(row.instances)
            error = instance.c.last_error  # the tally counts those of unfinished instances
            left = sa.and_(error.is_not(None), error.startswith(RECODE_FAILED))
            for row in conn.execute(sa.select(error, sa.func.count().label("rows")).where(left).group_by(error)):
                found["instance", row.last_error, None] += int(row.rows)
            dead = sa.and_(row_tally.c.topic == "forward", row_tally.c.b == ForwardState.DEAD)
            for row in conn.execute(sa.select(row_tally).where(dead)):
                found["dead-letter", row.c, row.a] = int(row.rows)
            groups = [
                FailureGroup(key[0], key[1] or "unknown", key[2], count, tuple(conn.execute(_newest(*key)).scalars()))
                for key, count in found.items()
            ]
        return sorted(groups, key=lambda group: -group.count)

    def failed_for(self, reason: str) -> list[int]:
        """Ids of all instances that wait for another try after that reason, or were left after it, oldest first."""
        c = instance.c
        query = sa.select(c.id).where(c.last_error.is_not(None), c.last_error == reason)
        with self.read() as conn:
            return list(conn.execute(query.order_by(c.last_error, c.id)).scalars())

    def alert_raise(self, kind: str, subject: str, message: str, severity: str = "warning") -> AlertRow:
        """Open an alert, or count on the open one of the same kind and subject. No patient data in any argument."""
        with self.write() as conn:
            return put_alert(conn, kind, subject, message, severity, self.now())

    def alert_over(self, kind: str, subject: str) -> None:
        """What the open alert of this kind and subject told of is over; nothing to do without one."""
        same = (alert.c.kind == kind, alert.c.subject == subject, alert.c.acked_at.is_(None))
        with self.read() as conn:
            if conn.execute(sa.select(alert.c.id).where(*same).limit(1)).first() is None:
                return
        with self.write() as conn:
            conn.execute(sa.update(alert).where(*same).values(acked_at=self.now(), acked_by="over"))

    def alerts(self, open_only: bool = True, limit: int = 200) -> list[AlertRow]:
        """Alerts, latest first."""
        query = sa.select(alert).order_by(alert.c.last_at.desc(), alert.c.id.desc()).limit(limit)
        if open_only:
            query = query.where(alert.c.acked_at.is_(None))
        with self.read() as conn:
            return [AlertRow.of(row) for row in conn.execute(query).mappings()]

    def alert_ack(self, alert_id: int, actor: str) -> None:
        """A person has seen it. Raises NotFound for an unknown or already acknowledged alert."""
        now = self.now()
        with self.write() as conn:
            open_ = sa.and_(alert.c.id == alert_id, alert.c.acked_at.is_(None))
            done = conn.execute(sa.update(alert).where(open_).values(acked_at=now, acked_by=actor[:64]))
            if not done.rowcount:
                raise NotFound("unknown-alert", "there is no such open alert")
            audit.append(conn, AuditEvent("alert-acknowledged", actor, detail={"alert_id": alert_id}), now)


def put_alert(conn: Connection, kind: str, subject: str, message: str, severity: str, now: float) -> AlertRow:
    """As `Report.alert_raise`, in the caller's write transaction."""
    same = sa.and_(alert.c.kind == kind, alert.c.subject == subject, alert.c.acked_at.is_(None))
    known = conn.execute(sa.update(alert).where(same).values(count=alert.c.count + 1, last_at=now))
    if not known.rowcount:
        conn.execute(
            alert.insert().values(
                kind=kind, subject=subject, severity=severity, message=message[:200], count=1, raised_at=now,
                last_at=now,
            )
        )  # fmt: skip
    return AlertRow.of(conn.execute(sa.select(alert).where(same)).mappings().one())


def count_some(conn: Connection, query: sa.Select[Any], most: int = MOST_COUNTED) -> int:
    """How many rows a query finds, `most` at most: counting must not cost more the worse things are."""
    return int(conn.execute(sa.select(sa.func.count()).select_from(query.limit(most).subquery())).scalar_one())


def _summed(rows: Iterable[Any], name: str, number: str = "instances") -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        key = str(getattr(row, name))
        found[key] = found.get(key, 0) + int(getattr(row, number))
    return found


def _nested(rows: Iterable[Any], topic: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.topic == topic:
            states = found.setdefault(row.a, {})
            states[row.b] = states.get(row.b, 0) + int(row.rows)
    return found


def _modalities(rows: Iterable[Any]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        sums = found.setdefault(row.modality or "?", {"instances": 0, "bytes_in": 0, "bytes_archived": 0})
        for name in sums:
            sums[name] += int(getattr(row, name))
    return found


def _newest(kind: str, reason: str, destination: str | None) -> sa.Select[Any]:
    """Ids of a group, newest first, by the partial index of its kind."""
    ways: dict[str, tuple[sa.Table, sa.Column[Any], Any]] = {
        "instance": (instance, instance.c.last_error, instance.c.last_error.is_not(None)),
        "passthrough": (instance, instance.c.reason, PASSED),
        "dead-letter": (forward, forward.c.reason, DEAD),
    }
    table, column, where = ways[kind]
    query = sa.select(table.c.id).where(where, column == reason if reason else column.is_(None))
    if destination is not None:
        query = query.where(forward.c.destination == destination)
    return query.order_by(column.desc(), table.c.id.desc()).limit(MAX_IDS)


def _oldest(conn: Connection, priorities: Iterable[int]) -> float | None:
    """When the oldest unfinished instance came."""
    c = instance.c
    query = sa.select(sa.func.min(c.received_at)).where(c.due_at.is_not(None), c.priority == sa.bindparam("priority"))
    found = [conn.execute(query, {"priority": each}).scalar() for each in priorities]
    return min((at for at in found if at is not None), default=None)
