"""The index under QIDO-RS and the DIMSE query and retrieve (PS3.18 10.6, PS3.4 C): patient data is here and in no
other module of the index.

A search is two steps: the keys of what matches, in order, and then, page by page, what is said of them. So the answer
is of one moment, and its memory is that of its keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from gateway.database import Database
from gateway.errors import InvalidInstance
from gateway.index_audit import put_subject
from gateway.index_correction import apply_corrections
from gateway.index_intake import fetch
from gateway.index_ledger import touch_study
from gateway.index_rows import InstanceRow
from gateway.index_schema import attributes, coercion, instance
from gateway.index_visible import visible
from gateway.matching import COLUMNS, LEVELS, LISTED, NAME_KEYS, Level, conditions, fold, number
from gateway.matching_stored import StoredKey, stored_match

__all__ = ["COLUMNS", "Level", "Matches", "Options", "Page", "Retrievable", "Search"]

PAGE: Final = 200
#: Instances (or series, above the instance level) whose metadata one search may read to match keys without a column.
SCANNED: Final = 20_000
METADATA_HELD: Final = 16  # instances whose metadata one search holds at a time
_JOINED: Final = attributes.join(instance, instance.c.id == attributes.c.instance_id)
#: What one match of a level is: the columns that tell it from others.
_KEYS: Final[dict[str, tuple[ColumnElement[Any], ...]]] = {
    "patient": (attributes.c.patient_id,),
    "study": (attributes.c.study_uid,),
    "series": (attributes.c.study_uid, attributes.c.series_uid),
    "instance": (instance.c.id,),
}
#: The same as keywords of an answer.
_KEY_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "patient": ("PatientID",),
    "study": ("StudyInstanceUID",),
    "series": ("StudyInstanceUID", "SeriesInstanceUID"),
    "instance": ("id",),
}
_STUDIES: Final = sa.func.count(sa.distinct(attributes.c.study_uid))
_SERIES: Final = sa.func.count(sa.distinct(attributes.c.series_uid))
_COUNTS: Final[dict[str, tuple[tuple[str, ColumnElement[int]], ...]]] = {
    "patient": (
        ("NumberOfPatientRelatedStudies", _STUDIES),
        ("NumberOfPatientRelatedSeries", _SERIES),
        ("NumberOfPatientRelatedInstances", sa.func.count()),
    ),
    "study": (("NumberOfStudyRelatedSeries", _SERIES), ("NumberOfStudyRelatedInstances", sa.func.count())),
    "series": (("NumberOfSeriesRelatedInstances", sa.func.count()),),
}


@dataclass(frozen=True, slots=True)
class Matches:
    """What a search found. count: matches in `rows`; more: there are others beyond the limit."""

    count: int
    more: bool
    rows: Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Page:
    """Part of an answer. rows: as of `Search.search`; remaining: matches after them; stored: what was made of the
    metadata (DICOM JSON text) of the first instance of each row, in their order, empty where not asked for.
    """

    rows: list[dict[str, Any]]
    remaining: int
    stored: list[str]


@dataclass(frozen=True, slots=True)
class Options:
    """How keys are matched: see `gateway.matching.conditions`."""

    fuzzy: bool = False
    combined: bool = False
    empty: bool = False
    multiple: bool = False


#: Among the values of `set_attributes`: `gateway.pseudonym.pseudonym_accession`, by which a person finds an instance.
ACCESSION_PSEUDONYM: Final = "AccessionPseudonym"


@dataclass(frozen=True, slots=True)
class Retrievable:
    """An instance that may be given back: what a C-STORE sub-operation must know before it is opened."""

    id: int
    sop_uid: str
    sop_class: str
    study_uid: str | None
    transfer_syntax: str


class Search(Database):
    """Attributes by instance, written by the index task, read by QIDO-RS, C-FIND and WADO-RS metadata."""

    def set_attributes(
        self,
        instance_id: int,
        values: Mapping[str, str | int | None],
        metadata_json: str,
        pixel_digest: str | None = None,
        subject: tuple[str, str] | None = None,
    ) -> None:
        """Record what the index task read. values: DICOM keyword -> text or integer (see COLUMNS; others are ignored).

        metadata_json: the DICOM JSON model of the instance (PS3.18 F), text. pixel_digest: `part10.pixel_digest`.
        subject: pseudonyms of study and patient, by which the audit trail is searched.
        Idempotent. The UIDs of the row itself win over those in `values`; ACCESSION_PSEUDONYM may be among them.
        """
        with self.write() as conn:
            row = fetch(conn, instance_id)
            put_attributes(conn, row, values, metadata_json, pixel_digest, self.now(), subject)

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
        """Matches at a level, shown instances only: keyword -> text, integer, list (ModalitiesInStudy) or None.

        filters: keyword -> matching value (`gateway.matching`). Adds the level's Number...Related... counts. Patients
        and studies: newest study first. Raises InvalidInstance ``unsupported-filter``, ``bad-filter``.
        """
        with self.read() as conn:
            keys = _matching_keys(conn, level, conditions(filters, fuzzy=fuzzy), limit, offset)
            pages = (keys[at : at + PAGE] for at in range(0, len(keys), PAGE))
            return [row for page in pages for row in _described(conn, level, page)]

    def page(
        self,
        level: Level,
        filters: Mapping[str, str],
        options: Options,
        *,
        limit: int,
        offset: int = 0,
        keys: Sequence[StoredKey] = (),
        stored: Callable[[str], str] | None = None,
    ) -> Page:
        """A part of what matches, with the number of what is left. keys: matched against stored metadata: above the
        instance level that of one instance of each series, for such attributes are the same in all. stored: what is
        kept of metadata, which may be megabytes an instance: few of them are held at a time.

        Raises as `search`, and InvalidInstance ``search-too-broad`` where the keys would be looked for in more than
        `SCANNED`.
        """
        where = conditions(
            filters,
            fuzzy=options.fuzzy,
            combined=options.combined,
            empty=options.empty,
            multiple=options.multiple,
        )
        with self.read() as conn:
            if keys:
                every = _scanned(conn, level, where, keys, options)
                found, total = every[offset : offset + limit], len(every)
            else:
                found = _matching_keys(conn, level, where, limit + 1, offset)
                total = offset + len(found) if len(found) <= limit else _count(conn, level, where)
                found = found[:limit]
            pages = [found[at : at + PAGE] for at in range(0, len(found), PAGE)]
            rows = [row for page in pages for row in _described(conn, level, page)]
            by_key: dict[tuple[Any, ...], str] = {}
            if stored is not None:
                by_key = {key: stored(text) for page in pages for key, text in _stored(conn, level, page)}
        names = _KEY_NAMES[level]
        texts = [by_key.get(tuple(row[name] for name in names), "{}") for row in rows] if stored else []
        return Page(rows, max(0, total - offset - len(found)), texts)

    def matches(
        self, level: Level, filters: Mapping[str, str], limit: int, *, fuzzy: bool = False, combined: bool = False
    ) -> Matches:
        """The same as a stream: keys now, at most `limit`, and rows a page at a time as they are asked for.

        A row that vanished meanwhile is left out. Raises as `search`.
        """
        with self.read() as conn:
            keys = _matching_keys(conn, level, conditions(filters, fuzzy=fuzzy, combined=combined), limit + 1, 0)
        found = keys[:limit]
        return Matches(len(found), len(keys) > limit, self._rows(level, found))

    def _rows(self, level: Level, keys: Sequence[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        for at in range(0, len(keys), PAGE):
            with self.read() as conn:
                page = _described(conn, level, keys[at : at + PAGE])
            yield from page

    def retrievable(self, unique: Mapping[str, Sequence[str]], limit: int) -> list[Retrievable]:
        """Instances by unique keys (keyword -> any of these values), in the order of their arrival by series.

        Those not indexed yet are found by their UIDs, not by Patient ID. At most `limit`.
        """
        columns = {
            "PatientID": attributes.c.patient_id, "StudyInstanceUID": instance.c.study_uid,
            "SeriesInstanceUID": instance.c.series_uid, "SOPInstanceUID": instance.c.sop_uid,
        }  # fmt: skip
        wanted = (instance.c.id, instance.c.sop_uid, instance.c.sop_class, instance.c.study_uid)
        query = (
            sa.select(*wanted, instance.c.transfer_syntax)
            .select_from(instance.outerjoin(attributes, instance.c.id == attributes.c.instance_id))
            .where(visible(), *(columns[keyword].in_(list(values)) for keyword, values in unique.items()))
            .order_by(instance.c.study_uid, instance.c.series_uid, instance.c.id)
            .limit(limit)
        )
        with self.read() as conn:
            return [Retrievable(**row) for row in conn.execute(query).mappings()]


def _matching_keys(
    conn: Connection, level: Level, where: Sequence[ColumnElement[bool]], limit: int, offset: int
) -> list[tuple[Any, ...]]:
    """Keys of what matches, in the order of the answer."""
    columns = _KEYS[level]
    query = sa.select(*columns).select_from(_JOINED).where(visible(), *where, *(c.is_not(None) for c in columns))
    if level == "instance":
        query = query.order_by(attributes.c.series_uid, attributes.c.instance_number, instance.c.id)
    else:
        newest = sa.func.max(attributes.c.study_date).desc().nulls_last()
        query = query.group_by(*columns).order_by(newest, *columns)
    return [tuple(row) for row in conn.execute(query.limit(limit).offset(offset))]


def _count(conn: Connection, level: Level, where: Sequence[ColumnElement[bool]]) -> int:
    columns = _KEYS[level]
    query = sa.select(*columns).select_from(_JOINED).where(visible(), *where, *(c.is_not(None) for c in columns))
    return int(conn.execute(sa.select(sa.func.count()).select_from(query.distinct().subquery())).scalar_one())


def _scanned(
    conn: Connection,
    level: Level,
    where: Sequence[ColumnElement[bool]],
    keys: Sequence[StoredKey],
    options: Options,
) -> list[tuple[Any, ...]]:
    """Keys of what matches in the index and in the stored metadata, in the order of the answer."""
    columns = _KEYS[level]
    query = sa.select(*columns, attributes.c.metadata).select_from(_JOINED)
    query = query.where(visible(), *where, *(c.is_not(None) for c in columns))
    if level == "instance":
        query = query.order_by(attributes.c.series_uid, attributes.c.instance_number, instance.c.id)
    else:
        first = sa.select(sa.func.min(instance.c.id)).select_from(_JOINED).where(visible(), *where)
        query = query.where(instance.c.id.in_(first.group_by(attributes.c.study_uid, attributes.c.series_uid)))
        query = query.order_by(attributes.c.study_date.desc().nulls_last(), *columns)
    found: dict[tuple[Any, ...], None] = {}
    read = 0
    for *key, text in conn.execute(query.limit(SCANNED + 1).execution_options(yield_per=METADATA_HELD)):
        if (read := read + 1) > SCANNED:
            raise InvalidInstance("search-too-broad", "Too much would be searched: add a study, a patient or a date.")
        dataset = json.loads(text)
        how = {"fuzzy": options.fuzzy, "empty": options.empty, "multiple": options.multiple}
        if all(stored_match(dataset, one, **how) for one in keys):
            found[tuple(key)] = None
    return list(found)


def _stored(conn: Connection, level: Level, keys: Sequence[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(key, metadata of the first instance) of each match."""
    columns = _KEYS[level]
    among = columns[0].in_([key[0] for key in keys]) if len(columns) == 1 else sa.tuple_(*columns).in_(list(keys))
    first = sa.select(sa.func.min(instance.c.id)).select_from(_JOINED).where(visible(), among).group_by(*columns)
    query = sa.select(*columns, attributes.c.metadata).select_from(_JOINED).where(instance.c.id.in_(first))
    found = conn.execute(query.execution_options(yield_per=METADATA_HELD))
    yield from ((tuple(key), text) for *key, text in found)


