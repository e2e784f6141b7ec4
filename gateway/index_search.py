"""The index under QIDO-RS (PS3.18 10.6, matching of PS3.4 C.2.2.2): patient data is here and in no other module.

Keys are DICOM keywords, in and out; one table says which column answers which keyword at which level.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from gateway.database import Database
from gateway.errors import InvalidInstance
from gateway.index_intake import fetch
from gateway.index_schema import attributes, instance

Level = Literal["study", "series", "instance"]

#: keyword -> (column, level it belongs to, kind of matching)
COLUMNS: Final[dict[str, tuple[str, str, str]]] = {
    "StudyInstanceUID": ("study_uid", "study", "uid"),
    "PatientName": ("patient_name", "study", "name"),
    "PatientID": ("patient_id", "study", "text"),
    "PatientBirthDate": ("birth_date", "study", "range"),
    "PatientSex": ("sex", "study", "text"),
    "StudyDate": ("study_date", "study", "range"),
    "StudyTime": ("study_time", "study", "time"),
    "AccessionNumber": ("accession", "study", "text"),
    "StudyID": ("study_id", "study", "text"),
    "StudyDescription": ("study_description", "study", "text"),
    "ReferringPhysicianName": ("referring_physician", "study", "name"),
    "SeriesInstanceUID": ("series_uid", "series", "uid"),
    "Modality": ("modality", "series", "text"),
    "SeriesNumber": ("series_number", "series", "number"),
    "SeriesDescription": ("series_description", "series", "text"),
    "BodyPartExamined": ("body_part", "series", "text"),
    "SeriesDate": ("series_date", "series", "range"),
    "SOPInstanceUID": ("sop_uid", "instance", "uid"),
    "SOPClassUID": ("sop_class", "instance", "uid"),
    "InstanceNumber": ("instance_number", "instance", "number"),
    "Rows": ("rows", "instance", "number"),
    "Columns": ("columns", "instance", "number"),
    "BitsAllocated": ("bits_allocated", "instance", "number"),
    "NumberOfFrames": ("frames", "instance", "number"),
}
_NAME_KEYS: Final = {"patient_name": "patient_name_key", "referring_physician": "referring_physician_key"}
_LEVELS: Final = ("study", "series", "instance")
_INT_LIMIT: Final = 1 << 62


class Search(Database):
    """Attributes by instance, written by the index task, read by QIDO-RS and WADO-RS metadata."""

    def set_attributes(
        self,
        instance_id: int,
        values: Mapping[str, str | int | None],
        metadata_json: str,
        pixel_digest: str | None = None,
    ) -> None:
        """Record what the index task read. values: DICOM keyword -> text or integer (see COLUMNS; others are ignored).

        metadata_json: the DICOM JSON model of the instance (PS3.18 F), text. pixel_digest: `part10.pixel_digest`.
        Idempotent. The UIDs of the row itself win over those in `values`.
        """
        with self.write() as conn:
            row = fetch(conn, instance_id)
            record = _record(values)
            uids = {"study_uid": row.study_uid or record.get("study_uid")}
            uids["series_uid"] = row.series_uid or record.get("series_uid")
            record |= {**uids, "sop_uid": row.sop_uid, "sop_class": row.sop_class}
            conn.execute(sa.delete(attributes).where(attributes.c.instance_id == instance_id))
            conn.execute(attributes.insert().values(**record, instance_id=instance_id, metadata=metadata_json))
            changes: dict[str, Any] = {**uids, "indexed_at": self.now(), "modality": _short(record.get("modality"))}
            if pixel_digest is not None:
                changes["pixel_digest"] = pixel_digest
            conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**changes))

    def set_pixel_digest(self, instance_id: int, pixel_digest: str) -> None:
        """Record the digest of the raw pixel value, which decides between version and conflict."""
        with self.write() as conn:
            changes = {"pixel_digest": pixel_digest}
            conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**changes))

    def metadata(self, instance_id: int) -> str | None:
        """The DICOM JSON text of an instance; None while it is not indexed."""
        with self.read() as conn:
            query = sa.select(attributes.c.metadata).where(attributes.c.instance_id == instance_id)
            return conn.execute(query).scalar()

    def search(
        self, level: Level, filters: Mapping[str, str], limit: int = 100, offset: int = 0, fuzzy: bool = False
    ) -> list[dict[str, Any]]:
        """Matches at a level, served versions only: keyword -> text, integer, list (ModalitiesInStudy) or None.

        filters: keyword -> PS3.4 C.2.2.2 value: single, wildcard, list of UIDs by comma or backslash, range a-b.
        `fuzzy`: every word of a name filter starts a word of the name. Adds the level's Number...Related... counts.
        Study level: newest study first. Raises InvalidInstance ``unsupported-filter``.
        """
        where = [instance.c.current, *(_condition(keyword, value, fuzzy) for keyword, value in filters.items())]
        with self.read() as conn:
            rows = conn.execute(_query(level, where).limit(limit).offset(offset)).mappings().all()
            found = [dict(row) for row in rows]
            if level == "study":
                _add_modalities(conn, found)
        return found


def _query(level: Level, where: Sequence[ColumnElement[bool]]) -> sa.Select[Any]:
    depth = _LEVELS.index(level)
    names = [(k, c) for k, (c, home, _) in COLUMNS.items() if _LEVELS.index(home) <= depth]
    source = attributes.join(instance, instance.c.id == attributes.c.instance_id)
    if level == "instance":
        columns: list[Any] = [attributes.c[column].label(keyword) for keyword, column in names]
        columns.append(instance.c.id.label("id"))
        order = (attributes.c.series_uid, attributes.c.instance_number, instance.c.id)
        return sa.select(*columns).select_from(source).where(*where).order_by(*order)
    # grouping may only ever count served instances of the whole study or series, so the filters go into a subquery
    keys = ["study_uid"] if level == "study" else ["study_uid", "series_uid"]
    matching = sa.select(*(attributes.c[k] for k in keys)).select_from(source).where(*where).distinct().subquery()
    joined = source.join(matching, sa.and_(*(attributes.c[k] == matching.c[k] for k in keys)))
    columns = [sa.func.max(attributes.c[column]).label(keyword) for keyword, column in names]
    if level == "study":
        columns.append(sa.func.count(sa.distinct(attributes.c.series_uid)).label("NumberOfStudyRelatedSeries"))
        columns.append(sa.func.count().label("NumberOfStudyRelatedInstances"))
    else:
        columns.append(sa.func.count().label("NumberOfSeriesRelatedInstances"))
    grouped = sa.select(*columns).select_from(joined).where(instance.c.current)
    newest = sa.func.max(attributes.c.study_date).desc()
    return grouped.group_by(*(attributes.c[k] for k in keys)).order_by(newest, *(attributes.c[k] for k in keys))


def _add_modalities(conn: Connection, found: list[dict[str, Any]]) -> None:
    uids = [row["StudyInstanceUID"] for row in found]
    query = (
        sa.select(attributes.c.study_uid, attributes.c.modality)
        .join(instance, instance.c.id == attributes.c.instance_id)
        .where(attributes.c.study_uid.in_(uids), instance.c.current, attributes.c.modality.is_not(None))
        .distinct()
    )
    by_study: dict[str, list[str]] = {}
    for uid, modality in conn.execute(query):
        by_study.setdefault(uid, []).append(modality)
    for row in found:
        row["ModalitiesInStudy"] = sorted(by_study.get(row["StudyInstanceUID"], []))


def _condition(keyword: str, value: str, fuzzy: bool) -> ColumnElement[bool]:
    if keyword == "ModalitiesInStudy":
        other = attributes.alias()
        served = instance.alias()
        return sa.exists().where(
            other.c.study_uid == attributes.c.study_uid,
            served.c.id == other.c.instance_id,
            served.c.current,
            sa.or_(*(_text(other.c.modality, part) for part in value.replace("\\", ",").split(","))),
        )
    if keyword not in COLUMNS:
        raise InvalidInstance("unsupported-filter", "this attribute cannot be searched")
    column_name, _, kind = COLUMNS[keyword]
    column = attributes.c[column_name]
    if kind == "name":
        return _name(attributes.c[_NAME_KEYS[column_name]], value, fuzzy)
    if kind == "number":
        return column == _number(value)
    return {"uid": _uids, "text": _text, "range": _range, "time": _time}[kind](column, value)


def _number(value: str | int) -> int:
    try:
        number = int(value)
    except ValueError:
        raise InvalidInstance("bad-filter", "an integer is expected") from None
    return max(-_INT_LIMIT, min(_INT_LIMIT, number))


def _uids(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    return column.in_([uid for uid in value.replace("\\", ",").split(",") if uid])


def _text(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    if "*" not in value and "?" not in value:
        return column == value
    return column.like(_pattern(value), escape="\\")


def _pattern(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _range(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    low, dash, high = value.partition("-")
    if not dash:
        return column == value
    bounds = [column >= low] if low else [column != ""]
    return sa.and_(*bounds, *([column <= high] if high else []))


def _time(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    low, dash, high = value.partition("-")
    if not dash:
        return column.like(_pattern(value) + "%", escape="\\")
    padded = high + "999999.999999"[len(high) :] if high else ""  # 1230 as an upper end means 12:30:59.999999
    return _range(column, f"{low}-{padded}")


def _name(column: ColumnElement[Any], value: str, fuzzy: bool) -> ColumnElement[bool]:
    """Names match without regard to case and accents (PS3.4 C.2.2.2.1 allows it); components count as words."""
    words = _fold(value)
    if fuzzy:
        parts = [_pattern(word.rstrip("*")) for word in words.split() if word.rstrip("*")]
        return sa.and_(sa.true(), *((" " + column).like(f"% {part}%", escape="\\") for part in parts))
    return _text(column, words)


def _fold(name: str) -> str:
    decomposed = unicodedata.normalize("NFKD", name.replace("^", " ").replace("=", " "))
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(plain.casefold().split())


def _record(values: Mapping[str, str | int | None]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for keyword, (column, _, kind) in COLUMNS.items():
        value = values.get(keyword)
        if value is None or value == "":
            continue
        if kind == "number":
            record[column] = _number_or_none(value)
        else:
            record[column] = str(value).replace("\0", "")[:4096]  # PostgreSQL text takes no NUL
        if column in _NAME_KEYS:
            record[_NAME_KEYS[column]] = _fold(record[column])
    for column in ("study_uid", "series_uid"):
        if len(record.get(column, "")) > 64:
            del record[column]
    return record


def _number_or_none(value: str | int) -> int | None:
    try:
        return _number(value)
    except InvalidInstance:
        return None


def _short(modality: str | None) -> str | None:
    return modality[:16] if modality else None
