"""The audit trail as something to search: by patient, study, user, event and time; and where its exports stand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway import audit as trail
from gateway.database import Database
from gateway.index_schema import attributes, audit, audit_state, audit_subject, coercion, instance

__all__ = ["AuditQuery", "AuditSearch", "AuditSubject", "MAX_FOUND"]

MAX_FOUND = 1000
_ALL_NAMED = "subjects"  # state: all instances from before the table have their row


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """What to look for; all conditions must hold, and those left out match everything.

    patients, studies: keyed pseudonyms, any of them; actor: who, a trailing * matches any ending; events, outcomes: any
    of them; since, until: seconds since the epoch, from the first to before the second; before, after: sequence
    numbers, excluded; limit: at most MAX_FOUND.
    """

    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    actor: str = ""
    events: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    instance_id: int | None = None
    since: float | None = None
    until: float | None = None
    before: int | None = None
    after: int | None = None
    limit: int = 100
    oldest_first: bool = False


@dataclass(frozen=True, slots=True)
class AuditSubject:
    """Whose image an instance is: keyed pseudonyms, '' where nothing is known; sop_class: its SOP Class UID."""

    study: str = ""
    patient: str = ""
    sop_class: str = ""


class AuditSearch(Database):
    """Reads the trail; the table `audit_subject` says to which study and patient an instance belongs."""

    def audit_search(self, query: AuditQuery) -> list[dict[str, Any]]:
        """Events as `audit.export` shows them, newest first unless the query says otherwise."""
        statement = sa.select(audit)
        for condition in _conditions(query):
            statement = statement.where(condition)
        order = audit.c.seq.asc() if query.oldest_first else audit.c.seq.desc()
        with self.read() as conn:
            rows = conn.execute(statement.order_by(order).limit(min(query.limit, MAX_FOUND))).mappings().all()
        return [trail.line_of(row) for row in rows]

    def audit_subjects(
        self, instance_ids: Iterable[int], pseudonym: Callable[[str], str] | None = None
    ) -> dict[int, AuditSubject]:
        """Whose these instances are. pseudonym: of a Study Instance UID, for those that are not indexed yet."""
        wanted = sorted(set(instance_ids))
        named = instance.outerjoin(audit_subject, audit_subject.c.instance_id == instance.c.id)
        columns = (instance.c.id, instance.c.study_uid, instance.c.sop_class, audit_subject.c.study)
        query = sa.select(*columns, audit_subject.c.patient).select_from(named)
        found: dict[int, AuditSubject] = {}
        with self.read() as conn:
            for at in range(0, len(wanted), 500):
                for row in conn.execute(query.where(instance.c.id.in_(wanted[at : at + 500]))):
                    study = row.study or (pseudonym(row.study_uid) if pseudonym and row.study_uid else "")
                    found[row.id] = AuditSubject(study, row.patient or "", row.sop_class)
        return found

    def audit_last(self) -> tuple[int, str]:
        """(sequence number, hash) of the last event; (0, GENESIS) of an empty trail."""
        with self.read() as conn:
            last = conn.execute(trail.LAST).first()
        return (last.seq, last.hash) if last else (0, trail.GENESIS)

    def audit_hash(self, seq: int) -> str | None:
        """The hash of an event; None if there is no such event."""
        with self.read() as conn:
            return conn.execute(sa.select(audit.c.hash).where(audit.c.seq == seq)).scalar()

    def audit_name_subjects(self, name: Callable[[str, str], tuple[str, str]], limit: int = 500) -> int:
        """Fill the table of subjects for instances that were indexed by an older release; how many were done.

        name: (Patient ID, Study Instance UID) -> (study's, patient's pseudonym).
        """
        if self.audit_state(_ALL_NAMED) is not None:
            return 0
        joined = attributes.outerjoin(audit_subject, audit_subject.c.instance_id == attributes.c.instance_id)
        joined = joined.outerjoin(coercion, coercion.c.instance_id == attributes.c.instance_id)
        patient = sa.func.coalesce(coercion.c.patient_id, attributes.c.patient_id, "").label("patient_id")
        query = sa.select(attributes.c.instance_id, attributes.c.study_uid, patient).select_from(joined)
        query = query.where(audit_subject.c.instance_id.is_(None)).limit(limit)
        with self.write() as conn:
            rows = conn.execute(query).all()
            for row in rows:
                put_subject(conn, row.instance_id, name(row.patient_id, row.study_uid or ""))
        if not rows:
            self.audit_state_set(_ALL_NAMED, {"complete": True})
        return len(rows)

    def audit_state(self, name: str) -> dict[str, Any] | None:
        """What was kept under a name, see `audit_state_set`."""
        with self.read() as conn:
            value = conn.execute(sa.select(audit_state.c.value).where(audit_state.c.name == name)).scalar()
        return json.loads(value) if value is not None else None

    def audit_state_set(self, name: str, value: dict[str, Any], *, durable: bool = True) -> None:
        """Keep a small JSON object under a name: cursors of exports, the last configuration's digest."""
        with self.write(durable=durable) as conn:
            conn.execute(sa.delete(audit_state).where(audit_state.c.name == name))
            conn.execute(audit_state.insert().values(name=name, value=json.dumps(value, sort_keys=True)))

    def audit_claim(self, name: str, owner: str, seconds: float) -> dict[str, Any] | None:
        """What is kept under a name, for its only user until `seconds` from now; None while somebody else is that."""
        now = self.now()
        with self.write(durable=False) as conn:
            kept = conn.execute(sa.select(audit_state.c.value).where(audit_state.c.name == name)).scalar()
            value: dict[str, Any] = json.loads(kept) if kept is not None else {}
            if value.get("owner", owner) != owner and now < value.get("lease_until", 0.0) <= now + seconds:
                return None
            value |= {"owner": owner, "lease_until": now + seconds}
            conn.execute(sa.delete(audit_state).where(audit_state.c.name == name))
            conn.execute(audit_state.insert().values(name=name, value=json.dumps(value, sort_keys=True)))
        return value


