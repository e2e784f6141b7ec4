"""QIDO-RS: search for studies, series and instances (PS3.18 10.6).

The query string is parsed into a `Query` whose keys are checked for form before the index sees them; what cannot be
matched is refused by name. Ignoring a key, as some servers do, would show a clinician images that were not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from gateway.errors import InvalidInstance
from gateway.index_search import Options
from gateway.matching import EMPTY, check_form
from gateway.matching_stored import StoredKey
from gateway.uids import parse_uid
from service.problems import HttpProblem
from service.qido_attributes import belongs, indexed, tag_of

__all__ = ["LEVELS", "RETURNED", "STORED", "Query", "parse_query", "to_dicom_json"]

MAX_LIMIT: Final = 5000
DEFAULT_LIMIT: Final = 1000
MAX_VALUE_CHARS: Final = 1024
MAX_UIDS: Final = 500
MAX_KEYS: Final = 100
MAX_DEPTH: Final = 8

LEVELS: Final = ("study", "series", "instance")

#: Attributes returned, by level (PS3.18 Tables 10.6.3-3 to 10.6.3-5).
RETURNED: Final[dict[str, tuple[str, ...]]] = {
    "study": (
        "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName",
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDescription",
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "series": (
        "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "SeriesDate",
        "BodyPartExamined", "NumberOfSeriesRelatedInstances",
    ),
    "instance": (
        "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SOPClassUID", "SOPInstanceUID", "InstanceNumber",
        "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
    ),
}  # fmt: skip
#: The same of the attributes that are in the stored metadata only.
STORED: Final[dict[str, tuple[str, ...]]] = {
    "study": ("TimezoneOffsetFromUTC",),
    "series": (
        "TimezoneOffsetFromUTC", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
        "RequestAttributesSequence",
    ),
    "instance": ("TimezoneOffsetFromUTC",),
}  # fmt: skip

_SWITCHES: Final = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_CONTROL: Final = frozenset({"limit", "offset", "includefield", "accept", "charset", *_SWITCHES})
_NUMBER = re.compile(r"[+-]?\d{1,12}")
_DECIMAL = re.compile(r"[+-]?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})([eE][+-]?\d{1,3})?")
_DATE_TIME = re.compile(r"(\d{4}(\d{2}){0,5}(\.\d{1,6})?)?-?(\d{4}(\d{2}){0,5}(\.\d{1,6})?)?")
_DATES = re.compile(r"\d{8}|\d{8}-(\d{8})?|-\d{8}")
_CLOCK: Final = r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"
_TIMES = re.compile(rf"{_CLOCK}|{_CLOCK}-({_CLOCK})?|-{_CLOCK}")
_WHOLE: Final = ("IS", "SL", "SS", "SV", "UL", "US", "UV")
_FORMS: Final = {
    "DA": _DATES, "TM": _TIMES, "DT": _DATE_TIME,
    **dict.fromkeys(_WHOLE, _NUMBER), **dict.fromkeys(("DS", "FD", "FL"), _DECIMAL),
}  # fmt: skip
#: What no value of a query string can be compared with.
_NO_KEY: Final = frozenset({"AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN"})


@dataclass(frozen=True)
class Query:
    """A checked search. filters: keyword -> matching value of PS3.4 C.2.2.2, for the index; keys: the others, matched
    against stored metadata; include: tags to return besides those of the level; passed: keywords of the path.
    """

    level: str
    filters: Mapping[str, str]
    keys: tuple[StoredKey, ...]
    options: Options
    limit: int
    offset: int
    include: frozenset[str]
    include_all: bool
    passed: frozenset[str] = frozenset()


def parse_query(level: str, items: Iterable[tuple[str, str]], path: Mapping[str, str]) -> Query:
    """Check a query string (decoded name-value pairs) and the UIDs of the path; raises HttpProblem 400 naming what is
    wrong.
    """
    filters: dict[str, str] = {keyword: str(parse_uid(uid)) for keyword, uid in path.items()}
    keys: dict[tuple[str, ...], StoredKey] = {}
    control: dict[str, list[str]] = {name: [] for name in _CONTROL}
    matched: list[tuple[str, str]] = []
    for name, value in items:
        if name.lower() in _CONTROL:
            control[name.lower()].append(value)
        else:
            matched.append((name, value))
    if len(matched) > MAX_KEYS:
        raise HttpProblem(400, "too-many-keys", f"At most {MAX_KEYS} attributes can be matched at once.")
    switches = {name: _switch(name, control[name]) for name in _SWITCHES}
    empty, multiple = switches["emptyvaluematching"], switches["multiplevaluematching"]
    for name, value in matched:
        keywords = _keywords(name)
        if not belongs(keywords[0], level):
            raise HttpProblem(400, "unsupported-attribute", f"This level cannot be searched by {keywords[0]}.")
        vr = _vr(keywords)
        if value in ("", "*"):  # universal matching, PS3.4 C.2.2.2.3
            continue
        checked = value if empty and value == EMPTY else _value(keywords[-1], vr, value, multiple)
        if len(keywords) == 1 and indexed(keywords[0]):
            if filters.setdefault(keywords[0], checked) != checked:
                raise HttpProblem(400, "repeated-attribute", f"{keywords[0]} is given twice.")
            continue
        tags = tuple(tag_of(keyword) for keyword in keywords)
        if keys.setdefault(tags, StoredKey(tags, checked)).value != checked:
            raise HttpProblem(400, "repeated-attribute", f"{'.'.join(keywords)} is given twice.")
    include, include_all = _include(control["includefield"], level)
    return Query(
        level,
        filters,
        tuple(keys.values()),
        Options(fuzzy=switches["fuzzymatching"], combined=True, empty=empty, multiple=multiple),
        limit=min(MAX_LIMIT, _count(control["limit"], "limit", DEFAULT_LIMIT)),
        offset=_count(control["offset"], "offset", 0),
        include=include | {key.path[0] for key in keys.values()},
        include_all=include_all,
        passed=frozenset(path),
    )


def _switch(name: str, values: list[str]) -> bool:
    if not values:
        return False
    if values[-1].lower() not in ("true", "false"):
        raise HttpProblem(400, f"bad-{name}", f"{name} is true or false.")
    return values[-1].lower() == "true"


def _keywords(name: str) -> tuple[str, ...]:
    """The keywords of a parameter's name: keywords or eight-digit tags, sequences first (PS3.18 8.3.4.1)."""
    parts = name.split(".")
    found = tuple(_known(part) for part in parts[:MAX_DEPTH])
    if len(parts) > MAX_DEPTH or not all(found):
        raise HttpProblem(400, "unknown-attribute", "A query parameter is neither a DICOM keyword nor a known tag.")
    return found


