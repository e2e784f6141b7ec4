"""The frame header: everything that all coders share. Layout in docs/bitstream.md, section 2."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import LevelTable, pack_levels, sign_extension
from codec.errors import CorruptBitstream, UnsupportedFrame
from codec.limits import Limits
from codec.pixelformat import MAX_SIDE, PixelFormat
from codec.wire import Reader, inflate, put_crc, put_signed, put_varint

MAGIC = 0x50
CODERS = ("raw", "jxl", "jpegls", "htj2k", "dual", "learned")  # wire numbers 0..5
VERSIONS = {1: CODERS[:5], 2: CODERS[5:]}  # version -> its coders: what one version can hold, no other does
UNUSED_ZERO, UNUSED_SIGN, UNUSED_STORED = 0, 1, 2


@dataclass(frozen=True)
class Header:
    """What stands before the coder's part."""

    fmt: PixelFormat
    levels: LevelTable
    coder: str
    unused_kind: int
    unused: NDArray[np.uint16] | None

    def unused_bits(self, values: NDArray[np.int32]) -> NDArray[np.uint16] | None:
        """The unused bits of the frame whose samples are `values` (None: all zero)."""
        if self.unused_kind == UNUSED_SIGN:
            return sign_extension(values, self.fmt)
        return self.unused


def classify_unused(values: NDArray[np.int32], unused: NDArray[np.uint16] | None, fmt: PixelFormat) -> int:
    """Which of the three ways of sending the unused bits fits."""
    if unused is None:
        return UNUSED_ZERO
    return UNUSED_SIGN if np.array_equal(unused, sign_extension(values, fmt)) else UNUSED_STORED


def write_header(header: Header) -> bytes:
    """The header's bytes, its CRC-32 included."""
    fmt, levels = header.fmt, header.levels
    out = bytearray((MAGIC, next(version for version, coders in VERSIONS.items() if header.coder in coders)))
    out.append(
        fmt.signed
        | (fmt.samples == 3) << 1
        | (fmt.bits_allocated == 16) << 2
        | header.unused_kind << 3
        | (levels.table is not None) << 5
    )
    out.append((fmt.bits_stored - 1) | fmt.high_bit << 4)
    out.append(CODERS.index(header.coder))
    put_varint(out, fmt.rows)
    put_varint(out, fmt.columns)
    put_signed(out, levels.minimum)
    put_varint(out, levels.count - 1)
    if levels.table is not None:
        packed = pack_levels(levels)
        put_varint(out, int(levels.table[-1]) - levels.minimum)
        put_varint(out, len(packed))
        out += packed
    if header.unused_kind == UNUSED_STORED and header.unused is not None:
        packed = zlib.compress(header.unused.astype("<u2").tobytes(), 9)
        put_varint(out, len(packed))
        out += packed
    put_crc(out, 0)
    return bytes(out)


def read_header(reader: Reader, limits: Limits) -> Header:
    """Parse and check a header. Raises CorruptBitstream; allocates nothing before the sizes are bounded."""
    start = reader.position
    if reader.byte() != MAGIC:
        raise CorruptBitstream("not a frame of this format")
    version = reader.byte()
    if version not in VERSIONS:
        raise CorruptBitstream(f"bitstream version {version} is unknown")
    flags, layout, coder = reader.byte(), reader.byte(), reader.byte()
    unused_kind = flags >> 3 & 3
    if flags >> 6 or unused_kind == 3 or coder >= len(CODERS) or CODERS[coder] not in VERSIONS[version]:
        raise CorruptBitstream("reserved flag or coder number")
    rows, columns = reader.varint(MAX_SIDE), reader.varint(MAX_SIDE)
    try:
        fmt = PixelFormat(
            rows,
            columns,
            3 if flags & 2 else 1,
            16 if flags & 4 else 8,
            (layout & 15) + 1,
            layout >> 4,
            bool(flags & 1),
        )
    except UnsupportedFrame as error:
        raise CorruptBitstream("impossible pixel format") from error
    if rows * columns * fmt.samples > limits.max_samples:
        raise CorruptBitstream(f"frame of {rows} x {columns} is above the limit of {limits.max_samples} samples")
    levels = _read_levels(reader, fmt, explicit=bool(flags & 32))
    unused = _read_unused(reader, fmt) if unused_kind == UNUSED_STORED else None
    reader.check_crc(start, "frame header")
    return Header(fmt, levels, CODERS[coder], unused_kind, unused)


def _read_levels(reader: Reader, fmt: PixelFormat, *, explicit: bool) -> LevelTable:
    """The level table; every level must fit the sample's range."""
    low = -(1 << fmt.bits_stored >> 1) if fmt.signed else 0
    high = low + (1 << fmt.bits_stored) - 1
    minimum, count = reader.signed(1 << 16), reader.varint(65535) + 1
    span = reader.varint(65535) if explicit else count - 1
    if minimum < low or minimum + span > high or span < count - 1:
        raise CorruptBitstream("levels outside the sample's range")
    if not explicit:
        return LevelTable(minimum, count)
    packed = reader.take(reader.varint(1 << 20))
    if not packed or packed[0] > 1:
        raise CorruptBitstream("unknown level table")
    if packed[0] == 0:
        gaps = np.frombuffer(inflate(packed[1:], 2 * (count - 1)), "<u2").astype(np.int64) + 1
        ranks = np.concatenate(([0], np.cumsum(gaps)))
    else:
        bits = np.unpackbits(np.frombuffer(inflate(packed[1:], (span + 7) // 8), np.uint8))
        ranks = np.concatenate(([0], np.flatnonzero(bits) + 1))
    if ranks.size != count or int(ranks[-1]) != span:
        raise CorruptBitstream("level table contradicts its declared size")
    return LevelTable(minimum, count, (ranks + minimum).astype(np.int32))


def _read_unused(reader: Reader, fmt: PixelFormat) -> NDArray[np.uint16]:
    """The stored unused bits; none may lie where the sample lies."""
    samples = fmt.rows * fmt.columns * fmt.samples
    packed = reader.take(reader.varint(4 * samples + 1024))
    if samples * 2 > 1100 * len(packed):  # deflate cannot expand further: a declared size is not to be believed
        raise CorruptBitstream("unused bits are too short for the frame")
    unused = np.frombuffer(inflate(packed, 2 * samples), "<u2").astype(np.uint16).reshape(fmt.shape)
    if (unused & np.uint16(fmt.mask)).any() or int(unused.max()) >> fmt.bits_allocated:
        raise CorruptBitstream("unused bits overlap the sample")
    return unused
