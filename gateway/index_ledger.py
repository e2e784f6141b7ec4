"""The study ledger in the index: how far each study has come is read from the rows of its instances and forwards.

Stored is only what those do not say: the sender's evidence, and what subscribers were told (the events, which are
their outbox). Events are numbered in the order of their commits, for there is one writer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway.database import Database
from gateway.index_schema import (
    commitment,
    commitment_item,
    forward,
    instance,
    rejection,
    study,
    study_event,
    study_evidence,
    subscriber,
)
from gateway.instance import DELIVERED, ForwardState
from gateway.study_state import Delivery, Evidence, Judgement, StudyEvent, StudyFacts, judge

__all__ = ["Ledger", "forget_studies", "touch_study"]

PAGE: Final = 500
#: Name of the cursor over instances among those of the subscribers; none of theirs can hold a colon.
_INSTANCES: Final = "ledger:instances"


class Ledger(Database):
    """Studies, their evidence and their events."""

    def study_evidence_add(
        self, study_uid: str, kind: str, source: str, expected: int | None = None, missing: int = 0
    ) -> None:
        """Record what the sender said of a study; of each source and kind the newest counts. It is looked at again."""
        now = self.now()
        values = {"expected": expected, "missing": missing, "at": now}
        with self.write() as conn:
            _put_evidence(conn, study_uid, kind, source[:64], values)
            touch_study(conn, study_uid)

    def study_instances(self, study_uid: str) -> set[str]:
        """SOP Instance UIDs that were received of a study, hidden ones included."""
        query = sa.select(instance.c.sop_uid).where(instance.c.study_uid == study_uid)
        with self.read() as conn:
            return set(conn.execute(query).scalars())

    def study_facts(self, uids: Sequence[str]) -> dict[str, StudyFacts]:
        """How far these studies have come; unknown ones are left out."""
        with self.read() as conn:
            return _facts(conn, uids)

    def study_list(self, limit: int, before: int | None = None, state: str | None = None) -> list[tuple[str, str]]:
        """(Study Instance UID, state as last looked at), newest first. before: `newest_id` of the last one shown."""
        query = sa.select(study.c.study_uid, study.c.state).order_by(study.c.newest_id.desc(), study.c.study_uid)
        if before is not None:
            query = query.where(study.c.newest_id < before)
        if state is not None:
            query = query.where(study.c.state == state)
        with self.read() as conn:
            return [(uid, word) for uid, word in conn.execute(query.limit(limit))]

    def studies_find(self, limit: int = 2000) -> int:
        """Take up studies whose instances came since the last call; returns how many instances were looked at."""
        with self.read() as conn:
            seen = _cursor(conn, _INSTANCES)
            query = sa.select(instance.c.id, instance.c.study_uid).where(
                instance.c.id > seen, instance.c.study_uid.is_not(None), instance.c.shredded_at.is_(None)
            )
            found = conn.execute(query.order_by(instance.c.id).limit(limit)).all()
        if not found:
            return 0
        newest = {row.study_uid: row.id for row in found}
        with self.write() as conn:
            for uid, number in newest.items():
                touch_study(conn, uid, number)
            _set_cursor(conn, _INSTANCES, found[-1].id, self.now())
        return len(found)

    def studies_judge(self, quiet_seconds: float, limit: int = PAGE) -> int:
        """Look at open studies, those not looked at for longest first, and write their events; returns how many."""
        now = self.now()
        query = sa.select(study.c.study_uid, study.c.announced, study.c.state, study.c.newest_id).where(study.c.open)
        with self.read() as conn:
            rows = conn.execute(query.order_by(study.c.checked_at, study.c.study_uid).limit(limit)).all()
            facts = _facts(conn, [row.study_uid for row in rows])
        events = 0
        same: list[str] = []
        for row in rows:
            if (known := facts.get(row.study_uid)) is None:  # a person's evidence on what never came
                self._close(row.study_uid)
                continue
            found = judge(known, json.loads(row.announced), quiet_seconds, now)
            if found.open and not found.news and found.state == row.state and known.newest_id == row.newest_id:
                same.append(row.study_uid)
                continue
            events += self._write_judgement(known, found, now)
        if same:
            with self.write(durable=False) as conn:
                conn.execute(sa.update(study).where(study.c.study_uid.in_(same)).values(checked_at=now))
        return events

    def study_events(self, after: int, limit: int = PAGE, kinds: Iterable[str] = ()) -> list[StudyEvent]:
        """Events with a greater id, oldest first. kinds: only these, where given."""
        query = sa.select(study_event).where(study_event.c.id > after).order_by(study_event.c.id).limit(limit)
        if wanted := list(kinds):
            query = query.where(study_event.c.kind.in_(wanted))
        with self.read() as conn:
            return [StudyEvent(**row) for row in conn.execute(query).mappings()]

    def study_events_of(self, study_uid: str, limit: int = PAGE) -> list[StudyEvent]:
        """Events of one study, oldest first."""
        query = sa.select(study_event).where(study_event.c.study_uid == study_uid).order_by(study_event.c.id)
        with self.read() as conn:
            return [StudyEvent(**row) for row in conn.execute(query.limit(limit)).mappings()]

    def last_event(self) -> int:
        """Id of the newest event, 0 if there is none."""
        with self.read() as conn:
            return int(conn.execute(sa.select(sa.func.max(study_event.c.id))).scalar() or 0)

    def study_events_prune(self, before: float) -> int:
        """Forget events older than that; who has not fetched them by then never will."""
        with self.write() as conn:
            newest = sa.select(sa.func.max(study_event.c.id)).scalar_subquery()  # kept: ids must go on rising
            old = sa.and_(study_event.c.at < before, study_event.c.id < newest)
            return int(conn.execute(sa.delete(study_event).where(old)).rowcount)

    def subscriber_state(self, name: str) -> tuple[int, int, float]:
        """(last event that a webhook has, attempts at the next, when it is due). A new one begins with what comes."""
        query = sa.select(subscriber.c.last_event, subscriber.c.attempts, subscriber.c.due_at)
        with self.write() as conn:
            row = conn.execute(query.where(subscriber.c.name == name)).first()
            if row is None:
                last = int(conn.execute(sa.select(sa.func.max(study_event.c.id))).scalar() or 0)
                _set_cursor(conn, name, last, 0.0)
                return last, 0, 0.0
            return int(row.last_event), int(row.attempts), float(row.due_at)

    def subscriber_set(self, name: str, last_event: int, attempts: int, due_at: float, reason: str | None) -> None:
        """Record what became of a delivery."""
        values = {"last_event": last_event, "attempts": attempts, "due_at": due_at, "reason": reason}
        with self.write() as conn:
            conn.execute(sa.update(subscriber).where(subscriber.c.name == name).values(**values))

    def _close(self, uid: str) -> None:
        with self.write(durable=False) as conn:
            conn.execute(sa.update(study).where(study.c.study_uid == uid).values(open=False))

    def _write_judgement(self, facts: StudyFacts, found: Judgement, now: float) -> int:
        uid = facts.study_uid
        with self.write() as conn:
            if found.proof is not None and found.proof.kind in ("quiet", "storage-commitment"):
                proof = found.proof
                values = {"expected": proof.expected, "missing": proof.missing, "at": proof.at}
                _put_evidence(conn, uid, proof.kind, proof.source, values)
            for each in found.news:
                row = {"kind": each.kind, "destination": each.destination, "count": each.count, "at": now}
                conn.execute(study_event.insert().values(study_uid=uid, **row))
            changes: dict[str, Any] = {"state": found.state, "newest_id": facts.newest_id, "checked_at": now}
            changes["announced"] = json.dumps(dict(found.announced), sort_keys=True)
            conn.execute(sa.update(study).where(study.c.study_uid == uid).values(**changes))
            # not closed if something was touched since the facts were read: then it is looked at once more
            fresh = _facts(conn, [uid]).get(uid)
            conn.execute(sa.update(study).where(study.c.study_uid == uid).values(open=found.open or fresh != facts))
        return len(found.news)


def touch_study(conn: Connection, study_uid: str | None, newest_id: int = 0) -> None:
    """In the caller's transaction: this study is to be looked at again."""
    if study_uid is None:
        return
    values: dict[str, Any] = {"open": True, "checked_at": 0.0} | ({"newest_id": newest_id} if newest_id else {})
    known = conn.execute(sa.update(study).where(study.c.study_uid == study_uid).values(**values))
    if not known.rowcount:
        first = {"newest_id": newest_id, "state": "receiving", "announced": "{}", "open": True, "checked_at": 0.0}
        conn.execute(study.insert().values(study_uid=study_uid, **first))


