"""The index under status, admin page and metrics: totals, failures by reason, alerts."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent
from gateway.database import Database
from gateway.errors import NotFound
from gateway.index_rows import AlertRow, Counts, FailureGroup, InstanceRow
from gateway.index_schema import alert, commitment, forward, instance, outbox, stego_export
from gateway.instance import UNFINISHED, Form, ForwardState

MAX_IDS: Final = 100


class Report(Database):
    """Questions that people ask."""

    def counts(self) -> Counts:
        """Totals as of now, in one transaction."""
        c = instance.c
        archived = c.archived_at.is_not(None)
        with self.read() as conn:
            sums = conn.execute(
                sa.select(
                    *(
                        sa.func.coalesce(sa.func.sum(column), 0)
                        for column in (c.size, c.archived_size, c.raw_pixel_bytes, c.codec_bytes, c.payload_bytes)
                    )
                ).where(archived)
            ).one()
            records = conn.execute(sa.select(sa.func.coalesce(sa.func.sum(stego_export.c.record_size), 0))).scalar_one()
            return Counts(
                by_state=_grouped(conn, c.state),
                by_form=_grouped(conn, c.form, c.form.is_not(None)),
                passthrough_by_reason=_grouped(conn, c.reason, c.form == Form.PASSTHROUGH),
                forwards=_nested(conn, forward.c.destination, forward.c.state),
                commitments=_nested(conn, commitment.c.role, commitment.c.state),
                by_modality=_modalities(conn),
                bytes_in=int(sums[0]),
                bytes_archived=int(sums[1]) + int(records),
                raw_pixel_bytes=int(sums[2]),
                codec_bytes=int(sums[3]),
                payload_bytes=int(sums[4]),
                conflicts=_count(conn, instance, c.conflict),
                outbox=_count(conn, outbox),
                open_alerts=_count(conn, alert, alert.c.acked_at.is_(None)),
                oldest_unfinished_at=conn.execute(
                    sa.select(sa.func.min(c.received_at)).where(c.state.in_(UNFINISHED))
                ).scalar(),
            )

    def queue_ages(self) -> dict[str, float]:
        """Seconds that the oldest work waits which is due and leased by nobody, by queue; 0: none. In one transaction.

        From the rows, not from the messages: a queue that lost everything still shows what waits.
        """
        i, f, now = instance.c, forward.c, self.now()
        free, due = (
            sa.and_(sa.or_(c.lease_until.is_(None), c.lease_until < now), sa.or_(c.due_at.is_(None), c.due_at <= now))
            for c in (i, f)
        )
        oldest = {
            "index": sa.select(sa.func.min(i.received_at)).where(i.indexed_at.is_(None)),
            "encode": sa.select(sa.func.min(i.received_at)).where(i.state.in_(UNFINISHED), free),
            "forward": sa.select(sa.func.min(f.created_at)).where(f.state == ForwardState.WAITING, due),
        }
        with self.read() as conn:
            found = {queue: conn.execute(query).scalar() for queue, query in oldest.items()}
        return {queue: 0.0 if at is None else max(0.0, now - at) for queue, at in found.items()}

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
        """What failed, grouped by kind, reason and destination, most frequent first."""
        c, f = instance.c, forward.c
        waiting = sa.and_(c.state.in_(UNFINISHED), c.last_error.is_not(None))
        with self.read() as conn:
            groups = [
                *_failures(conn, "instance", c.id, c.last_error, None, waiting),
                *_failures(conn, "passthrough", c.id, c.reason, None, c.form == Form.PASSTHROUGH),
                *_failures(conn, "dead-letter", f.id, f.reason, f.destination, f.state == ForwardState.DEAD),
            ]
        return sorted(groups, key=lambda group: -group.count)

    def alert_raise(self, kind: str, subject: str, message: str, severity: str = "warning") -> AlertRow:
        """Open an alert, or count on the open one of the same kind and subject. No patient data in any argument."""
        with self.write() as conn:
            return put_alert(conn, kind, subject, message, severity, self.now())

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


def _count(conn: Connection, table: sa.Table, *where: Any) -> int:
    return int(conn.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one())


def _grouped(conn: Connection, column: sa.Column[Any], *where: Any) -> dict[str, int]:
    rows = conn.execute(sa.select(column, sa.func.count()).where(*where).group_by(column))
    return {str(name): int(count) for name, count in rows}


def _nested(conn: Connection, outer: sa.Column[Any], inner: sa.Column[Any]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, state, count in conn.execute(sa.select(outer, inner, sa.func.count()).group_by(outer, inner)):
        found.setdefault(name, {})[state] = int(count)
    return found


def _modalities(conn: Connection) -> dict[str, dict[str, int]]:
    c = instance.c
    rows = conn.execute(
        sa.select(c.modality, sa.func.count(), sa.func.sum(c.size), sa.func.sum(c.archived_size))
        .where(c.archived_at.is_not(None))
        .group_by(c.modality)
    )
    return {
        str(name or "?"): {"instances": int(n), "bytes_in": int(size), "bytes_archived": int(archived)}
        for name, n, size, archived in rows
    }


def _failures(
    conn: Connection, kind: str, id_: sa.Column[Any], reason: sa.Column[Any], destination: Any, where: Any
) -> list[FailureGroup]:
    """One group per reason (and destination, if there is one), counted by the database, with the newest ids."""
    names = [reason] if destination is None else [reason, destination]
    found = []
    for *values, count in conn.execute(sa.select(*names, sa.func.count()).where(where).group_by(*names)).all():
        same = (name.is_(None) if value is None else name == value for name, value in zip(names, values, strict=True))
        newest = sa.select(id_).where(where, *same).order_by(id_.desc()).limit(MAX_IDS)
        where_to = None if destination is None else values[1]
        found.append(FailureGroup(kind, str(values[0]), where_to, int(count), tuple(conn.execute(newest).scalars())))
    return found
