"""Is what came back the object that was sent? Data sets and pixels are compared, not files.

Peers make file meta information anew, drop trailing padding, write sequences with other lengths and private elements as
UN, and some decompress. None of that is a difference; every value and every pixel counts.
"""

from __future__ import annotations

import io
from typing import Final

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from gateway.errors import PalimpsestError
from gateway.part10 import read_meta
from worker.pixels import open_pixels, pixel_digest
from worker.splice import read_object

__all__ = ["difference", "same_object"]

PIXELS: Final = 0x7FE00010
TRAILING_PADDING: Final = 0xFFFCFFFC  # PS3.10 7.2
BY_CODING: Final = frozenset({0x00280004, 0x00280006, 0x7FE00001, 0x7FE00002})  # what decompressing may change
_FAILURES = (
    InvalidDicomError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    NotImplementedError,
    IndexError,
    OSError,
)


def same_object(sent: bytes, back: bytes) -> bool:
    """True if nothing that counts differs."""
    return difference(sent, back) == ""


def difference(sent: bytes, back: bytes) -> str:
    """'' for the same object, else a machine word: ``unreadable``, ``pixels-differ``, ``other-syntax``,
    ``differs-at-GGGGEEEE``.
    """
    try:
        sent_syntax, sent_at = read_meta(sent)
        back_syntax, back_at = read_meta(back)
        if sent_syntax == back_syntax and _but_for_padding(sent[sent_at:], back[back_at:]):
            return ""
        ours, theirs = dcmread(io.BytesIO(sent)), dcmread(io.BytesIO(back))
        skipped = BY_CODING if sent_syntax != back_syntax else frozenset()
        if tag := _first_difference(ours, theirs, skipped):
            return f"differs-at-{tag:08X}"
        return _pixels(sent, back, ours, theirs, sent_syntax == back_syntax)
    except (PalimpsestError, *_FAILURES):
        return "unreadable"


def _first_difference(ours: Dataset, theirs: Dataset, skipped: frozenset[int]) -> int:
    """Tag of the first element that is not the same in both, 0 if there is none."""
    for tag in sorted(_tags(ours, skipped) | _tags(theirs, skipped)):
        if tag not in ours or tag not in theirs or not _same(ours[tag], theirs[tag]):
            return tag
    return 0


def _tags(dataset: Dataset, skipped: frozenset[int]) -> set[int]:
    return {
        int(tag)
        for tag in dataset.keys()  # noqa: SIM118  iterating a data set itself parses every element
        if tag.element and int(tag) not in skipped and int(tag) not in (PIXELS, TRAILING_PADDING)
    }


def _same(ours: DataElement, theirs: DataElement) -> bool:
    mine, other = ours.value, theirs.value
    if isinstance(mine, Sequence) and isinstance(other, Sequence):
        return len(mine) == len(other) and not any(
            _first_difference(one, two, frozenset()) for one, two in zip(mine, other, strict=True)
        )
    return mine == other or _plain(mine) == _plain(other)


def _plain(value: object) -> bytes:
    """The value as bytes without padding, for elements that one side holds as UN."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).rstrip(b"\0 ")
    if isinstance(value, (MultiValue, list)):
        return b"\\".join(_plain(each) for each in value)
    return b"" if value is None else str(value).encode("utf-8", "replace").rstrip(b"\0 ")


def _but_for_padding(sent: bytes, back: bytes) -> bool:
    """Whether only zeros follow what was sent, or one is gone (PS3.5 7.1.1); more of them would be black pixels."""
    kept = len(sent) - sent.endswith(b"\0")
    return back[:kept] == sent[:kept] and not back[kept:].strip(b"\0")


def _pixels(sent: bytes, back: bytes, ours: Dataset, theirs: Dataset, same_syntax: bool) -> str:
    if PIXELS not in ours and PIXELS not in theirs:
        return ""
    if PIXELS not in ours or PIXELS not in theirs:
        return "pixels-differ"
    if same_syntax and _but_for_padding(bytes(ours[PIXELS].value), bytes(theirs[PIXELS].value)):
        return ""
    try:
        first = pixel_digest(open_pixels(read_object(sent), viewing=True))
    except PalimpsestError:  # nobody could decompress it: it was only given another name
        return "other-syntax"
    second = pixel_digest(open_pixels(read_object(back), viewing=True))
    return "" if first == second else "pixels-differ"