def forget_studies(conn: Connection, renamed: Mapping[str, str], rename: Callable[[str], str]) -> None:
    """In the transaction that shreds instances: what is kept of their studies stands under the pseudonyms from now on.

    renamed: Study Instance UID -> its pseudonym; rename: any UID -> its pseudonym. Nothing is told of a shredded study
    any more; what a rejection note hid stays hidden.
    """
    c = rejection.c
    for uid, name in renamed.items():
        conn.execute(sa.delete(study).where(study.c.study_uid == uid))
        for table in (study_evidence, study_event):
            conn.execute(sa.update(table).where(table.c.study_uid == uid).values(study_uid=name))
        for row in conn.execute(sa.select(c.id, c.sop_uid).where(c.study_uid == uid)).all():
            values = {"study_uid": name, "sop_uid": rename(row.sop_uid)}
            conn.execute(sa.update(rejection).where(c.id == row.id).values(**values))


def _put_evidence(conn: Connection, uid: str, kind: str, source: str, values: Mapping[str, Any]) -> None:
    c = study_evidence.c
    same = sa.and_(c.study_uid == uid, c.kind == kind, c.source == source)
    if not conn.execute(sa.update(study_evidence).where(same).values(**values)).rowcount:
        conn.execute(study_evidence.insert().values(study_uid=uid, kind=kind, source=source, **values))


