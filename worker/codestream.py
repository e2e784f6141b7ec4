"""Size, precision and sign that a compressed frame declares, read before any decoder may allocate for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from worker.jpeg2000_t800.boxes import codestream_of
from worker.jpeg2000_t800.errors import J2kError

SOF_LOSSLESS = 0xC3
SOF_JPEG_LS = 0xF7


class CodestreamError(Exception):
    """The codestream's headers cannot be read."""


@dataclass(frozen=True)
class Declared:
    """What the codestream says. `signed` is None where the coding has no sign (JPEG lossless, JPEG-LS)."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None


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
            return Declared(rows, columns, samples, precision, None)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xDA:
            break
        at += 2 + length
    raise CodestreamError("no lossless frame header")


def read_jpeg2000(data: bytes) -> Declared:
    """The SIZ segment (T.800 A.5.1) of a JPEG 2000 or HTJ2K codestream or JP2 file. Raises CodestreamError."""
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
    return Declared(height - top, width - left, samples, (parts[0] & 0x7F) + 1, bool(parts[0] & 0x80))
