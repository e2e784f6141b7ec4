"""QIDO-RS: search for studies, series and instances (PS3.18 10.6).

The query string is parsed into a `Query` whose filters are checked for form before the index sees them; what the index
cannot match on is refused by name. Ignoring a filter, as some servers do, would show a clinician images that were not
asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from gateway.uids import parse_uid
from service.problems import HttpProblem

__all__ = ["LEVELS", "Query", "RETURNED", "SEARCHABLE", "parse_query", "to_dicom_json"]

MAX_LIMIT: Final = 5000
DEFAULT_LIMIT: Final = 1000
MAX_VALUE_CHARS: Final = 1024
MAX_UIDS: Final = 500

LEVELS: Final = ("study", "series", "instance")

_STUDY_KEYS = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName",
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDescription",
)  # fmt: skip
_SERIES_KEYS = ("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "SeriesDate", "BodyPartExamined")
_INSTANCE_KEYS = ("SOPClassUID", "SOPInstanceUID", "InstanceNumber")

#: Attributes that can be matched, by level (PS3.18 Tables 10.6.1-2 to 10.6.1-5; lower levels also match the ones
#: above).
SEARCHABLE: Final[dict[str, tuple[str, ...]]] = {
    "study": _STUDY_KEYS,
    "series": _STUDY_KEYS + _SERIES_KEYS,
    "instance": _STUDY_KEYS + _SERIES_KEYS + _INSTANCE_KEYS,
}
#: Attributes returned, by level (PS3.18 Tables 10.6.3-3 to 10.6.3-5).
RETURNED: Final[dict[str, tuple[str, ...]]] = {
    "study": (*_STUDY_KEYS, "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "series": ("StudyInstanceUID", *_SERIES_KEYS, "NumberOfSeriesRelatedInstances"),
    "instance": (
        "StudyInstanceUID", "SeriesInstanceUID", "Modality", *_INSTANCE_KEYS,
        "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
    ),
}  # fmt: skip

_CONTROL: Final = frozenset({"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching"})
_DATE_RANGE = re.compile(r"(\d{8})?-?(\d{8})?")
_TIME_RANGE = re.compile(r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?-?(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?")
_NUMBER = re.compile(r"[+-]?\d{1,12}")
_FORMS: Final = {"DA": _DATE_RANGE, "TM": _TIME_RANGE, "IS": _NUMBER}


@dataclass(frozen=True)
class Query:
    """A checked search: `filters` maps keywords to matching values of PS3.4 C.2.2.2 (`*` and `?` wild, `a-b` range, `,`
    lists of UIDs).
    """

    level: str
    filters: Mapping[str, str]
    limit: int
    offset: int
    fuzzy: bool
    include: frozenset[str]
    include_all: bool


def parse_query(level: str, items: Iterable[tuple[str, str]], path: Mapping[str, str]) -> Query:
    """Check a query string (decoded name-value pairs) and the UIDs of the path; raises HttpProblem 400 naming what is
    wrong.
    """
    filters: dict[str, str] = {keyword: str(parse_uid(uid)) for keyword, uid in path.items()}
    control: dict[str, list[str]] = {name: [] for name in _CONTROL}
    for name, value in items:
        if name.lower() in _CONTROL:
            control[name.lower()].append(value)
            continue
        keyword = _keyword(name)
        if keyword not in SEARCHABLE[level]:
            raise HttpProblem(400, "unsupported-attribute", f"This level cannot be searched by {keyword}.")
        if value in ("", "*"):  # universal matching, PS3.4 C.2.2.2.3
            continue
        checked = _value(keyword, value)
        if filters.get(keyword, checked) != checked:
            raise HttpProblem(400, "repeated-attribute", f"{keyword} is given twice.")
        filters[keyword] = checked
    include, include_all = _include(control["includefield"])
    return Query(
        level,
        filters,
        limit=min(MAX_LIMIT, _count(control["limit"], "limit", DEFAULT_LIMIT)),
        offset=_count(control["offset"], "offset", 0),
        fuzzy=control["fuzzymatching"][-1:] == ["true"],
        include=include,
        include_all=include_all,
    )


def _keyword(name: str) -> str:
    """A keyword from a keyword or an eight-digit tag (PS3.18 8.3.4.1)."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        keyword = keyword_for_tag(int(name, 16))
        if keyword:
            return keyword
    elif re.fullmatch(r"[A-Za-z0-9]{1,64}", name) and tag_for_keyword(name) is not None:
        return name
    raise HttpProblem(400, "unknown-attribute", "A query parameter is neither a DICOM keyword nor a known tag.")


def _value(keyword: str, value: str) -> str:
    if len(value) > MAX_VALUE_CHARS * (64 if keyword.endswith("UID") else 1) or any(ord(c) < 32 for c in value):
        raise HttpProblem(400, "bad-value", f"The value of {keyword} is too long or holds control characters.")
    vr = dictionary_VR(keyword)
    if vr == "UI":
        uids = [str(parse_uid(uid)) for uid in re.split(r"[,\\]", value)]
        if len(uids) > MAX_UIDS:
            raise HttpProblem(400, "bad-value", f"At most {MAX_UIDS} UIDs in one list.")
        return ",".join(uids)
    form = _FORMS.get(vr)
    if form is not None and (not form.fullmatch(value) or value == "-"):
        raise HttpProblem(400, "bad-value", f"The value of {keyword} is no {vr} value or range (PS3.4 C.2.2.2.5).")
    return value


def _count(values: list[str], name: str, default: int) -> int:
    if not values:
        return default
    if not re.fullmatch(r"\d{1,9}", values[-1]):
        raise HttpProblem(400, f"bad-{name}", f"{name} is a number of results, 0 or more.")
    return int(values[-1])


def _include(values: list[str]) -> tuple[frozenset[str], bool]:
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if "all" in names:
        return frozenset(), True
    # An unknown one adds nothing to the answer, so it is passed over (PS3.18 8.3.4.3); nested ones too.
    known = (_known(name) for name in names)
    return frozenset(name for name in known if name), False


def _known(name: str) -> str:
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return keyword_for_tag(int(name, 16))
    return name if tag_for_keyword(name) is not None else ""


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
