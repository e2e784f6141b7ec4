"""Attribute values of a received data set, read where `gateway.part10.walk` says they are; nothing is written back.

Every reader is bounded and answers None or a typed refusal on nonsense: a header is a claim, never a fact.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom import charset

from gateway.errors import InvalidInstance, Unsupported
from gateway.part10 import DEFLATED, EXPLICIT_BE, EXPLICIT_LE, Element, read_meta, walk

Data = bytes | bytearray | memoryview | mmap.mmap

MAX_TEXT_BYTES = 1 << 12
MAX_INFLATED = 1 << 26
CHARSET_TAG = 0x00080005


@dataclass(frozen=True)
class DataSet:
    """Top-level elements by tag over `data`. `repeated`: tags seen more than once (the first one is kept)."""

    data: Data
    syntax: str
    offset: int
    big: bool
    elements: Mapping[int, Element]
    repeated: frozenset[int]

    def raw(self, tag: int, limit: int = MAX_TEXT_BYTES) -> bytes | None:
        """Value bytes, None if absent or longer than `limit`."""
        element = self.elements.get(tag)
        if element is None or element.undefined or element.length > limit:
            return None
        return bytes(self.data[element.value_offset : element.end])

    def ascii(self, tag: int) -> str:
        """First value of a text attribute, '' if absent; unreadable bytes are replaced."""
        text = (self.raw(tag) or b"").decode("ascii", "replace")
        return text.split("\\")[0].strip("\0 ")

    def text(self, tag: int, *, person: bool = False) -> str:
        """Whole text value in the data set's character set; what cannot be decoded falls back to Latin-1."""
        value = (self.raw(tag) or b"").rstrip(b"\0 ").lstrip(b" ")
        if not value:
            return ""
        names = (self.raw(CHARSET_TAG) or b"").decode("ascii", "replace").split("\\")
        try:
            encodings = charset.convert_encodings([name.strip("\0 ") for name in names])
            delimiters = {0x5C, 0x5E, 0x3D} if person else {0x5C}
            return str(charset.decode_bytes(value, encodings, delimiters))
        except (LookupError, ValueError):
            return value.decode("latin-1")

    def number(self, tag: int) -> int | None:
        """A US value. Raises Unsupported ``header`` when present with any other length than one value."""
        if tag not in self.elements:
            return None
        value = self.raw(tag)
        if value is None or len(value) != 2:
            raise Unsupported("header", "an image attribute does not hold one 16-bit number")
        return int(struct.unpack(">H" if self.big else "<H", value)[0])

    def integer_string(self, tag: int, default: int, least: int = 1) -> int:
        """An IS value (PS3.5 6.2). Raises Unsupported ``header`` when it is no number from `least` to 2^31 - 1."""
        text = self.ascii(tag)
        if not text:
            return default
        digits = text[1:] if text[0] in "+-" else text
        if not (digits.isascii() and digits.isdigit() and len(text) <= 12 and least <= int(text) < 1 << 31):
            raise Unsupported("header", f"an integer string is no number from {least} on")
        return int(text)


def read_data_set(data: Data) -> DataSet:
    """Index the top level of a Part 10 file. Raises InvalidInstance (not readable), Unsupported ``deflated``."""
    syntax, offset = read_meta(data)
    if syntax in DEFLATED:
        raise Unsupported("deflated", "the data set is deflated as a whole")
    elements: dict[int, Element] = {}
    repeated = set()
    for element in walk(data, syntax, offset):
        if element.tag in elements:
            repeated.add(element.tag)
        else:
            elements[element.tag] = element
    return DataSet(data, syntax, offset, syntax == EXPLICIT_BE, elements, frozenset(repeated))


def read_tolerant(data: Data) -> DataSet | None:
    """As much of the header as can be read, for naming an object that is sealed whole; None when it is no Part 10 file.

    A deflated data set is inflated up to MAX_INFLATED bytes; elements before the first fault are kept.
    """
    try:
        syntax, offset = read_meta(data)
    except InvalidInstance:
        return None
    body: Data = data
    start = offset
    if syntax in DEFLATED:
        try:
            inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
            body, start = inflate.decompress(data[offset:], MAX_INFLATED), 0
        except zlib.error:
            return None
    elements: dict[int, Element] = {}
    try:
        for element in walk(body, syntax, start):
            elements.setdefault(element.tag, element)
    except InvalidInstance:
        pass  # what was read names the object; the file itself is sealed verbatim
    return DataSet(body, syntax, start, syntax == EXPLICIT_BE, elements, frozenset())


def read_file_meta(data: Data, offset: int) -> dict[int, Element]:
    """Elements of group 0002 by tag; `offset` is where the data set starts."""
    head = bytes(data[:offset])
    return {element.tag: element for element in walk(head, EXPLICIT_LE, 132)}
