"""Corrections in the index: searches and metadata show them at once, objects are edited as they are given back.

`attributes` holds what is shown; `coercion` what stood there before, so that a revoked correction leaves no trace in
it, and what an object must be given back with. What arrives later is corrected as it is indexed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.coercion import CORRECTABLE, PATIENT_ID, Correction, Effect, checked_changes, coerce, text_of
from gateway.database import Database
from gateway.errors import InvalidInstance, NotFound
from gateway.index_schema import attributes, coercion, correction, instance
from gateway.matching import COLUMNS, NAME_KEYS, fold

__all__ = ["Corrections", "apply_corrections", "corrections_to", "forget_corrections"]

PAGE: Final = 100
_COLUMN_OF: Final = {tag: COLUMNS[key][0] for key, (tag, _) in CORRECTABLE.items() if key in COLUMNS}


class Corrections(Database):
    """Making, revoking and applying corrections."""

    def correction_add(
        self,
        actor: str,
        changes: Mapping[str, Any],
        *,
        study_uid: str | None = None,
        patient_id: str | None = None,
        issuer: str | None = None,
        study: str | None = None,
        patient: str | None = None,
    ) -> int:
        """Record a correction of one study or of one Patient ID; its id. It is in force once `corrections_run` is done.

        study, patient: keyed pseudonyms for the trail. Raises InvalidInstance ``bad-correction``.
        """
        if (study_uid is None) == (not patient_id):
            raise InvalidInstance("bad-correction", "a correction is of one study or of one Patient ID")
        wanted = checked_changes(changes)
        if patient_id and wanted.get("PatientID") == patient_id and issuer is None:
            raise InvalidInstance("bad-correction", "a patient cannot be merged into itself")
        values = {"study_uid": study_uid, "patient_id": patient_id or None, "issuer": issuer or None, "pending": True}
        now = self.now()
        with self.write() as conn:
            made = conn.execute(
                correction.insert().values(
                    **values, changes=json.dumps(wanted, sort_keys=True), created_at=now, created_by=actor[:64]
                )
            )
            assert made.inserted_primary_key is not None
            kind = "merge" if patient_id and "PatientID" in wanted else "patient" if patient_id else "study"
            detail: Detail = {"kind": kind, "count": len(wanted)}
            audit.append(conn, AuditEvent("corrected", actor, study=study, detail=detail, patient=patient), now)
            return int(made.inserted_primary_key[0])

    def correction_revoke(self, correction_id: int, actor: str) -> None:
        """Take a correction back. Raises NotFound for an unknown one, or one that was revoked."""
        now = self.now()
        active = sa.and_(correction.c.id == correction_id, correction.c.revoked_at.is_(None))
        with self.write() as conn:
            values = {"revoked_at": now, "revoked_by": actor[:64], "pending": True}
            if not conn.execute(sa.update(correction).where(active).values(**values)).rowcount:
                raise NotFound("unknown-correction", "there is no such correction in force")
            detail: Detail = {"kind": "revoked", "count": 1}
            audit.append(conn, AuditEvent("corrected", actor, detail=detail), now)

    def corrections_run(self) -> int:
        """Bring what is shown into line with corrections made or revoked; a run that was cut off is gone on with.

        A few objects a transaction: intake goes on beside it. Returns how many objects were looked at.
        """
        with self.read() as conn:
            waiting = [_of(row) for row in conn.execute(_query(correction.c.pending)).mappings()]
            gone = sa.select(correction.c.id).where(correction.c.pending, correction.c.revoked_at.is_not(None))
            revoked = set(conn.execute(gone).scalars())
        looked = 0
        for each in waiting:
            with self.read() as conn:
                ids = _concerned(conn, each)
            for at in range(0, len(ids), PAGE):
                with self.write() as conn:
                    for number in ids[at : at + PAGE]:
                        apply_corrections(conn, number)
            looked += len(ids)
            # revoked meanwhile: what was looked at before that is to be looked at once more
            same = correction.c.revoked_at.is_not(None) if each.id in revoked else correction.c.revoked_at.is_(None)
            with self.write() as conn:
                conn.execute(sa.update(correction).where(correction.c.id == each.id, same).values(pending=False))
        return looked

    def corrections(self, limit: int = 200) -> list[dict[str, Any]]:
        """Corrections, newest first, revoked ones included. Patient data."""
        query = sa.select(correction).order_by(correction.c.id.desc()).limit(limit)
        with self.read() as conn:
            rows = [dict(row) for row in conn.execute(query).mappings()]
        return [{**row, "changes": json.loads(row["changes"])} for row in rows]

    def replacement(self, instance_id: int) -> tuple[str, dict[str, Any]] | None:
        """(name of the corrections, elements in DICOM JSON) that an object is given back with; None: as it came."""
        query = (
            sa.select(instance.c.coerced, coercion.c.replacement)
            .join(coercion, coercion.c.instance_id == instance.c.id)
            .where(instance.c.id == instance_id, instance.c.coerced.is_not(None))
        )
        with self.read() as conn:
            row = conn.execute(query).first()
        return (row.coerced, json.loads(row.replacement)) if row is not None else None


def apply_corrections(conn: Connection, instance_id: int) -> None:
    """Show an indexed instance under the corrections in force, in the caller's transaction; idempotent."""
    c = attributes.c
    row = conn.execute(sa.select(c.study_uid, c.metadata).where(c.instance_id == instance_id)).first()
    if row is None:
        return
    known = conn.execute(sa.select(coercion.c.original).where(coercion.c.instance_id == instance_id)).scalar()
    candidates = _in_force(conn, row.study_uid)
    if not candidates and known is None:
        return
    metadata = _object(row.metadata)
    if known is not None:
        metadata = _with(metadata, json.loads(known))
    effect = coerce(row.study_uid, metadata, candidates)
    conn.execute(sa.delete(coercion).where(coercion.c.instance_id == instance_id))
    if known is not None or effect is not None:
        _show(conn, instance_id, _with(metadata, effect.replacement) if effect else metadata, effect, known)
    if effect is not None:
        conn.execute(coercion.insert().values(instance_id=instance_id, **_record(metadata, effect)))
    name = effect.name if effect else None
    conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(coerced=name))


