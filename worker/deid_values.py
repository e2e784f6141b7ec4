"""Values on their way out: read without trust, replaced by dummies, shifted, cleaned to known-safe words.

Nothing here raises for a bad value: what cannot be read or made safe is answered by None, and the caller removes it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from datetime import date, timedelta
from functools import cache
from importlib.resources import files

from pydicom import charset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.multival import MultiValue
from pydicom.uid import UID

from gateway.pseudonym import pseudonym_text, pseudonym_uid

Element = DataElement | RawDataElement

#: the longest shift of dates, days; always back in time, never by 0
MAX_SHIFT = 3650
DUMMY_DATE, DUMMY_TIME = "19700101", "000000"
TEXT_VRS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
_STRINGS = TEXT_VRS | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "PN", "TM", "UI", "UR"}
_SIZES = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "AT": 4, "UV": 8, "SV": 8}
_PATTERNS = {
    "AE": r"[\x20-\x5b\x5d-\x7e]{0,16}",
    "AS": r"\d{3}[DWMY]",
    "CS": r"[A-Za-z0-9 _.+*/-]{0,16}",
    "DA": r"\d{8}|\d{4}\.\d\d\.\d\d",
    "DS": r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})? *",
    "DT": r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})? *",
    "IS": r" *[+-]?\d{1,12} *",
    "TM": r"\d\d(:?\d\d(:?\d\d(\.\d{1,6})?)?)? *",
    "UI": r"[0-9]+(\.[0-9]+)*",
}
_LONGEST_NUMBER = 32
_DUMMIES = {"AE": "ANONYMIZED", "AS": "000Y", "CS": "ANONYMIZED", "DA": DUMMY_DATE, "DS": "0", "DT": DUMMY_DATE,
            "IS": "0", "TM": DUMMY_TIME, "UR": "urn:uuid:00000000-0000-0000-0000-000000000000"}  # fmt: skip
_UNITS = "mm|cm|ml|kv|kvp|ma|mas|sec|min|hz|khz|mhz|tesla|deg"
_WORD = re.compile(rf"(?<![\w.,])\d{{1,3}}(?:[.,]\d{{1,3}})? ?(?:{_UNITS})\b|(?<!\w)[^\W\d_]\w*", re.IGNORECASE)


def kind(vr: str) -> str:
    """'text', 'number', 'sequence' or 'bytes': what a VR holds."""
    if vr in _STRINGS:
        return "text"
    return "sequence" if vr == "SQ" else "number" if vr in _SIZES else "bytes"


def read_text(element: Element, encodings: str | list[str]) -> str:
    """The whole value as text, values joined by backslashes, padding dropped; what cannot be decoded is replaced."""
    value = element.value
    if isinstance(value, bytes | bytearray):
        names = [encodings] if isinstance(encodings, str) else list(encodings)
        try:
            text = charset.decode_bytes(bytes(value), names, {0x5C, 0x5E, 0x3D})
        except (LookupError, ValueError):
            text = bytes(value).decode("latin-1")
    elif isinstance(value, MultiValue | list | tuple):
        text = "\\".join(str(part) for part in value)
    else:
        text = "" if value is None else str(value)
    return text.strip("\0 ")


def conforms(element: Element, vr: str, encodings: str | list[str]) -> bool:
    """True if the value is what the attribute's VR (from the dictionary) allows: a kept value may hold nothing else."""
    stored = str(element.VR or vr)
    allowed = vr.split(" or ")
    if kind(stored) not in {kind(one) for one in allowed} and stored != "UN":
        return False
    if kind(allowed[0]) == "number":
        return not isinstance(element.value, bytes) or len(element.value) % _SIZES[allowed[0]] == 0
    pattern = _PATTERNS.get(allowed[0])
    if pattern is None:
        return True
    parts = read_text(element, encodings).split("\\")
    return all(not part or (len(part) <= 64 and re.fullmatch(pattern, part.strip("\0 "))) for part in parts)


def day_shift(subject: str, key: bytes) -> int:
    """Days to go back for one patient: 1 to MAX_SHIFT, keyed, the same for all objects of the patient."""
    digest = hmac.digest(key, b"palimpsest/date-shift/v1\x00" + subject.encode("utf-8", "replace"), "sha256")
    return 1 + int.from_bytes(digest[:8], "big") % MAX_SHIFT


def shift_temporal(text: str, vr: str, days: int) -> str | None:
    """DA and DT moved back by `days`, TM as it is (whole days keep the time of day); None when not well formed."""
    parts = [_shift_one(part.strip("\0 "), vr, days) for part in text.split("\\")]
    return None if None in parts else "\\".join(part for part in parts if part is not None)


def _shift_one(text: str, vr: str, days: int) -> str | None:
    if not text:
        return ""
    if re.fullmatch(_PATTERNS[vr], text) is None:
        return None
    if vr == "TM":
        return text
    dotted = text[4:5] == "."
    head = text[:10].replace(".", "") if dotted else text[:8]
    try:
        moved = date(int(head[:4]), int(head[4:6]), int(head[6:8])) - timedelta(days)
    except (ValueError, OverflowError):
        return None  # a year or a month alone cannot be moved by days
    written = f"{moved.year:04}{moved.month:02}{moved.day:02}"
    return f"{written[:4]}.{written[4:6]}.{written[6:]}" if dotted else written + text[8:]


def replace_uids(text: str, key: bytes) -> str:
    """Every UID by its pseudonym; those the standard itself defines stay (PS3.15 E.3.9 note 4)."""
    parts = (part.strip("\0 ") for part in text.split("\\"))
    return "\\".join(part if not part or is_well_known(part) else pseudonym_uid(part, key) for part in parts)


def is_well_known(uid: str) -> bool:
    """True for a UID of PS3.6 Annex A: a class, a syntax, a frame of reference of the standard's own."""
    return str(UID(uid).name) != uid


def dummy_value(tag: int, vr: str, text: str, key: bytes) -> str | bytes | int | None:
    """A value that fits the VR and tells nothing but that two equal values were equal; None for a sequence."""
    first = vr.split(" or ")[0]
    if first in _DUMMIES:
        return _DUMMIES[first]
    if first == "PN":
        return f"ANONYMIZED^{pseudonym_text(f'{tag:08x}{text}', key, 'D')}"
    if first in TEXT_VRS:
        return pseudonym_text(f"{tag:08x}{text}", key, "D")
    if first == "UI":
        return pseudonym_uid(text or f"{tag:08x}", key)
    if kind(first) == "number":
        return 0
    return None if first == "SQ" else b"\0\0"


@cache
def safe_words() -> frozenset[str]:
    """Words of image descriptions that name no person and no place, lower case."""
    lines = files("worker").joinpath("deid_words.txt").read_text("utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def clean_words(text: str, barred: Iterable[str]) -> str:
    """Only the known-safe words and measures of `text`, in order; '' when none is left.

    `barred`: words of this data set's names and identifiers, lower case; they go even when they look safe.
    """
    safe, own = safe_words(), frozenset(barred)
    kept = []
    for found in _WORD.findall(text):
        word = found.lower()
        if word[0].isdigit() or (word in safe and word not in own):
            kept.append(found)
    return " ".join(kept)