def put_subject(conn: sa.Connection, instance_id: int, subject: tuple[str, str]) -> None:
    """Say in the caller's transaction whose an instance is: (study's, patient's pseudonym)."""
    conn.execute(sa.delete(audit_subject).where(audit_subject.c.instance_id == instance_id))
    conn.execute(audit_subject.insert().values(instance_id=instance_id, study=subject[0], patient=subject[1]))


def _conditions(query: AuditQuery) -> list[sa.ColumnElement[bool]]:
    column = audit.c
    found: list[sa.ColumnElement[bool]] = []
    if query.patients:
        found.append(_about(query.patients, audit_subject.c.patient, column.patient, by_study=True))
    if query.studies:
        found.append(_about(query.studies, audit_subject.c.study, column.study, by_study=False))
    if query.actor.endswith("*"):
        found.append(column.actor.startswith(query.actor[:-1], autoescape=True))
    elif query.actor:
        found.append(column.actor == query.actor)
    for chosen, wanted in ((column.event, query.events), (column.outcome, query.outcomes)):
        if wanted:
            found.append(chosen.in_(wanted))
    for bound, compared in (
        (query.instance_id, lambda value: column.instance_id == value),
        (query.since, lambda value: column.at_us >= int(value * 1_000_000)),
        (query.until, lambda value: column.at_us < int(value * 1_000_000)),
        (query.before, lambda value: column.seq < value),
        (query.after, lambda value: column.seq > value),
    ):
        if bound is not None:
            found.append(compared(bound))
    return found


def _about(
    names: Sequence[str], subject: sa.Column[Any], own: sa.Column[Any], *, by_study: bool
) -> sa.ColumnElement[bool]:
    """Events that name a pseudonym themselves, and those about an instance (or study) that belongs to it.

    A union of three short lists, each by its own index, where an OR would walk the whole trail.
    """
    wanted = subject.in_(names)
    lists = [
        sa.select(audit.c.seq).where(own.in_(names), own.is_not(None)),
        sa.select(audit.c.seq).where(
            audit.c.instance_id.in_(sa.select(audit_subject.c.instance_id).where(wanted)),
            audit.c.instance_id.is_not(None),
        ),
    ]
    if by_study:
        studies = sa.select(audit_subject.c.study).where(wanted).distinct()
        lists.append(sa.select(audit.c.seq).where(audit.c.study.in_(studies), audit.c.study.is_not(None)))
    return audit.c.seq.in_(sa.union(*lists))
