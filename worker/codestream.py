"""Size, precision and sign that a compressed frame declares, read before any decoder may allocate for it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from worker.jpeg2000_t800.boxes import codestream_of
from worker.jpeg2000_t800.errors import J2kError

SOF_LOSSLESS = 0xC3
SOF_JPEG_LS = 0xF7
SOI, EOI = 0xD8, 0xD9
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # of T.81 B.1.1.3, but fill bytes and restart markers
END_OF_IMAGE = b"\xff\xd9"  # EOI of T.81 and T.87, EOC of T.800


class CodestreamError(Exception):
    """The codestream's headers cannot be read."""


@dataclass(frozen=True)
class Declared:
    """What the codestream says. `signed` is None where the coding has no sign (JPEG lossless, JPEG-LS).

    `trailing`: after its end stands more than padding, such as another image, which decoders would drop.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None
    trailing: bool = False


def read_jpeg(data: bytes) -> Declared:
    """The frame header (SOF3 or SOF55) of a JPEG lossless or JPEG-LS stream. Raises CodestreamError."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        if marker in (SOF_LOSSLESS, SOF_JPEG_LS):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return Declared(rows, columns, samples, precision, None, _holds_more(data[_jpeg_end(data) :]))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xDA:
            break
        at += 2 + length
    raise CodestreamError("no lossless frame header")


def read_jpeg2000(data: bytes) -> Declared:
    """The SIZ segment (T.800 A.5.1) of a JPEG 2000 or HTJ2K codestream or JP2 file. Raises CodestreamError."""
    whole = data
    try:
        data = codestream_of(data)
    except J2kError as error:
        raise CodestreamError("boxes") from error
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 45:
        raise CodestreamError("no codestream header")
    width, height, left, top = struct.unpack_from(">IIII", data, 8)
    samples = struct.unpack_from(">H", data, 40)[0]
    parts = data[42 : 42 + 3 * samples]
    if not 1 <= samples <= 4 or len(parts) != 3 * samples or parts != parts[:3] * samples:
        raise CodestreamError("components differ")
    if parts[1] != 1 or parts[2] != 1:
        raise CodestreamError("subsampled components")
    trailing = _holds_more(whole[whole.find(data) + _jpeg2000_end(data) :])
    return Declared(height - top, width - left, samples, (parts[0] & 0x7F) + 1, bool(parts[0] & 0x80), trailing)


def _holds_more(rest: bytes) -> bool:
    """Whether more than padding follows a codestream: zeros, or one byte of any value (writers use 0xFF, too)."""
    return len(rest) > 1 and any(rest)


def _jpeg_end(data: bytes) -> int:
    """Where the first image ends. Raises CodestreamError.

    In a scan 0xFF is followed by zero (T.81 B.1.1.5), a byte below 0x80 (T.87 A.1) or a restart marker.
    """
    found = MARKER.search(data, 2)
    while found is not None and data[found.start() + 1] != SOI:
        if data[found.start() + 1] == EOI:
            return found.end()
        found = MARKER.search(data, found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big"))
    raise CodestreamError("no end of image")


def _jpeg2000_end(data: bytes) -> int:
    """Where a codestream ends (T.800 A.2, A.4.2, A.4.4). Raises CodestreamError.

    A tile-part of unknown length ends with the codestream: nothing above FF8F can stand in its data (A.1.2).
    """
    at = 2
    while data[at : at + 2] != END_OF_IMAGE and at + 12 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0x90:  # SOT
            length = int.from_bytes(data[at + 6 : at + 10], "big")
            at = at + max(12, length) if length else data.find(END_OF_IMAGE, at + 12)
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    if at < 0 or data[at : at + 2] != END_OF_IMAGE:
        raise CodestreamError("no end of codestream")
    return at + 2