def _cursor(conn: Connection, name: str) -> int:
    return int(conn.execute(sa.select(subscriber.c.last_event).where(subscriber.c.name == name)).scalar() or 0)


def _set_cursor(conn: Connection, name: str, value: int, now: float) -> None:
    done = conn.execute(sa.update(subscriber).where(subscriber.c.name == name).values(last_event=value, due_at=now))
    if not done.rowcount:
        conn.execute(subscriber.insert().values(name=name, last_event=value, attempts=0, due_at=now))


def _facts(conn: Connection, uids: Sequence[str]) -> dict[str, StudyFacts]:
    c = instance.c
    hidden = sa.exists().where(
        rejection.c.sop_uid == c.sop_uid, rejection.c.study_uid == c.study_uid, rejection.c.hidden
    )
    query = (
        sa.select(
            c.study_uid,
            sa.func.max(c.id).label("newest_id"),
            sa.func.count(sa.distinct(c.sop_uid)).label("instances"),
            sa.func.count().label("objects"),
            sa.func.sum(c.size).label("bytes"),
            sa.func.count(c.verified_at).label("verified"),
            sa.func.count(c.archived_at).label("archived"),
            sa.func.count(c.released_at).label("released"),
            sa.func.count(c.coerced).label("coerced"),
            sa.func.sum(sa.case((hidden, 1), else_=0)).label("hidden"),
            sa.func.min(c.received_at).label("first_received_at"),
            sa.func.max(c.received_at).label("last_received_at"),
            sa.func.max(c.verified_at).label("last_verified_at"),
            sa.func.max(c.archived_at).label("last_archived_at"),
        )
        .where(c.study_uid.in_(uids), c.shredded_at.is_(None))
        .group_by(c.study_uid)
    )
    deliveries, evidence = _deliveries(conn, uids), _evidence(conn, uids)
    found = {}
    for row in conn.execute(query).mappings():
        uid = row["study_uid"]
        numbers = {name: int(row[name]) for name in ("bytes", "hidden")}
        more = {"deliveries": tuple(deliveries.get(uid, ())), "evidence": tuple(evidence.get(uid, ()))}
        found[uid] = StudyFacts(**{**row, **numbers, **more})
    return found


def _deliveries(conn: Connection, uids: Sequence[str]) -> dict[str, list[Delivery]]:
    f = forward.c

    def number(condition: Any) -> Any:
        return sa.func.sum(sa.case((condition, 1), else_=0))

    query = (
        sa.select(
            instance.c.study_uid,
            f.destination,
            number(f.state == ForwardState.WAITING),
            number(f.state.in_(DELIVERED)),
            number(f.state == ForwardState.COMMITTED),
            number(f.state == ForwardState.DEAD),
            number(f.commit_due_at.is_not(None)),
            sa.func.max(f.sent_at),
        )
        .select_from(forward.join(instance, instance.c.id == f.instance_id))
        .where(instance.c.study_uid.in_(uids))
        .group_by(instance.c.study_uid, f.destination)
        .order_by(f.destination)
    )
    found: dict[str, list[Delivery]] = {}
    for uid, destination, waiting, sent, committed, dead, asked, at in conn.execute(query):
        numbers = (int(waiting), int(sent), int(committed), int(dead), int(asked))
        found.setdefault(uid, []).append(Delivery(destination, *numbers, at))
    return found


def _evidence(conn: Connection, uids: Sequence[str]) -> dict[str, list[Evidence]]:
    """What was recorded, and the storage commitment requests that name instances of these studies."""
    c = study_evidence.c
    found: dict[str, list[Evidence]] = {}
    for row in conn.execute(sa.select(study_evidence).where(c.study_uid.in_(uids)).order_by(c.id)):
        if row.kind != "storage-commitment":
            proof = Evidence(row.kind, row.source, row.expected, row.missing, row.at)
            found.setdefault(row.study_uid, []).append(proof)
    joined = commitment_item.join(commitment, commitment.c.id == commitment_item.c.commitment_id).join(
        instance, instance.c.sop_uid == commitment_item.c.sop_uid
    )
    asked = (
        sa.select(
            instance.c.study_uid,
            commitment.c.peer,
            commitment.c.created_at,
            sa.func.count(sa.distinct(instance.c.sop_uid)),
        )
        .select_from(joined)
        .where(commitment.c.role == "scp", instance.c.study_uid.in_(uids))
        .group_by(instance.c.study_uid, commitment.c.id, commitment.c.peer, commitment.c.created_at)
        .order_by(commitment.c.id)
    )
    for uid, peer, at, count in conn.execute(asked):
        found.setdefault(uid, []).append(Evidence("storage-commitment", peer, int(count), 0, at))
    return found
