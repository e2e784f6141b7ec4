"""Reading the skeleton of a DICOM file without pydicom: where each top-level element starts and ends.

Input is any byte buffer, usually an mmap, so a 3 GB element costs no memory. Nothing is decoded but UIDs.
Encodings: PS3.5 7.1 (elements), 7.5 (sequences), A.4 (encapsulation); file meta information: PS3.10 7.1.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from gateway.errors import BadUID, InvalidInstance, NotDicom
from gateway.uids import UID, SOPClassUID, SOPInstanceUID, parse_sop_class, parse_sop_instance, parse_uid

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BE: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99"})
GE_PRIVATE_IMPLICIT: Final = "1.2.840.113619.5.2"  # implicit VR, little endian header

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
MAX_DEPTH: Final = 64
DEFAULT_LIMIT: Final = 64 << 20  # bytes of the file that `peek` may look at
DEFLATED_PREFIX: Final = 1 << 20  # bytes inflated by `peek`

_LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_SHORT_VRS: Final = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
_WANTED: Final = {0x00080016: "class", 0x00080018: "instance", 0x0020000D: "study", 0x0020000E: "series"}

Buffer = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Element:
    """One top-level element. Offsets and lengths are bytes in the buffer that was walked.

    tag: group << 16 | element; vr: two letters, '' under implicit VR; offset: of the header; value_offset: of the
    value; length: of the value, for undefined length through the sequence delimiter's end; undefined: it was
    FFFFFFFF.
    """

    tag: int
    vr: str
    offset: int
    value_offset: int
    length: int
    undefined: bool

    @property
    def end(self) -> int:
        """Offset of the first byte after the value."""
        return self.value_offset + self.length


@dataclass(frozen=True, slots=True)
class Peek:
    """What the door needs to know of a file. Study and series are None if absent, unreadable or not UIDs."""

    sop_class_uid: SOPClassUID
    sop_instance_uid: SOPInstanceUID
    study_uid: UID | None
    series_uid: UID | None
    transfer_syntax: str
    dataset_offset: int


@dataclass(frozen=True, slots=True)
class _Encoding:
    explicit: bool
    big: bool


@dataclass(frozen=True, slots=True)
class _Header:
    tag: int
    vr: bytes
    value_offset: int
    length: int


def peek(source: Path | str | Buffer, limit: int = DEFAULT_LIMIT) -> Peek:
    """SOP class, instance, study and series UID, syntax and data set offset of a Part 10 file.

    source: a path (mapped, not read) or a buffer; limit: bytes looked at.
    Raises NotDicom (no preamble, bad meta), BadUID, InvalidInstance (no syntax, no SOP class or instance UID).
    """
    if isinstance(source, (str, Path)):
        return _peek_path(Path(source), limit)
    return _peek_buffer(memoryview(source)[:limit])


def _peek_path(path: Path, limit: int) -> Peek:
    with path.open("rb") as file:
        if path.stat().st_size < 132:
            raise NotDicom("not-part10", "shorter than the Part 10 preamble (PS3.10 7.1)")
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
            view[:limit] as window,
        ):
            return _peek_buffer(window)


def _peek_buffer(view: memoryview) -> Peek:
    syntax, offset = read_meta(view)
    if syntax in DEFLATED:
        found = _wanted_values(memoryview(_inflate_prefix(view[offset:])), syntax, 0)
    else:
        found = _wanted_values(view, syntax, offset)
    for name in ("class", "instance"):
        if not found.get(name):
            raise InvalidInstance(f"missing-sop-{name}-uid", f"the data set has no SOP {name} UID (Type 1)")
    return Peek(
        sop_class_uid=parse_sop_class(found["class"]),
        sop_instance_uid=parse_sop_instance(found["instance"]),
        study_uid=_uid_or_none(found.get("study")),
        series_uid=_uid_or_none(found.get("series")),
        transfer_syntax=syntax,
        dataset_offset=offset,
    )


def read_meta(buf: Buffer) -> tuple[str, int]:
    """(transfer syntax UID, offset of the data set). The group length is not trusted: group 0002 ends where it ends.

    Raises NotDicom ``not-part10`` / ``bad-file-meta``, InvalidInstance ``missing-transfer-syntax``, BadUID.
    """
    if len(buf) < 132 or bytes(buf[128:132]) != b"DICM":
        raise NotDicom("not-part10", "no DICM at byte 128 (PS3.10 7.1)")
    encoding = _Encoding(explicit=True, big=False)
    syntax, at = "", 132
    while at + 8 <= len(buf) and buf[at : at + 2] == b"\x02\x00":
        try:
            header = _header(buf, at, encoding)
            end = _plain_end(buf, header)
        except InvalidInstance as error:
            raise NotDicom("bad-file-meta", "the file meta information cannot be read (PS3.10 7.1)") from error
        if header.tag == 0x00020010:
            syntax = _text(buf, header.value_offset, end)
        at = end
    if at == 132:
        raise NotDicom("bad-file-meta", "no file meta information after DICM (PS3.10 7.1)")
    if not syntax:
        raise InvalidInstance("missing-transfer-syntax", "file meta information names no transfer syntax (0002,0010)")
    return str(parse_uid(syntax, "transfer-syntax")), at


def walk(buf: Buffer, syntax: str, start: int) -> Iterator[Element]:
    """Top-level elements of the data set in buf[start:], in file order; nested ones are skipped, not yielded.

    Deflated data sets must be inflated by the caller. Explicit or implicit VR is taken from the first element where it
    contradicts the syntax (as pydicom does). Raises InvalidInstance: truncated, bad-vr, bad-item, too-deep.
    """
    encoding = _encoding(buf, syntax, start)
    at, size = start, len(buf)
    while at < size:
        header = _header(buf, at, encoding)
        undefined = header.length == UNDEFINED
        end = _undefined_end(buf, header, encoding) if undefined else _plain_end(buf, header)
        yield Element(
            header.tag, header.vr.decode("ascii"), at, header.value_offset, end - header.value_offset, undefined
        )
        at = end


def pixel_digest(path: Path) -> str | None:
    """SHA-256 (hex) of the raw pixel data value as stored, None if there is none or the file cannot be walked.

    It tells a corrected header from other pixels; equal pixels under another transfer syntax have another digest.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return _pixel_digest(view)
    except (InvalidInstance, ValueError):  # ValueError: an empty file cannot be mapped
        return None


