"""The Identifier of C-FIND, C-MOVE and C-GET, read from hostile bytes and checked against its information model.

PS3.4 C.2.2 (keys and matching), C.4.1 to C.4.3 (behaviour), C.6.1 and C.6.2 (Patient and Study Root). Element values
are read from their bytes here: pydicom's own conversion would warn with, or stumble over, what a peer wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, Literal

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pynetdicom.dsutils import decode

from gateway.errors import BadUID, InvalidInstance
from gateway.matching import COLUMNS, LEVELS, LISTED, MAX_UIDS, Level, check_form
from gateway.uids import parse_uid

__all__ = [
    "INDEX_LEVEL",
    "MODELS",
    "UNIQUE",
    "BadIdentifier",
    "Find",
    "Identifier",
    "Operation",
    "Retrieve",
    "for_find",
    "for_retrieve",
    "read_identifier",
]

Root = Literal["patient", "study"]
Operation = Literal["find", "move", "get"]

#: SOP class -> what it asks of which root (PS3.4 C.6.1.3, C.6.2.3)
MODELS: Final[dict[str, tuple[Root, Operation]]] = {
    "1.2.840.10008.5.1.4.1.2.1.1": ("patient", "find"),
    "1.2.840.10008.5.1.4.1.2.1.2": ("patient", "move"),
    "1.2.840.10008.5.1.4.1.2.1.3": ("patient", "get"),
    "1.2.840.10008.5.1.4.1.2.2.1": ("study", "find"),
    "1.2.840.10008.5.1.4.1.2.2.2": ("study", "move"),
    "1.2.840.10008.5.1.4.1.2.2.3": ("study", "get"),
}
_ROOT_LEVELS: Final = {"patient": ("PATIENT", "STUDY", "SERIES", "IMAGE"), "study": ("STUDY", "SERIES", "IMAGE")}
UNIQUE: Final = {
    "PATIENT": "PatientID", "STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"
}  # fmt: skip
INDEX_LEVEL: Final[dict[str, Level]] = {"PATIENT": "patient", "STUDY": "study", "SERIES": "series", "IMAGE": "instance"}
_COUNTS: Final = {
    "PATIENT": ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances"),
    "STUDY": ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "SERIES": ("NumberOfSeriesRelatedInstances",),
    "IMAGE": (),
}
#: answered to every C-FIND, or part of its own grammar: neither matched nor unsupported
_ALWAYS: Final = frozenset({"QueryRetrieveLevel", "SpecificCharacterSet", "RetrieveAETitle", "InstanceAvailability"})
_NUMBER: Final = re.compile(r"[+-]?\d{1,12}")
_MAX_CHARS: Final = 1024
_CHARSET: Final = 0x00080005


class BadIdentifier(InvalidInstance):
    """The Identifier does not match the SOP class (PS3.4 C.4.1.1.4)."""

    dimse_status = 0xA900
    title = "Identifier does not match the SOP class"


@dataclass(frozen=True, slots=True)
class Identifier:
    """What a peer asked: level, keys (keyword -> text, '' for universal) and how many keys are in no dictionary or
    sequences.
    """

    level: str
    keys: dict[str, str]
    unknown: int
    charset: str


@dataclass(frozen=True, slots=True)
class Find:
    """A checked C-FIND. returned: keywords wanted back; partial: some key is not supported here (0xFF01)."""

    level: str
    filters: dict[str, str]
    returned: tuple[str, ...]
    partial: bool
    charset: str


@dataclass(frozen=True, slots=True)
class Retrieve:
    """A checked C-MOVE or C-GET: unique keys -> any of these values."""

    level: str
    unique: dict[str, tuple[str, ...]]


def read_identifier(data: BytesIO, syntax: Any) -> Identifier:
    """Parse an Identifier. syntax: the context's transfer syntax (pydicom UID). Raises BadIdentifier."""
    try:
        dataset = decode(data, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        raw: list[tuple[int, Any]] = [(int(tag), element) for tag, element in dataset.items()]
    except Exception:  # noqa: BLE001  the DIMSE edge: a peer's bytes may break any layer of the parser
        raise BadIdentifier("unreadable-identifier", "The Identifier cannot be parsed.") from None
    names = _charset_names(dict(raw).get(_CHARSET))
    encodings = _encodings(names)
    keys: dict[str, str] = {}
    unknown = 0
    for tag, element in raw:
        keyword = keyword_for_tag(tag)
        if tag & 0xFFFF == 0 or tag == _CHARSET:  # group lengths are retired and mean nothing
            continue
        if keyword and isinstance(element, RawDataElement) and element.length != 0xFFFFFFFF:
            keys[keyword] = _text(tag, element.value or b"", encodings)
        else:
            unknown += 1
    return Identifier(keys.pop("QueryRetrieveLevel", ""), keys, unknown, "\\".join(names))


def _charset_names(element: Any) -> list[str]:
    value = element.value if isinstance(element, RawDataElement) else None
    text = (value or b"").decode("ascii", "replace").replace("\0", " ")
    return [name.strip().replace("ISO IR", "ISO_IR") for name in text.split("\\")]


def _encodings(names: list[str]) -> list[str]:
    """Python codecs of Specific Character Set; UTF-8 for names that PS3.3 C.12.1.1.2 does not have."""
    if all(name in python_encoding for name in names):
        return list(convert_encodings(list(names)))
    return ["utf-8"]


def _text(tag: int, value: bytes, encodings: list[str]) -> str:
    if dictionary_VR(tag) in ("PN", "LO", "SH", "LT", "ST", "UT", "UC"):
        try:
            text = decode_bytes(value, encodings, {0x0A, 0x0C, 0x0D, 0x5C, 0x5E, 0x3D})
        except (LookupError, ValueError):
            text = value.decode("latin-1")
    else:
        text = value.decode("latin-1")
    return text.rstrip("\0").strip(" ")


def for_find(root: Root, asked: Identifier, *, relational: bool) -> Find:
    """Check a C-FIND against its model. relational: negotiated (PS3.4 C.5.1.1), so that no hierarchy is asked for.

    Raises BadIdentifier naming the key that is missing, misplaced or malformed.
    """
    levels = _levels(root, asked.level)
    if not relational:
        for level in levels[:-1]:
            _single(UNIQUE[level], asked.keys.get(UNIQUE[level], ""))
    deepest = LEVELS.index(INDEX_LEVEL[asked.level])
    filters: dict[str, str] = {}
    returned = [UNIQUE[level] for level in levels]
    partial = asked.unknown > 0
    for keyword, value in asked.keys.items():
        home = _home(keyword)
        if home is None:
            partial |= not _answered(asked.level, keyword)
            returned += [keyword] if _answered(asked.level, keyword) else []
            continue
        below = LEVELS.index(home) > deepest
        if set(value) - {"*"}:  # anything else matches all (PS3.4 C.2.2.2.3)
            if below and not relational:
                raise BadIdentifier("key-below-level", f"{keyword} is below the Query/Retrieve Level.")
            filters[keyword] = _checked(keyword, value)
        partial |= below or (keyword in LISTED and asked.level != "STUDY")
        if not below and not (keyword in LISTED and asked.level != "STUDY"):
            returned.append(keyword)
    return Find(asked.level, filters, tuple(dict.fromkeys(returned)), partial, asked.charset)


def for_retrieve(root: Root, asked: Identifier, *, relational: bool) -> Retrieve:
    """Check a C-MOVE or C-GET against its model (PS3.4 C.4.2.1.4, C.4.3.1.3). Raises BadIdentifier."""
    levels = _levels(root, asked.level)
    unique: dict[str, tuple[str, ...]] = {}
    for level in levels:
        keyword, value = UNIQUE[level], asked.keys.get(UNIQUE[level], "")
        if level == asked.level:
            unique[keyword] = _values(keyword, value)
        elif value or not relational:
            unique[keyword] = (_single(keyword, value),)
    for keyword, value in asked.keys.items():
        if keyword == "PatientID" and value:  # many Study Root clients send it; it narrows, and never widens
            unique[keyword] = (_single(keyword, value),)
        elif value and keyword not in unique and keyword not in _ALWAYS:
            raise BadIdentifier("not-a-unique-key", f"{keyword} is no unique key of this level.")
    return Retrieve(asked.level, unique)


def _levels(root: Root, level: str) -> tuple[str, ...]:
    """The levels of a root down to this one."""
    known = _ROOT_LEVELS[root]
    if level not in known:
        raise BadIdentifier("bad-level", f"Query/Retrieve Level is one of {', '.join(known)} in this model.")
    return known[: known.index(level) + 1]


def _home(keyword: str) -> Level | None:
    if keyword in LISTED:
        return "study"
    return COLUMNS[keyword][1] if keyword in COLUMNS else None


def _answered(level: str, keyword: str) -> bool:
    return keyword in _ALWAYS or keyword in _COUNTS[level]


def _single(keyword: str, value: str) -> str:
    """One value without wildcards: what a unique key above the level must be (PS3.4 C.4.1.2.1)."""
    if not value:
        raise BadIdentifier("missing-unique-key", f"{keyword} is missing: a key of each higher level is needed.")
    if len(values := _values(keyword, value)) != 1:
        raise BadIdentifier("not-a-single-value", f"{keyword} must be one value here.")
    return values[0]


def _values(keyword: str, value: str) -> tuple[str, ...]:
    if keyword == "PatientID":
        if not value:
            raise BadIdentifier("missing-unique-key", "PatientID is missing.")
        if set(value) & set("*?\\") or len(value) > _MAX_CHARS:
            raise BadIdentifier("not-a-single-value", "PatientID must be one value without wildcards here.")
        return (value,)
    return tuple(_uids(keyword, value))


def _uids(keyword: str, value: str) -> Iterator[str]:
    parts = [part for part in value.split("\\") if part.strip("\0 ")]
    if not parts:
        raise BadIdentifier("missing-unique-key", f"{keyword} is missing.")
    if len(parts) > MAX_UIDS:
        raise BadIdentifier("too-many-uids", f"{keyword} lists more than {MAX_UIDS} UIDs.")
    try:
        yield from (str(parse_uid(part.strip(" "))) for part in parts)
    except BadUID:
        raise BadIdentifier("bad-uid", f"{keyword} is not a list of UIDs.") from None


def _checked(keyword: str, value: str) -> str:
    """The value as the matching engine takes it."""
    kind = "text" if keyword in LISTED else COLUMNS[keyword][2]
    if keyword == "SOPClassesInStudy" or kind == "uid":
        return ",".join(_uids(keyword, value))
    if len(value) > _MAX_CHARS or any(ord(char) < 32 for char in value):
        raise BadIdentifier("bad-value", f"{keyword} is too long or holds control characters.")
    if "\\" in value and keyword not in LISTED:
        raise BadIdentifier("many-values", f"{keyword} must be one value.")
    if kind == "number" and _NUMBER.fullmatch(value) is None:
        raise BadIdentifier("bad-value", f"{keyword} is not a whole number.")
    try:
        check_form(keyword, value)
    except InvalidInstance:
        raise BadIdentifier("bad-value", f"{keyword} is no value or range of its kind.") from None
    return value
