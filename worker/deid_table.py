"""PS3.15 Table E.1-1 as data: which action an attribute takes. Source and edition: deid_table.json.

Tables are read from the package on first use, never on import.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

#: columns of the table after the Basic Profile, in its order; the names are `Profile`'s switches
OPTIONS = (
    "retain_safe_private",
    "retain_uids",
    "retain_device_identity",
    "retain_institution_identity",
    "retain_patient_characteristics",
    "retain_full_dates",
    "retain_modified_dates",
    "clean_descriptors",
    "clean_structured_content",
    "clean_graphics",
)
#: every action code of the Basic Profile column
BASIC_ACTIONS = frozenset({"D", "Z", "X", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*"})
_DATE_OPTIONS = {"retain_full_dates": "K", "retain_modified_dates": "C"}
_DATE_VRS = frozenset({"DA", "DT", "TM"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `options`: column -> K, C or X. `listed`: False for a rule made from the VR alone."""

    basic: str
    options: Mapping[str, str]
    listed: bool = True


#: PS3.15 E.1.1 note 4: dates and times that the table does not list go by their VR
_DATE_ROW = Row("X/Z/D", MappingProxyType(_DATE_OPTIONS), listed=False)
_PERSON_ROW = Row("Z/D", MappingProxyType({}), listed=False)


def table() -> Mapping[str, Any]:
    """The whole data file: title, edition, transcriptions, differences, rows."""
    loaded: Mapping[str, Any] = json.loads(files("worker").joinpath("deid_table.json").read_text("utf-8"))
    return loaded


@cache
def _rows() -> tuple[Mapping[int, Row], Mapping[str, Row]]:
    exact: dict[int, Row] = {}
    patterns: dict[str, Row] = {}
    for line in table()["rows"]:
        row = Row(line["basic"], MappingProxyType(line["options"] or {}))
        tag = line["tag"]
        if tag == "private" or "x" in tag:
            patterns[tag] = row
        else:
            exact[int(tag, 16)] = row
    return MappingProxyType(exact), MappingProxyType(patterns)


def find_row(tag: int, vr: str) -> Row | None:
    """The rule for an attribute, None where the standard has none (it is retained). `vr` from the dictionary."""
    exact, patterns = _rows()
    row = exact.get(tag)
    if row is not None:
        # rows newer than the option columns: a date is a date
        return Row(row.basic, _DATE_ROW.options) if not row.options and vr in _DATE_VRS and _newer(tag) else row
    group = tag >> 16
    if group & 1:
        return patterns["private"]
    if group & 0xFF00 == 0x5000:
        return patterns["50xxxxxx"]
    if group & 0xFF00 == 0x6000 and tag & 0xFFFF in (0x3000, 0x4000):
        return patterns[f"60xx{tag & 0xFFFF:04x}"]
    if vr in _DATE_VRS:
        return _DATE_ROW
    return _PERSON_ROW if vr == "PN" else None


@cache
def _without_options() -> frozenset[int]:
    return frozenset(int(line["tag"], 16) for line in table()["rows"] if line["options"] is None)


def _newer(tag: int) -> bool:
    return tag in _without_options()


def find_action(row: Row, chosen: Iterable[str]) -> str:
    """The action of a row under the chosen options: an option overrides the profile (PS3.15 E.1.1).

    Where several chosen options speak, the one that tells least wins: X, then C, then K.
    """
    spoken = {row.options[name] for name in chosen if name in row.options}
    return next((action for action in ("X", "C", "K") if action in spoken), row.basic)


@cache
def safe_private() -> Mapping[tuple[str, int, int], str]:
    """(private creator, group, element within the block) -> VR of attributes known to hold numbers or codes only."""
    rows = json.loads(files("worker").joinpath("deid_safe_private.json").read_text("utf-8"))["rows"]
    return MappingProxyType({(creator, int(group, 16), int(number, 16)): vr for creator, group, number, vr in rows})