def _pixel_digest(view: memoryview) -> str | None:
    syntax, offset = read_meta(view)
    if syntax in DEFLATED:
        return None
    for element in walk(view, syntax, offset):
        if element.tag in PIXEL_TAGS:
            with view[element.value_offset : element.end] as span:
                return sha256(span).hexdigest()
    return None


def _wanted_values(view: memoryview, syntax: str, offset: int) -> dict[str, str]:
    """Values of the four UIDs; what follows a broken element is given up, what was found before is kept."""
    found: dict[str, str] = {}
    try:
        for element in walk(view, syntax, offset):
            name = _WANTED.get(element.tag)
            if name is not None and element.length <= 128:
                found[name] = _text(view, element.value_offset, element.end)
                if len(found) == len(_WANTED):
                    break
    except InvalidInstance:
        if "class" not in found and "instance" not in found:
            raise
    return found


def _inflate_prefix(view: memoryview) -> bytes:
    try:
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(view, DEFLATED_PREFIX)
    except zlib.error as error:
        raise InvalidInstance("bad-deflate", "the deflated data set cannot be inflated (PS3.5 A.5)") from error


def _uid_or_none(text: str | None) -> UID | None:
    try:
        return parse_uid(text) if text else None
    except BadUID:
        return None


def _text(buf: Buffer, start: int, end: int) -> str:
    return bytes(buf[start:end]).decode("ascii", "replace").strip("\0 ")


def _encoding(buf: Buffer, syntax: str, start: int) -> _Encoding:
    big = syntax == EXPLICIT_BE
    explicit = syntax not in (IMPLICIT_LE, GE_PRIVATE_IMPLICIT)
    if start + 6 <= len(buf):
        vr = bytes(buf[start + 4 : start + 6])
        explicit = vr in _LONG_VRS or vr in _SHORT_VRS or (explicit and _looks_like_vr(vr))
    return _Encoding(explicit, big)


def _looks_like_vr(vr: bytes) -> bool:
    return 0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A


def _header(buf: Buffer, at: int, encoding: _Encoding) -> _Header:
    if at + 8 > len(buf):
        raise InvalidInstance("truncated", "the data set ends inside an element's header")
    end = ">" if encoding.big else "<"
    group, element = struct.unpack_from(end + "HH", buf, at)
    tag = group << 16 | element
    if not encoding.explicit or group == 0xFFFE:
        return _Header(tag, b"", at + 8, struct.unpack_from(end + "I", buf, at + 4)[0])
    vr = bytes(buf[at + 4 : at + 6])
    if vr in _SHORT_VRS:
        return _Header(tag, vr, at + 8, struct.unpack_from(end + "H", buf, at + 6)[0])
    if vr not in _LONG_VRS and not _looks_like_vr(vr):
        raise InvalidInstance("bad-vr", "an element's value representation is not two capital letters (PS3.5 7.1.2)")
    if at + 12 > len(buf):
        raise InvalidInstance("truncated", "the data set ends inside an element's header")
    return _Header(tag, vr, at + 12, struct.unpack_from(end + "I", buf, at + 8)[0])  # unknown VRs are long (PS3.5 6.2)


def _plain_end(buf: Buffer, header: _Header) -> int:
    end = header.value_offset + header.length
    if header.length == UNDEFINED or end > len(buf):
        raise InvalidInstance("truncated", "an element's value reaches beyond the end of the file")
    return end


def _undefined_end(buf: Buffer, header: _Header, encoding: _Encoding) -> int:
    """Offset after the delimiter of an undefined-length value: a sequence, or encapsulated fragments (PS3.5 7.5, A.4).

    A stack of open containers, no recursion: ('S', e) expects items, ('I', e) expects elements, e is their encoding.
    """
    inside = _Encoding(False, False) if header.vr == b"UN" else encoding  # PS3.5 6.2.2 note 2: UN is implicit inside
    stack: list[tuple[str, _Encoding]] = [("S", inside)]
    at = header.value_offset
    while stack:
        kind, current = stack[-1]
        inner = _header(buf, at, current)
        at = inner.value_offset
        closing = SEQUENCE_END if kind == "S" else ITEM_END
        if inner.tag == closing:
            stack.pop()
            # the delimiter length is zero (PS3.5 7.5.1); other values are ignored, as every reader does
        elif kind == "S" and inner.tag != ITEM:
            raise InvalidInstance("bad-item", "something other than an item inside a sequence (PS3.5 7.5)")
        elif inner.length != UNDEFINED:
            at = _plain_end(buf, inner)
        else:
            nested = _Encoding(False, False) if inner.vr == b"UN" else current
            stack.append(("I" if kind == "S" else "S", nested))
            if len(stack) > MAX_DEPTH:
                raise InvalidInstance("too-deep", f"sequences nested deeper than {MAX_DEPTH}")
    return at
