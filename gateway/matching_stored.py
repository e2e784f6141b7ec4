"""Matching of keys against the stored metadata of an instance (PS3.4 C.2.2.2), for attributes that the index has no
column for. The data set is DICOM JSON (PS3.18 F.2); sequences match when any item does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.matching import EMPTY, end_of_time, fold

__all__ = ["StoredKey", "stored_match"]

_RANGES: Final = frozenset({"DA", "DT", "TM"})
_NUMBERS: Final = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_DATE_END: Final = "99991231235959.999999"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """path: tags of eight capital hex digits, sequences first; value: as in `gateway.matching`."""

    path: tuple[str, ...]
    value: str


def stored_match(
    dataset: Mapping[str, Any], key: StoredKey, *, fuzzy: bool = False, empty: bool = False, multiple: bool = False
) -> bool:
    """Whether a data set matches a key; the options are those of `gateway.matching.conditions`."""
    elements = [element for element in _elements(dataset, key.path) if isinstance(element, Mapping)]
    if empty and key.value == EMPTY:
        return not any(_present(element) for element in elements)
    wanted = key.value.split("\\") if multiple else [key.value]
    return any(
        _equal(str(element.get("vr", "")), value, one, fuzzy)
        for element in elements
        for value in element.get("Value") or ()
        for one in wanted
    )


def _elements(dataset: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
    element = dataset.get(path[0])
    if element is None:
        return
    if len(path) == 1:
        yield element
        return
    for item in element.get("Value") or ():
        if isinstance(item, Mapping):
            yield from _elements(item, path[1:])


def _present(element: Mapping[str, Any]) -> bool:
    return any(element.get(name) for name in ("Value", "BulkDataURI", "InlineBinary"))


def _equal(vr: str, value: Any, wanted: str, fuzzy: bool) -> bool:
    if isinstance(value, Mapping):
        return _name([str(group) for group in value.values()], wanted, fuzzy) if vr == "PN" else False
    if vr in _NUMBERS:
        return _number(value) == _number(wanted)
    text = str(value)
    if vr == "UI":
        return text in re.split(r"[,\\]", wanted)
    if vr in _RANGES:
        return _in_range(vr, text, wanted)
    return _wild(text, wanted)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _in_range(vr: str, text: str, wanted: str) -> bool:
    low, dash, high = wanted.partition("-")
    if not dash:
        return text == wanted if vr == "DA" else text.startswith(wanted)
    end = high if vr == "DA" else end_of_time(high) if vr == "TM" else high + _DATE_END[len(high) :]
    return bool(text) and (not low or text >= low) and (not high or text <= end)


def _name(groups: list[str], wanted: str, fuzzy: bool) -> bool:
    names = [fold(group) for group in groups]
    if not fuzzy:
        return any(_wild(name, fold(wanted)) for name in (*names, fold("=".join(groups))))
    words = [word.rstrip("*") for word in fold(wanted).split()]
    return all(any(part.startswith(word) for name in names for part in name.split()) for word in words)


def _wild(text: str, wanted: str) -> bool:
    """`*` any run, `?` one character. Only the last `*` is tried again: no pattern costs more than both lengths'
    product.
    """
    at, mark, star, seen = 0, 0, -1, 0
    while at < len(text):
        if seen < len(wanted) and wanted[seen] == "*":
            star, mark, seen = seen, at, seen + 1
        elif seen < len(wanted) and wanted[seen] in ("?", text[at]):
            at, seen = at + 1, seen + 1
        elif star >= 0:
            mark += 1
            at, seen = mark, star + 1
        else:
            return False
    return not wanted[seen:].strip("*")
