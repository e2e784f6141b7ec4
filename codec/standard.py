"""The standard codecs beside the dual path, behind one table: JPEG XL, JPEG-LS, HTJ2K (imagecodecs) and packed bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream

Plane = NDArray[Any]  # uint8 or uint16, (rows, columns) or (rows, columns, 3)
JXL_BOX = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
END_OF_IMAGE = b"\xff\xd9"
STRIP = 1 << 20
COMMENT = b"\xff\x64"
HTJ2K_MARKERS = (b"\xff\x51", b"\xff\x50", b"\xff\x52", b"\xff\x5c", b"\xff\x90")  # SIZ, CAP, COD, QCD, SOT
HTJ2K_CODING = b"\5\4\4\x40\1"  # 5 decompositions, blocks of 64 x 64, high throughput, reversible


def _library() -> Any:
    """imagecodecs, imported on first use: loading every codec takes a while."""
    import imagecodecs

    return imagecodecs


def jxl_encode(plane: Plane, effort: int) -> bytes:
    """Bare JPEG XL codestream, lossless. Raises RuntimeError or ValueError when libjxl refuses the shape."""
    bits = max(1, int(plane.max()).bit_length())
    depth = 8 if plane.dtype == np.uint8 else max(9, bits)
    blob = _library().jpegxl_encode(plane, lossless=True, effort=effort, numthreads=1, bitspersample=depth)
    return _bare_codestream(bytes(blob))


def _bare_codestream(blob: bytes) -> bytes:
    """The codestream inside an ISO BMFF container (jxlc box, or the parts of jxlp boxes); bare streams unchanged."""
    if not blob.startswith(JXL_BOX):
        return blob
    out, at = bytearray(), 0
    while at + 8 <= len(blob):
        size, kind = int.from_bytes(blob[at : at + 4], "big"), blob[at + 4 : at + 8]
        start = at + 8
        if size == 1:
            size, start = int.from_bytes(blob[at + 8 : at + 16], "big"), at + 16
        end = len(blob) if size == 0 else at + size
        if kind == b"jxlc":
            return blob[start:end]
        if kind == b"jxlp":
            out += blob[start + 4 : end]
        at = end
    return bytes(out)


def jxl_size(data: bytes) -> tuple[int, int]:
    """(rows, columns) declared by a bare JPEG XL codestream (ISO/IEC 18181-1 SizeHeader)."""
    if len(data) < 12 or data[:2] != b"\xff\x0a":
        raise CorruptBitstream("no JPEG XL codestream")
    bits, used = int.from_bytes(data[2:12], "little"), 0

    def read(count: int) -> int:
        nonlocal used
        used += count
        return (bits >> (used - count)) & ((1 << count) - 1)

    def side(small: int) -> int:
        return 8 * (read(5) + 1) if small else read((9, 13, 18, 30)[read(2)]) + 1

    small = read(1)
    rows = side(small)
    ratio = read(3)
    if ratio == 0:
        return rows, side(small)
    top, bottom = JXL_RATIOS[ratio - 1]
    return rows, rows * top // bottom


def jpegls_size(data: bytes) -> tuple[int, int, int]:
    """(rows, columns, components) of the SOF55 segment of a JPEG-LS stream (ISO/IEC 14495-1)."""
    if data[-2:] != END_OF_IMAGE:  # CharLS searches for seconds for an end that is not there
        raise CorruptBitstream("JPEG-LS stream without its end")
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xF7:
            rows, columns = (int.from_bytes(data[place : place + 2], "big") for place in (at + 5, at + 7))
            return rows, columns, data[at + 9]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise CorruptBitstream("no JPEG-LS frame header")


def htj2k_size(data: bytes) -> tuple[int, int, int]:
    """(rows, columns, components) of the SIZ segment of a JPEG 2000 codestream (ISO/IEC 15444-1 A.5.1).

    Only main headers of the form that the encoder writes are let through: on others OpenJPH was seen to work for
    minutes (tiles larger than the image) and to crash (quantisation that does not fit the decomposition).
    """
    if len(data) < 42 or data[-2:] != END_OF_IMAGE or data[:4] != b"\xff\x4f\xff\x51":
        raise CorruptBitstream("no JPEG 2000 codestream")
    segments: list[tuple[bytes, bytes]] = []
    at = 2
    while data[at : at + 2] != b"\xff\x93" and len(segments) < 7:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    if [marker for marker, _ in segments if marker != COMMENT] != list(HTJ2K_MARKERS):
        raise CorruptBitstream("JPEG 2000 codestream with unusual segments")
    size, _, coding, steps, part = (body for marker, body in segments if marker != COMMENT)
    x1, y1, *others = (int.from_bytes(size[place : place + 4], "big") for place in range(2, 34, 4))
    components = int.from_bytes(size[34:36], "big")
    depths = {size[36 + 3 * place : 39 + 3 * place] for place in range(components)}
    usual = others == [0, 0, x1, y1, 0, 0] and depths in ({b"\x07\x01\x01"}, {b"\x0f\x01\x01"})
    usual = usual and len(size) == 36 + 3 * components and coding[:4] == b"\0\2\0\1" and coding[5:] == HTJ2K_CODING
    # no quantisation, one exponent a subband; one tile part as long as the codestream
    whole = len(data) - at + 10
    usual = usual and len(steps) == 2 + 3 * coding[5] and steps[0] & 0x1F == 0 and part == _tile_part(whole)
    if not usual or coding[4] != (components == 3):
        raise CorruptBitstream("JPEG 2000 codestream with unusual parameters")
    return y1, x1, components


def _tile_part(length: int) -> bytes:
    """SOT of a first and only tile part (ISO/IEC 15444-1 A.4.2)."""
    return b"\0\0" + length.to_bytes(4, "big") + b"\0\1"


def pack_bits(plane: Plane, bits: int) -> bytes:
    """Every sample in `bits` bits, highest bit first, no padding but at the end (zero bits)."""
    flat = plane.ravel().astype(np.uint16)
    parts = []
    for at in range(0, flat.size, STRIP):
        wide = np.unpackbits(flat[at : at + STRIP].astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - bits :]
        parts.append(np.packbits(wide).tobytes())
    return b"".join(parts) if bits else b""


def unpack_bits(data: bytes, bits: int, count: int) -> NDArray[np.uint16]:
    """Inverse of pack_bits: `count` samples (uint16). Raises CorruptBitstream on another length or set padding."""
    if len(data) != (bits * count + 7) // 8:
        raise CorruptBitstream("packed samples have the wrong length")
    out = np.zeros(count, np.uint16)
    if bits == 0:
        return out
    raw = np.frombuffer(data, np.uint8)
    for at in range(0, count, STRIP):
        number = min(STRIP, count - at)
        chunk = np.unpackbits(raw[at * bits // 8 : (at * bits + number * bits + 7) // 8])
        if chunk[number * bits :].any():
            raise CorruptBitstream("padding bits are set")
        wide = np.zeros((number, 16), np.uint8)
        wide[:, 16 - bits :] = chunk[: number * bits].reshape(number, bits)
        out[at : at + number] = np.packbits(wide, axis=1).view(">u2").ravel()
    return out


@dataclass(frozen=True)
class StandardCoder:
    """One library codec: encode(plane, effort), decode(bytes); size: declared rows, columns (and components)."""

    encode: Callable[[Plane, int], bytes]
    decode: Callable[[bytes], Plane]
    size: Callable[[bytes], tuple[int, ...]]


STANDARD = {
    "jxl": StandardCoder(jxl_encode, lambda data: _library().jpegxl_decode(data, numthreads=1), jxl_size),
    "jpegls": StandardCoder(
        lambda plane, _effort: bytes(_library().jpegls_encode(plane)),
        lambda data: _library().jpegls_decode(data),
        jpegls_size,
    ),
    "htj2k": StandardCoder(
        lambda plane, _effort: bytes(_library().htj2k_encode(plane, reversible=True)),
        lambda data: _library().htj2k_decode(data),
        htj2k_size,
    ),
}


def decode_standard(coder: str, data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Decode one library codec's stream into uint16 of `shape`; CorruptBitstream when anything disagrees."""
    engine = STANDARD[coder]
    declared = engine.size(data)
    if declared != (*shape[:2], shape[2] if len(shape) == 3 else 1)[: len(declared)]:
        raise CorruptBitstream(f"{coder} stream declares another size than the frame")
    try:
        plane = np.asarray(engine.decode(data))
    except (RuntimeError, ValueError, OverflowError) as error:
        raise CorruptBitstream(f"{coder} stream is damaged") from error
    if plane.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)) or plane.size != int(np.prod(shape)):
        raise CorruptBitstream(f"{coder} stream holds another kind of image")
    return plane.reshape(shape).astype(np.uint16)