def _vr(keywords: tuple[str, ...]) -> str:
    """The value representation of what is matched. Raises HttpProblem 400 for what cannot be."""
    *sequences, last = (dictionary_VR(keyword) for keyword in keywords)
    if any(vr != "SQ" for vr in sequences):
        raise HttpProblem(400, "not-a-sequence", "Only a sequence has attributes inside.")
    vr = last.split(" or ")[0]
    if vr in _NO_KEY:
        raise HttpProblem(400, "unsupported-attribute", f"{keywords[-1]} cannot be matched by a value.")
    return vr


def _value(keyword: str, vr: str, value: str, multiple: bool) -> str:
    if len(value) > MAX_VALUE_CHARS * (64 if vr == "UI" else 1) or any(ord(c) < 32 for c in value):
        raise HttpProblem(400, "bad-value", f"The value of {keyword} is too long or holds control characters.")
    if vr == "UI":
        uids = [str(parse_uid(uid)) for uid in re.split(r"[,\\]", value)]
        if len(uids) > MAX_UIDS:
            raise HttpProblem(400, "bad-value", f"At most {MAX_UIDS} UIDs in one list.")
        return ",".join(uids)
    parts = value.split("\\") if multiple else [value]
    form = _FORMS.get(vr)
    for part in parts:
        if form is not None and (not form.fullmatch(part) or part in ("", "-")):
            raise HttpProblem(400, "bad-value", f"The value of {keyword} is no {vr} value or range (PS3.4 C.2.2.2).")
        _formed(keyword, part)
    return value


def _formed(keyword: str, value: str) -> None:
    try:
        check_form(keyword, value)
    except InvalidInstance as error:
        raise HttpProblem(400, "bad-value", error.message) from None


def _count(values: list[str], name: str, default: int) -> int:
    if not values:
        return default
    if not re.fullmatch(r"\d{1,9}", values[-1]):
        raise HttpProblem(400, f"bad-{name}", f"{name} is a number of results, 0 or more.")
    return int(values[-1])


def _include(values: list[str], level: str) -> tuple[frozenset[str], bool]:
    """(tags, all). A nested attribute comes with its sequence; an unknown one, or one of a lower level, adds nothing to
    the answer and is passed over (PS3.18 8.3.4.3).
    """
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    known = (_known(name.split(".")[0]) for name in names if name != "all")
    return frozenset(tag_of(keyword) for keyword in known if keyword and belongs(keyword, level)), "all" in names


def _known(name: str) -> str:
    """A keyword from a keyword or a tag of eight hex digits; '' for what the dictionary does not have."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return keyword_for_tag(int(name, 16))
    return name if re.fullmatch(r"[A-Za-z0-9]{1,64}", name) and tag_for_keyword(name) is not None else ""


def to_dicom_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """DICOM JSON (PS3.18 F.2) of keyword-value pairs; None and '' give an empty element, keywords without a tag are
    left out.
    """
    answer: dict[str, Any] = {}
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            continue
        vr = dictionary_VR(tag)
        items = [
            _json_value(vr, item)
            for item in (value if isinstance(value, (list, tuple)) else [value])
            if item not in (None, "")
        ]
        items = [item for item in items if item is not None]
        answer[f"{tag:08X}"] = {"vr": vr, "Value": items} if items else {"vr": vr}
    return dict(sorted(answer.items()))


def _json_value(vr: str, value: Any) -> Any:
    if vr == "PN":
        groups = str(value).split("=")
        return dict(zip(("Alphabetic", "Ideographic", "Phonetic"), groups, strict=False))
    if vr in ("IS", "US", "UL", "SS", "SL"):
        try:
            return int(value)
        except (TypeError, ValueError):
            return None
    return str(value)
