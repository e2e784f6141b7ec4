"""The index under shredding: which instances are one patient's, and how their identity leaves the database.

A shredded row stays, as proof that something was archived and for its pixels: under pseudonyms, with no digest that
a file could be compared with. The same file sent again is therefore new, and not a duplicate of what is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import Unavailable
from gateway.index_commitment import forget_references
from gateway.index_correction import corrections_to, forget_corrections
from gateway.index_forward import forget_sent
from gateway.index_ledger import forget_studies
from gateway.index_report import put_alert
from gateway.index_rows import InstanceRow
from gateway.index_schema import (
    alert,
    attributes,
    coercion,
    commitment_item,
    correction,
    forward,
    instance,
    proof,
    rejection,
    stego_export,
    study,
    study_event,
    study_evidence,
    superseded,
)
from gateway.instance import UNFINISHED, Form, ForwardState

_PAGE = 500
_SCRUBBED = (
    attributes, coercion, commitment_item, correction, forward, instance, proof, rejection, stego_export, study,
    study_event, study_evidence,
)  # fmt: skip
SHRED_UNFINISHED: Final = "shred-unfinished"
_RUN_AGAIN: Final = (  # an alert has room for 200 characters
    "the shredding of this patient key is not over: run `palimpsest keys shred` again (--images-too for what is sealed "
    "whole); what is left stays in the spool, and is refused when it comes again"
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subject:
    """One patient's instances. rows: all of them; unfinished: ids not archived yet, or on their way to a destination.

    old: ids sealed before there were patient keys; shared: ids whose data key is wrapped to others, too, or that carry
    a CMS copy of the identity. whole: ids sealed whole, whose pixels go with the key. merged: ids of corrections that
    show other patients' objects under this one's identity.
    """

    rows: tuple[InstanceRow, ...]
    unfinished: tuple[int, ...]
    old: tuple[int, ...]
    shared: tuple[int, ...]
    whole: tuple[int, ...]
    merged: tuple[int, ...] = ()


class Shredding(Database):
    """Finding and forgetting one patient."""

    def subject(self, key_ids: Sequence[str], patient_id: str, study_uid: str) -> Subject:
        """Instances sealed to one of `key_ids`, or indexed under this Patient ID (with '': this study without one).

        The Patient ID is the original's: its key is what is destroyed, whatever a correction shows.
        """
        named = _original_id() == patient_id if patient_id else _nameless(study_uid)
        joined = instance.outerjoin(attributes, attributes.c.instance_id == instance.c.id)
        joined = joined.outerjoin(coercion, coercion.c.instance_id == instance.c.id)
        query = sa.select(instance).select_from(joined).where(sa.or_(instance.c.patient_key.in_(key_ids), named))
        with self.read() as conn:
            rows = [InstanceRow.of(row) for row in conn.execute(query.order_by(instance.c.id)).mappings()]
            ids = [row.id for row in rows]
            going = sa.select(forward.c.instance_id).where(forward.c.state == ForwardState.WAITING)
            waiting: set[int] = set()
            shared: set[int] = set()
            merged = [number for number, shown in corrections_to(conn, patient_id) if shown] if patient_id else []
            for part in _pages(ids):
                waiting |= set(conn.execute(going.where(_of(forward, part))).scalars())
                found = conn.execute(
                    sa.select(proof.c.instance_id, proof.c.wraps, proof.c.facts).where(_of(proof, part))
                )
                shared |= {row.instance_id for row in found if _is_shared(row.wraps, row.facts)}
        living = [row for row in rows if row.shredded_at is None]
        return Subject(
            rows=tuple(rows),
            unfinished=tuple(row.id for row in living if row.state in UNFINISHED or row.id in waiting),
            old=tuple(row.id for row in living if row.state not in UNFINISHED and row.patient_key is None),
            shared=tuple(row.id for row in living if row.id in shared),
            whole=tuple(row.id for row in living if row.form is Form.PASSTHROUGH),
            merged=tuple(merged),
        )

    def shred_begin(self, actor: str, count: int, reason: str, patient: str | None) -> None:
        """Commit the intent to the trail, before anything is destroyed. patient: keyed pseudonym."""
        with self.write() as conn:
            detail: Detail = {"count": count, "reason": reason}
            audit.append(conn, AuditEvent("shred-begun", actor, patient=patient, detail=detail), self.now())

    def shred_done(self, actor: str, count: int, reason: str, patient: str | None, *, partial: bool) -> None:
        """Commit that nothing here opens the identity any more; with `partial`, that others still may."""
        with self.write() as conn:
            detail: Detail = {"count": count, "reason": reason, "outcome": "partial" if partial else "whole"}
            audit.append(conn, AuditEvent("shredded", actor, patient=patient, detail=detail), self.now())

    def shred_unfinished(self, key_id: str) -> None:
        """A patient key is destroyed: an alert, once, while archived instances under it are not forgotten. `forget`
        closes it.
        """
        same = sa.and_(alert.c.kind == SHRED_UNFINISHED, alert.c.subject == key_id)
        with self.read() as conn:
            if conn.execute(sa.select(alert.c.id).where(same).limit(1)).first() is not None:
                return
        with self.write() as conn:
            if _unforgotten(conn, [key_id]):
                put_alert(conn, SHRED_UNFINISHED, key_id, _RUN_AGAIN, "warning", self.now())

    def forget(
        self,
        rows: Sequence[InstanceRow],
        rename: Callable[[str], str],
        rehash: Callable[[str], str],
        patient_id: str = "",
    ) -> None:
        """Take the identity of these instances out of the database; rows that were forgotten already stay as they are.

        rename: UID -> its pseudonym; rehash: text -> a keyed digest of it (SHA-256's form). patient_id: whose
        corrections go, too, also those that wait for objects to come. A row's number is in what takes the place of its
        digests: the same file may be sent, and shredded, any number of times.
        """
        now = self.now()
        if patient_id:
            with self.write() as conn:
                forget_corrections(conn, [], [], [patient_id])
        for part in _pages([row for row in rows if row.shredded_at is None]):
            with self.write() as conn:
                page = _living(conn, part)  # the sweep and a person may forget the same
                ids = [row.id for row in page]
                known = _patients(conn, ids)
                studies = {row.study_uid: rename(row.study_uid) for row in page if row.study_uid}
                forget_corrections(conn, ids, list(studies), known)
                forget_studies(conn, studies, rename)
                conn.execute(sa.delete(attributes).where(_of(attributes, ids)))
                conn.execute(sa.update(stego_export).where(_of(stego_export, ids)).values(wraps="[]"))
                conn.execute(sa.update(proof).where(_of(proof, ids)).values(facts="{}", wraps="[]"))
                renamed = {row.sop_uid: rename(row.sop_uid) for row in page}
                forget_references(conn, renamed)
                forget_sent(conn, ids, renamed)
                for row in page:
                    changes = {
                        "sop_uid": rename(row.sop_uid),
                        "study_uid": rename(row.study_uid) if row.study_uid else None,
                        "series_uid": rename(row.series_uid) if row.series_uid else None,
                        "digest": rehash(f"{row.id}/{row.digest}"),
                        "dataset_digest": rehash(f"{row.id}/{row.dataset_digest}"),
                        "shredded_at": now,
                        "accession_pseudonym": None,
                        "recode_at": None,
                        "last_error": None,
                    }
                    conn.execute(sa.update(instance).where(instance.c.id == row.id).values(**changes))
                self._close_alerts(conn, {row.patient_key for row in page if row.patient_key is not None})

    def _close_alerts(self, conn: Connection, key_ids: set[str]) -> None:
        """Of keys under which nothing is left to forget."""
        done = sorted(key_ids - _unforgotten(conn, sorted(key_ids)))
        open_ = (alert.c.kind == SHRED_UNFINISHED, alert.c.subject.in_(done), alert.c.acked_at.is_(None))
        conn.execute(sa.update(alert).where(*open_).values(acked_at=self.now(), acked_by="shred"))

    def unforgotten(self, key_ids: Sequence[str]) -> list[str]:
        """Of these patient keys, those to which archived instances are sealed that were not forgotten, in order."""
        with self.read() as conn:
            return sorted(each for part in _pages(key_ids) for each in _unforgotten(conn, part))

    def merges_into(self, ids: Sequence[int]) -> list[int]:
        """Ids of corrections that show objects under the identity of these instances' patients: whoever forgets the
        correction with them leaves it shown.
        """
        with self.read() as conn:
            names = {name for part in _pages(ids) for name in _patients(conn, part)}
            return sorted({number for name in names for number, shown in corrections_to(conn, name) if shown})

    def sealed_after(self, last: int, key_ids: Sequence[str], limit: int) -> list[InstanceRow]:
        """Archived instances under these patient keys that were not forgotten, by number, behind `last`."""
        c = instance.c
        query = sa.select(instance).where(c.id > last, c.patient_key.in_(key_ids), c.archive_key.is_not(None))
        with self.read() as conn:
            page = conn.execute(query.where(c.shredded_at.is_(None)).order_by(c.id).limit(limit)).mappings()
            return [InstanceRow.of(row) for row in page]

    def unfinished_after(self, last: int, limit: int) -> list[tuple[InstanceRow, str | None]]:
        """Unfinished instances by number, behind `last`, with the Patient ID as received; None: not indexed yet."""
        joined = instance.outerjoin(attributes, attributes.c.instance_id == instance.c.id)
        joined = joined.outerjoin(coercion, coercion.c.instance_id == instance.c.id)
        named = sa.case((attributes.c.instance_id.is_not(None), _original_id())).label("named")
        query = sa.select(instance, named).select_from(joined).where(instance.c.state.in_(UNFINISHED))
        with self.read() as conn:
            page = conn.execute(query.where(instance.c.id > last).order_by(instance.c.id).limit(limit)).mappings()
            return [(InstanceRow.of(row), row["named"]) for row in page]

    def discard_forgotten(self) -> int:
        """Delete forgotten instances of which this database knows no archive object, only that they once came; how
        many. Their sources were shredded: nobody can finish them.
        """
        forgotten = sa.and_(instance.c.state.in_(UNFINISHED), instance.c.shredded_at.is_not(None))
        with self.write() as conn:
            ids = list(conn.execute(sa.select(instance.c.id).where(forgotten)).scalars())
            for page in _pages(ids):
                sent = sa.select(forward.c.id).where(_of(forward, page))
                conn.execute(sa.delete(commitment_item).where(commitment_item.c.forward_id.in_(sent)))
                conn.execute(sa.delete(rejection).where(rejection.c.note_id.in_(page)))
                for table in (forward, proof, attributes, stego_export, coercion, superseded):
                    conn.execute(sa.delete(table).where(_of(table, page)))
                conn.execute(sa.delete(instance).where(instance.c.id.in_(page)))
        return len(ids)

    def shredded_keys(self) -> set[str]:
        """Ids of the patient keys that were destroyed, as far as instances name them."""
        query = sa.select(instance.c.patient_key).where(instance.c.shredded_at.is_not(None)).distinct()
        with self.read() as conn:
            return {found for found in conn.execute(query).scalars() if found}

    def scrub_freed(self) -> None:
        """Let freed pages and the write-ahead log forget what was deleted (`secure_delete` zeroes it at deletion).

        PostgreSQL: dead rows are vacuumed; what the server's own log and file system keep is the administrator's.
        Raises Unavailable, 'database-busy' when a reader kept the log from being emptied for half a minute;
        OutOfResources.
        """
        with self.session() as conn:  # neither statement may stand in a transaction that has read anything
            if self.dialect != "sqlite":
                for table in _SCRUBBED:
                    conn.exec_driver_sql(f"VACUUM {table.name}")
            elif conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one():
                raise Unavailable("database-busy", "the database's log holds what was deleted still: run it again")


def _unforgotten(conn: Connection, key_ids: Sequence[str]) -> set[str]:
    c = instance.c
    query = sa.select(c.patient_key).where(c.patient_key.in_(key_ids), c.archive_key.is_not(None))
    return {str(found) for found in conn.scalars(query.where(c.shredded_at.is_(None)).distinct())}


def _living(conn: Connection, rows: Sequence[InstanceRow]) -> list[InstanceRow]:
    c = instance.c
    ids = set(conn.scalars(sa.select(c.id).where(c.id.in_([row.id for row in rows]), c.shredded_at.is_(None))))
    return [row for row in rows if row.id in ids]


def _patients(conn: Connection, ids: Sequence[int]) -> list[str]:
    """The Patient IDs, as received, of these instances."""
    joined = attributes.outerjoin(coercion, coercion.c.instance_id == attributes.c.instance_id)
    query = sa.select(_original_id()).select_from(joined).where(_of(attributes, ids), _original_id() != "")
    return list(conn.scalars(query.distinct()))


def _original_id() -> sa.ColumnElement[str]:
    """The Patient ID as received, of `attributes` joined with `coercion`."""
    return sa.func.coalesce(coercion.c.patient_id, attributes.c.patient_id, "")


def _nameless(study_uid: str) -> sa.ColumnElement[bool]:
    without = _original_id() == ""
    return sa.and_(without, instance.c.study_uid == study_uid, instance.c.study_uid != "")


def _is_shared(wraps: str, facts: str) -> bool:
    return len(json.loads(wraps)) > 1 or bool(json.loads(facts).get("shared_with"))


def _of(table: sa.Table, ids: Sequence[int]) -> sa.ColumnElement[bool]:
    return table.c.instance_id.in_(ids)


def _pages(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _PAGE] for start in range(0, len(items), _PAGE)]
