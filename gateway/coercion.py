"""Corrections of patient and study attributes: what may be changed, to what, and how an object says that it was.

Originals stay as they are. A corrected object is given back with new values and, for each correction, an item of the
Original Attributes Sequence (PS3.3 C.12.1.1.9) that holds what stood there before. Elements are in the DICOM JSON model
(PS3.18 F): tag in eight hex digits -> {"vr", "Value"}.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from gateway.errors import InvalidInstance

__all__ = ["CORRECTABLE", "ORIGINAL_ATTRIBUTES", "Correction", "Effect", "checked_changes", "coerce", "text_of"]

Elements = dict[str, Any]

#: keyword -> (tag, VR) of what a correction may change
CORRECTABLE: Final = {
    "PatientName": ("00100010", "PN"),
    "PatientID": ("00100020", "LO"),
    "IssuerOfPatientID": ("00100021", "LO"),
    "PatientBirthDate": ("00100030", "DA"),
    "PatientSex": ("00100040", "CS"),
    "AccessionNumber": ("00080050", "SH"),
    "StudyID": ("00200010", "SH"),
    "StudyDescription": ("00081030", "LO"),
    "ReferringPhysicianName": ("00080090", "PN"),
}
ORIGINAL_ATTRIBUTES: Final = "04000561"
SYSTEM: Final = "PALIMPSEST"
_LONGEST: Final = {"PN": 194, "LO": 64, "SH": 16, "DA": 8, "CS": 16}  # characters (PS3.5 6.2)
_FORMS: Final = {"DA": re.compile(r"([0-9]{8})?"), "CS": re.compile(r"[A-Z0-9 _]*")}
PATIENT_ID, ISSUER = CORRECTABLE["PatientID"][0], CORRECTABLE["IssuerOfPatientID"][0]


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction. It is of one study, or of all that stands under a Patient ID (of that issuer, if one is named);
    with a new Patient ID among its changes that is a patient merge. changes: keyword -> value, '' for none.
    """

    id: int
    study_uid: str | None
    patient_id: str | None
    issuer: str | None
    changes: Mapping[str, str]
    created_at: float

    def concerns(self, study_uid: str | None, elements: Mapping[str, Any]) -> bool:
        """Whether it applies to an object of that study whose elements are, by now, these."""
        if self.study_uid is not None:
            return self.study_uid == study_uid
        same = text_of(elements.get(PATIENT_ID)) == self.patient_id
        return same and (self.issuer is None or text_of(elements.get(ISSUER)) == self.issuer)


@dataclass(frozen=True, slots=True)
class Effect:
    """What corrections make of an object. replacement: elements that it is given back with, the Original Attributes
    Sequence among them; original: what stood there, None where nothing did; name: changes whenever the effect does.
    """

    applied: tuple[int, ...]
    original: dict[str, Any]
    replacement: Elements
    name: str


def checked_changes(changes: Mapping[str, Any]) -> dict[str, str]:
    """Changes that can be written. Raises InvalidInstance ``bad-correction`` naming the attribute, never the value."""
    if not changes:
        raise _bad("a correction changes at least one attribute")
    found = {}
    for keyword, value in changes.items():
        if keyword not in CORRECTABLE:
            raise _bad(f"only these can be corrected: {', '.join(CORRECTABLE)}")
        vr = CORRECTABLE[keyword][1]
        if not isinstance(value, str) or any(ord(each) < 32 or each == "\\" for each in value) or _halved(value):
            raise _bad(f"{keyword} is one text without control characters and backslash")
        value = value.strip()
        if len(value) > _LONGEST[vr] or (vr in _FORMS and not _FORMS[vr].fullmatch(value)):
            raise _bad(f"{keyword} is no {vr} value (PS3.5 6.2)")
        if vr == "PN" and (value.count("=") > 2 or any(len(group) > 64 for group in value.split("="))):
            raise _bad(f"{keyword} has at most three groups of 64 characters (PS3.5 6.2)")
        found[keyword] = value
    if found.get("PatientID") == "":
        raise _bad("PatientID cannot be corrected to nothing")
    return found


def coerce(study_uid: str | None, metadata: Mapping[str, Any], corrections: Sequence[Correction]) -> Effect | None:
    """What these corrections, in the order of their ids, make of an object; None if none concerns it.

    metadata: of the original. Each works on what the ones before it left: A merged into B and B into C gives C.
    """
    current = dict(metadata)
    applied: list[int] = []
    changed: dict[str, None] = {}
    items = []
    for each in sorted(corrections, key=lambda one: one.id):
        if not each.concerns(study_uid, current):
            continue
        applied.append(each.id)
        before = {}
        for keyword, value in each.changes.items():
            tag, vr = CORRECTABLE[keyword]
            before[tag] = current.get(tag) or {"vr": vr}
            changed[tag] = None
            current[tag] = _element(vr, value)
        items.append(_original_item(before, each.created_at))
    if not applied:
        return None
    kept = metadata.get(ORIGINAL_ATTRIBUTES, {}).get("Value", [])
    replacement = {tag: current[tag] for tag in changed}
    replacement[ORIGINAL_ATTRIBUTES] = {"vr": "SQ", "Value": [*kept, *items]}
    text = json.dumps(replacement, sort_keys=True)
    return Effect(
        applied=tuple(applied),
        original={tag: metadata.get(tag) for tag in replacement},
        replacement=dict(sorted(replacement.items())),
        name=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def text_of(element: Mapping[str, Any] | None) -> str:
    """The first value of an element as text; a person name with its groups."""
    values = (element or {}).get("Value") or [""]
    value = values[0]
    if isinstance(value, Mapping):
        groups = [str(value.get(name) or "") for name in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    return str(value if value is not None else "")


def _element(vr: str, value: str) -> Elements:
    if not value:
        return {"vr": vr}
    if vr != "PN":
        return {"vr": vr, "Value": [value]}
    names = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False)
    return {"vr": vr, "Value": [{name: group for name, group in names if group}]}


def _original_item(before: Elements, at: float) -> Elements:
    """An item of PS3.3 Table C.12-1: when, by whom, why, and what stood there."""
    when = datetime.fromtimestamp(at, UTC).strftime("%Y%m%d%H%M%S.%f") + "+0000"
    return {
        "04000550": {"vr": "SQ", "Value": [before]},
        "04000562": {"vr": "DT", "Value": [when]},
        "04000563": {"vr": "LO", "Value": [SYSTEM]},
        "04000564": {"vr": "LO"},
        "04000565": {"vr": "CS", "Value": ["CORRECT"]},
    }


def _halved(text: str) -> bool:
    """Whether it holds a half of a surrogate pair, which JSON can say and no database or file can hold."""
    return any(0xD800 <= ord(each) <= 0xDFFF for each in text)


def _bad(message: str) -> InvalidInstance:
    return InvalidInstance("bad-correction", message)