def _described(conn: Connection, level: Level, keys: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What is said of these matches, in their order: counts and lists are of all that is shown, whatever was asked."""
    by_key = dict(_of_keys(conn, level, keys))
    found = [by_key[key] for key in keys if key in by_key]
    if level == "study":
        _add_lists(conn, found)
    return found


def _of_keys(conn: Connection, level: Level, keys: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    depth = LEVELS.index(level)
    names = [(keyword, column) for keyword, (column, home, _) in COLUMNS.items() if LEVELS.index(home) <= depth]
    columns = _KEYS[level]
    among = columns[0].in_([key[0] for key in keys]) if len(columns) == 1 else sa.tuple_(*columns).in_(list(keys))
    own = [column.label(f"key{n}") for n, column in enumerate(columns)]
    if level == "instance":
        said = [attributes.c[column].label(keyword) for keyword, column in names]
        query = sa.select(*own, *said).select_from(_JOINED).where(visible(), among)
    else:
        said = [sa.func.max(attributes.c[column]).label(keyword) for keyword, column in names]
        counts = [count.label(keyword) for keyword, count in _COUNTS[level]]
        query = sa.select(*own, *said, *counts).select_from(_JOINED).where(visible(), among).group_by(*columns)
    for row in conn.execute(query).mappings():
        values = dict(row)
        key = tuple(values.pop(label.name) for label in own)
        yield key, {**values, **({"id": key[0]} if level == "instance" else {})}


def _add_lists(conn: Connection, found: list[dict[str, Any]]) -> None:
    uids = [row["StudyInstanceUID"] for row in found]
    for keyword, name in LISTED.items():
        column = attributes.c[name]
        query = (
            sa.select(attributes.c.study_uid, column)
            .select_from(_JOINED)
            .where(attributes.c.study_uid.in_(uids), visible(), column.is_not(None))
            .distinct()
        )
        by_study: dict[str, list[str]] = {}
        for uid, value in conn.execute(query):
            by_study.setdefault(uid, []).append(value)
        for row in found:
            row[keyword] = sorted(by_study.get(row["StudyInstanceUID"], []))


def put_attributes(
    conn: Connection,
    row: InstanceRow,
    values: Mapping[str, str | int | None],
    metadata_json: str,
    pixel_digest: str | None,
    now: float,
    subject: tuple[str, str] | None = None,
) -> None:
    """As `Search.set_attributes`, in the caller's write transaction."""
    record = _record(values)
    uids = {"study_uid": row.study_uid or record.get("study_uid")}
    uids["series_uid"] = row.series_uid or record.get("series_uid")
    record |= {**uids, "sop_uid": row.sop_uid, "sop_class": row.sop_class}
    conn.execute(sa.delete(attributes).where(attributes.c.instance_id == row.id))
    conn.execute(attributes.insert().values(**record, instance_id=row.id, metadata=metadata_json))
    changes: dict[str, Any] = {**uids, "indexed_at": now, "modality": _short(record.get("modality"))}
    if pseudonym := values.get(ACCESSION_PSEUDONYM):
        changes["accession_pseudonym"] = str(pseudonym)[:16]
    if pixel_digest is not None:
        changes["pixel_digest"] = pixel_digest
    conn.execute(sa.update(instance).where(instance.c.id == row.id).values(**changes))
    conn.execute(sa.delete(coercion).where(coercion.c.instance_id == row.id))  # of what was read before
    apply_corrections(conn, row.id)
    if subject is not None:
        put_subject(conn, row.id, subject)
    if row.study_uid is None:
        touch_study(conn, uids["study_uid"])


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
        if column in NAME_KEYS:
            record[NAME_KEYS[column]] = fold(record[column])
    for column in ("study_uid", "series_uid"):
        if len(record.get(column, "")) > 64:
            del record[column]
    return record


def _number_or_none(value: str | int) -> int | None:
    try:
        return number(value)
    except InvalidInstance:
        return None


def _short(modality: str | None) -> str | None:
    return modality[:16] if modality else None