def forget_corrections(conn: Connection, ids: Sequence[int], studies: Sequence[str], patients: Sequence[str]) -> None:
    """In the transaction that shreds instances: their originals' values, and corrections of their studies, of their
    Patient IDs and to these (revoked ones: see `corrections_to`), go with them.
    """
    conn.execute(sa.delete(coercion).where(coercion.c.instance_id.in_(ids)))
    conn.execute(sa.update(instance).where(instance.c.id.in_(ids)).values(coerced=None))
    named = [number for patient_id in patients for number, _ in corrections_to(conn, patient_id)]
    theirs = (correction.c.study_uid.in_(studies), correction.c.patient_id.in_(patients), correction.c.id.in_(named))
    conn.execute(sa.delete(correction).where(sa.or_(*theirs)))


def corrections_to(conn: Connection, patient_id: str) -> list[tuple[int, bool]]:
    """(id, shown) of the corrections that show objects under this Patient ID, and so with this patient's name, too.

    shown: in force, or revoked and not taken back everywhere yet.
    """
    c = correction.c
    columns = sa.select(c.id, c.changes, sa.or_(c.revoked_at.is_(None), c.pending).label("shown"))
    rows = conn.execute(columns.where(c.changes.contains('"PatientID"', autoescape=True)).order_by(c.id))
    return [(row.id, bool(row.shown)) for row in rows if json.loads(row.changes)["PatientID"] == patient_id]


def _record(metadata: Mapping[str, Any], effect: Effect) -> dict[str, str]:
    return {
        "patient_id": text_of(metadata.get(PATIENT_ID)),
        "applied": "".join(f",{number}" for number in effect.applied) + ",",
        "original": json.dumps(effect.original),
        "replacement": json.dumps(effect.replacement),
    }


def _show(
    conn: Connection, instance_id: int, shown: Mapping[str, Any], effect: Effect | None, known: str | None
) -> None:
    touched = set(effect.replacement if effect else ()) | set(json.loads(known) if known else ())
    values: dict[str, str | None] = {"metadata": json.dumps(dict(sorted(shown.items())))}
    for tag in touched & _COLUMN_OF.keys():
        column = _COLUMN_OF[tag]
        values[column] = text_of(shown.get(tag)) or None
        if column in NAME_KEYS:
            values[NAME_KEYS[column]] = fold(values[column] or "") or None
    conn.execute(sa.update(attributes).where(attributes.c.instance_id == instance_id).values(**values))


def _in_force(conn: Connection, study_uid: str | None) -> list[Correction]:
    """Of the study, and all of patients: those that concern an object are known only as they are applied in turn."""
    c = correction.c
    ours = sa.or_(c.study_uid.is_(None), c.study_uid == study_uid)
    return [_of(row) for row in conn.execute(_query(c.revoked_at.is_(None), ours)).mappings()]


def _concerned(conn: Connection, each: Correction) -> list[int]:
    """Ids of instances that a correction may change, or has changed."""
    c = attributes.c
    has = sa.select(coercion.c.instance_id).where(coercion.c.applied.contains(f",{each.id},"))
    ids = set(conn.execute(has).scalars())
    mine = c.study_uid == each.study_uid if each.study_uid is not None else c.patient_id == each.patient_id
    ids |= set(conn.execute(sa.select(c.instance_id).where(mine)).scalars())
    if each.patient_id is not None:
        was = sa.select(coercion.c.instance_id).where(coercion.c.patient_id == each.patient_id)
        ids |= set(conn.execute(was).scalars())
    return sorted(ids)


def _query(*where: Any) -> sa.Select[Any]:
    c = correction.c
    columns = (c.id, c.study_uid, c.patient_id, c.issuer, c.changes, c.created_at)
    return sa.select(*columns).where(*where).order_by(c.id)


def _of(row: RowMapping) -> Correction:
    return Correction(**{**row, "changes": json.loads(row["changes"])})


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, dict) else {}


def _with(metadata: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with these elements; None takes one away."""
    return {tag: value for tag, value in {**metadata, **changes}.items() if value is not None}
