"""The elements of a data set under another encoding: explicit or implicit VR, little endian (PS3.5 7.1, A.1, A.2).

Value bytes are copied; only headers, the byte order of big-endian numbers and the lengths of sequences around them
change.  Group lengths (gggg,0000) are left out: they would be wrong, and are retired (PS3.5 7.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.datadict import dictionary_VR

from gateway.errors import InvalidInstance, Unsupported
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Element, walk
from worker.attributes import Data

__all__ = ["Encoding", "element_bytes", "header_bytes", "reencoded"]

MAX_SEQUENCE = 1 << 28  # bytes of one top-level sequence that is written anew, which is done in memory
LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
#: bytes of one number, where the byte order matters (PS3.5 7.3)
WIDTH = {"US": 2, "SS": 2, "AT": 2, "OW": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4}
WIDTH |= dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8)
DELIMITER_BYTES = 8


@dataclass(frozen=True)
class Encoding:
    """From which encoding to which. source: a transfer syntax for `walk`; big: its numbers are big endian.

    implicit: the source has no VRs; explicit: the result has them. signed: Pixel Representation is 1, which decides
    what 'US or SS' in the dictionary means.
    """

    source: str
    implicit: bool
    big: bool
    explicit: bool
    signed: bool

    @property
    def same(self) -> bool:
        """Whether elements can be copied as they are."""
        return not self.big and self.implicit != self.explicit


def reencoded(data: Data, element: Element, encoding: Encoding) -> Iterator[bytes | memoryview]:
    """One top-level element, but for pixel data, in pieces.

    Raises InvalidInstance (broken), Unsupported ``not-transcodable``.
    """
    if element.tag & 0xFFFF == 0:
        return
    view = memoryview(data)
    if encoding.same:
        yield view[element.offset : element.end]
        return
    vr = element.vr or implied_vr(element.tag, encoding.signed)
    if vr == "SQ":
        if element.length > MAX_SEQUENCE:
            raise Unsupported("not-transcodable", "a sequence is too long to be written in another encoding")
        yield _sequence(view, element, encoding)
    elif element.undefined:
        yield _unknown_sequence(view, element, encoding)
    else:
        yield header_bytes(element.tag, vr, element.length, explicit=encoding.explicit)
        yield _value(view[element.value_offset : element.end], vr, encoding.big)


def header_bytes(tag: int, vr: str, length: int, *, explicit: bool) -> bytes:
    """Tag, VR and length, little endian. A value too long for a short VR is declared UN (PS3.5 6.2.2 note 3)."""
    group, number = tag >> 16, tag & 0xFFFF
    if not explicit or group == 0xFFFE:
        return struct.pack("<HHI", group, number, length)
    if vr not in LONG and length <= 0xFFFF:
        return struct.pack("<HH2sH", group, number, vr.encode("ascii"), length)
    name = vr if vr in LONG else "UN"
    return struct.pack("<HH2sHI", group, number, name.encode("ascii"), 0, length)


def element_bytes(tag: int, vr: str, value: bytes, *, explicit: bool) -> bytes:
    """A whole little-endian element."""
    return header_bytes(tag, vr, len(value), explicit=explicit) + value


def implied_vr(tag: int, signed: bool) -> str:
    """The VR of an implicit element (PS3.6); UN for what the dictionary does not know. One of a choice is taken."""
    group, number = tag >> 16, tag & 0xFFFF
    if group & 1:
        return "LO" if 0x10 <= number <= 0xFF else "UN"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    if vr == "US or SS":
        return "SS" if signed else "US"
    return "OW" if " or " in vr else str(vr)  # of implicit VR both OB and OW have these bytes (PS3.5 A.1)


def _value(value: memoryview, vr: str, big: bool) -> bytes | memoryview:
    width = WIDTH.get(vr, 1) if big else 1
    if width == 1:
        return value
    if len(value) % width:
        raise Unsupported("not-transcodable", "a value is no whole number of numbers of its kind")
    return np.frombuffer(value, dtype=f"u{width}").byteswap().tobytes()


def _sequence(view: memoryview, element: Element, encoding: Encoding) -> bytes:
    """A sequence with all its items; what had a length gets its new one, what had none gets none."""
    items = b"".join(_items(view, element, encoding))
    if not element.undefined:
        return header_bytes(element.tag, "SQ", len(items), explicit=encoding.explicit) + items
    end = struct.pack("<HHI", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)
    return header_bytes(element.tag, "SQ", UNDEFINED, explicit=encoding.explicit) + items + end


def _items(view: memoryview, element: Element, encoding: Encoding) -> Iterator[bytes]:
    at = element.value_offset
    while at < element.end:
        if at + DELIMITER_BYTES > element.end:
            raise InvalidInstance("bad-item", "a sequence ends inside an item's header (PS3.5 7.5)")
        group, number, length = struct.unpack_from(">HHI" if encoding.big else "<HHI", view, at)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            return
        if tag != ITEM:
            raise InvalidInstance("bad-item", "something other than an item inside a sequence (PS3.5 7.5)")
        start = at + DELIMITER_BYTES
        content, at = _item(view[: element.end if length == UNDEFINED else start + length], start, encoding)
        if length == UNDEFINED:
            end = struct.pack("<HHI", ITEM_END >> 16, ITEM_END & 0xFFFF, 0)
            yield header_bytes(ITEM, "", UNDEFINED, explicit=False) + content + end
        else:
            yield header_bytes(ITEM, "", len(content), explicit=False) + content


def _item(view: memoryview, start: int, encoding: Encoding) -> tuple[bytes, int]:
    """(an item's elements in the new encoding, the offset after it). It ends with the view or its delimiter."""
    out: list[bytes | memoryview] = []
    at = start
    for element in walk(view, encoding.source, start) if start < len(view) else ():
        at = element.end
        if element.tag == ITEM_END:
            break
        nested = Encoding(encoding.source, not element.vr, encoding.big, encoding.explicit, encoding.signed)
        out.extend(reencoded(view, element, nested))
    return b"".join(out), at


def _unknown_sequence(view: memoryview, element: Element, encoding: Encoding) -> bytes:
    """UN of undefined length, or a private sequence under implicit VR: its inside is implicit VR (PS3.5 6.2.2)."""
    if encoding.big or element.vr not in ("", "UN"):
        raise Unsupported("not-transcodable", "a value of undefined length that is no sequence")
    value = bytes(view[element.value_offset : element.end])
    return header_bytes(element.tag, "UN", UNDEFINED, explicit=encoding.explicit) + value


def source_encoding(syntax: str) -> str:
    """The syntax under which `walk` reads a data set: of encapsulated ones the explicit one."""
    return syntax if syntax in (IMPLICIT_LE, EXPLICIT_BE) else EXPLICIT_LE
