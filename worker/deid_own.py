"""What in a text is the patient's own: names and numbers, found again in any case, with or without accents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from worker.deid_values import is_well_known

REMOVED = "Removed"
#: shortest number that is looked for inside others and across marks ("123-45-678"), characters
LEAST_NUMBER = 5
_TOKEN = re.compile(r"[^\W_]+")
_SPLIT = re.compile(r"([^\W_]+)")
#: six numbers with dots between: no version number is that long, and a UID of an instance never shorter
_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){5,}")


@dataclass(frozen=True)
class Own:
    """words: folded parts of names and identifiers. numbers: whole identifiers, folded, without marks."""

    words: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str], numbers: Iterable[str]) -> Own:
        """names: person names and patient identifiers; numbers: other identifiers and dates, looked for whole.

        Short words are left out, as they stand in every header; two ideographs or syllables are a name.
        """
        parts, whole = [], []
        for text in names:
            parts += _TOKEN.findall(fold(text))
            whole += text.split("\\")
        compact = (_compact(text) for text in (*whole, *(one for text in numbers for one in text.split("\\"))))
        return cls(
            frozenset(part for part in parts if len(part) > 3 or (len(part) == 3 and part.isalpha()) or _dense(part)),
            frozenset(one for one in compact if len(one) >= LEAST_NUMBER and not one.isalpha()),
        )

    def without(self, text: str) -> str:
        """`text` as it is unless it holds something of the patient's; then without it, REMOVED if nothing is left."""
        if self.holds_number(text):
            return REMOVED
        parts = _SPLIT.split(text)
        if not any(self._is_own(part) for part in parts):
            return text
        return _what_is_left("".join("" if self._is_own(part) else part for part in parts))

    def holds_number(self, text: str) -> bool:
        """Whether one of the identifiers stands in `text`, whatever marks stand between its characters."""
        compact = _compact(text)
        return any(number in compact for number in self.numbers)

    def _is_own(self, part: str) -> bool:
        folded = fold(part)
        return folded in self.words or any(word in folded for word in self.words if _is_sought_inside(word))


def fold(text: str) -> str:
    """Without case, accents and compatibility forms, so that writings of one name compare equal."""
    spread = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFC", "".join(each for each in spread if not unicodedata.combining(each)))


def without_uids(text: str) -> str:
    """`text` without UIDs but those that the standard defines; REMOVED if nothing is left."""
    left = _UID.sub(lambda found: found[0] if is_well_known(found[0]) else "", text)
    return text if left == text else _what_is_left(left)


def _what_is_left(text: str) -> str:
    return " ".join(text.split()) if _TOKEN.search(text) else REMOVED


def _compact(text: str) -> str:
    return "".join(_TOKEN.findall(fold(text)))


def _dense(word: str) -> bool:
    """Ideographs, kana or hangul, which are not set apart by blanks."""
    return len(word) > 1 and all(each >= "\u2e80" for each in word)


def _is_sought_inside(word: str) -> bool:
    return _dense(word) or len(word) >= (LEAST_NUMBER if word.isdigit() else 4)
