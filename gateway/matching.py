"""Matching of keys against the index (PS3.4 C.2.2.2): one engine for QIDO-RS and C-FIND.

Keys are DICOM keywords; one table says which column answers which keyword, at which level, by which kind of matching.
Values are text in the form of PS3.4 C.2.2.2: single, wildcard, range, list of UIDs (by comma or backslash).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from gateway.errors import InvalidInstance
from gateway.index_schema import attributes, instance
from gateway.index_visible import visible

Level = Literal["patient", "study", "series", "instance"]
LEVELS: Final[tuple[Level, ...]] = ("patient", "study", "series", "instance")

#: keyword -> (column, level it belongs to, kind of matching)
COLUMNS: Final[dict[str, tuple[str, Level, str]]] = {
    "PatientName": ("patient_name", "patient", "name"),
    "PatientID": ("patient_id", "patient", "text"),
    "PatientBirthDate": ("birth_date", "patient", "range"),
    "PatientSex": ("sex", "patient", "text"),
    "StudyInstanceUID": ("study_uid", "study", "uid"),
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
#: what a study lists of its instances -> the column
LISTED: Final = {"ModalitiesInStudy": "modality", "SOPClassesInStudy": "sop_class"}
NAME_KEYS: Final = {"patient_name": "patient_name_key", "referring_physician": "referring_physician_key"}
#: The value that matches an attribute without one, where that is asked for (PS3.4 C.2.2.2).
EMPTY: Final = '""'
_INT_LIMIT: Final = 1 << 62
MAX_UIDS: Final = 10_000  # in one list; PostgreSQL takes 65,535 parameters, SQLite 32,766
MAX_VALUES: Final = 200  # alternatives of one key; an expression of SQLite is at most 1,000 deep
_DATE: Final = re.compile(r"\d{8}|\d{8}-(\d{8})?|-\d{8}")
_CLOCK: Final = r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"
_TIME: Final = re.compile(rf"{_CLOCK}|{_CLOCK}-({_CLOCK})?|-{_CLOCK}")
_FORMS: Final = {"range": _DATE, "time": _TIME}


def conditions(
    filters: Mapping[str, str],
    *,
    fuzzy: bool = False,
    combined: bool = False,
    empty: bool = False,
    multiple: bool = False,
) -> list[ColumnElement[bool]]:
    """The WHERE of a search. fuzzy: every word of a name filter starts a word of the name. combined: Study Date and
    Study Time ranges are one interval (PS3.4 C.2.2.2.5.1). empty: the value ``""`` matches what has none. multiple: any
    of the values between backslashes matches. Raises InvalidInstance ``unsupported-filter``, ``bad-filter``.
    """
    rest = dict(filters)
    found: list[ColumnElement[bool]] = []
    if combined and {"StudyDate", "StudyTime"} <= rest.keys() and "-" in rest["StudyDate"]:
        found.append(_interval(rest.pop("StudyDate"), rest.pop("StudyTime")))
    for keyword, value in rest.items():
        if empty and value == EMPTY:
            found.append(_without(keyword))
        else:
            values = _few(value.split("\\") if multiple else [value])
            found.append(sa.or_(*(_condition(keyword, one, fuzzy) for one in values)))
    return found


def _few(values: list[str]) -> list[str]:
    """Raise InvalidInstance ``bad-filter`` for more alternatives than an expression of a database may have."""
    if len(values) > MAX_VALUES:
        raise InvalidInstance("bad-filter", f"at most {MAX_VALUES} values in one list")
    return values


def _without(keyword: str) -> ColumnElement[bool]:
    if keyword not in COLUMNS:
        raise InvalidInstance("unsupported-filter", "this attribute cannot be searched for being empty")
    column = attributes.c[COLUMNS[keyword][0]]
    return column.is_(None) if COLUMNS[keyword][2] == "number" else sa.or_(column.is_(None), column == "")


def check_form(keyword: str, value: str) -> None:
    """Raise InvalidInstance ``bad-filter`` for a date or time that is neither a value nor a range, or a NUL."""
    form = _FORMS.get(COLUMNS[keyword][2]) if keyword in COLUMNS else None
    if "\0" in value or (form is not None and form.fullmatch(value) is None):
        raise InvalidInstance("bad-filter", f"The value of {keyword} is no value or range of its kind (PS3.4 C.2.2.2).")


def _condition(keyword: str, value: str, fuzzy: bool) -> ColumnElement[bool]:
    if keyword in LISTED:
        return _listed(LISTED[keyword], value)
    if keyword not in COLUMNS:
        raise InvalidInstance("unsupported-filter", "this attribute cannot be searched")
    column_name, _, kind = COLUMNS[keyword]
    column = attributes.c[column_name]
    if kind == "name":
        return _name(attributes.c[NAME_KEYS[column_name]], value, fuzzy)
    if kind == "number":
        return column == number(value)
    return {"uid": _uids, "text": _text, "range": _range, "time": _time}[kind](column, value)


def _listed(column: str, value: str) -> ColumnElement[bool]:
    """Any shown instance of the same study has one of these values."""
    other = attributes.alias()
    served = instance.alias()
    return sa.exists().where(
        other.c.study_uid == attributes.c.study_uid,
        served.c.id == other.c.instance_id,
        visible(served),
        sa.or_(*(_text(other.c[column], part) for part in _few(value.replace("\\", ",").split(",")))),
    )


def number(value: str | int) -> int:
    """A whole number, held to what a database column takes. Raises InvalidInstance ``bad-filter``."""
    try:
        found = int(value)
    except ValueError:
        raise InvalidInstance("bad-filter", "an integer is expected") from None
    return max(-_INT_LIMIT, min(_INT_LIMIT, found))


def _uids(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    uids = [uid for uid in value.replace("\\", ",").split(",") if uid]
    if len(uids) > MAX_UIDS:
        raise InvalidInstance("bad-filter", f"at most {MAX_UIDS} UIDs in one list")
    return column.in_(uids)


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
    return _range(column, f"{low}-{end_of_time(high)}")


def end_of_time(time: str) -> str:
    """The last moment that a time of less precision means: 1230 as an upper end is 12:30:59.999999."""
    return time + "999999.999999"[len(time) :] if time else ""


def _interval(dates: str, times: str) -> ColumnElement[bool]:
    """From the first date at the first time to the last date at the last time (PS3.4 C.2.2.2.5.1)."""
    (first, _, last), (start, dash, end) = dates.partition("-"), times.partition("-")
    end = end_of_time(end if dash else start)
    day = attributes.c.study_date
    time = sa.func.coalesce(attributes.c.study_time, "")
    bounds: list[ColumnElement[bool]] = [day != ""]
    if first:
        bounds.append(sa.or_(day > first, sa.and_(day == first, time >= start)) if start else day >= first)
    if last:
        bounds.append(sa.or_(day < last, sa.and_(day == last, time <= end)) if end else day <= last)
    return sa.and_(*bounds)


def _name(column: ColumnElement[Any], value: str, fuzzy: bool) -> ColumnElement[bool]:
    """Names match without regard to case and accents (PS3.4 C.2.2.2.1 allows it); components count as words."""
    words = fold(value)
    if fuzzy:
        parts = [_pattern(word.rstrip("*")) for word in words.split() if word.rstrip("*")]
        return sa.and_(sa.true(), *((" " + column).like(f"% {part}%", escape="\\") for part in parts))
    return _text(column, words)


def fold(name: str) -> str:
    """A person's name without case, accents and component marks, as words."""
    decomposed = unicodedata.normalize("NFKD", name.replace("^", " ").replace("=", " "))
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(plain.casefold().split())
