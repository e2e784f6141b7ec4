"""Decode a frame's blob with either implementation of the coders that this package defines."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codec import dualformat, learneddecode
from codec.adapter import network_of
from codec.bitplane import LevelTable, Words, join_words, split_words
from codec.errors import CodecError, CorruptBitstream
from codec.header import Header, read_header
from codec.learnedformat import read_learned
from codec.limits import Limits
from codec.memory import Memory
from codec.pixelformat import PixelFormat
from codec.standard import decode_standard, unpack_bits
from codec.wire import Reader


@dataclass(frozen=True)
class Frame:
    """A decoded frame: stored words (C order, fmt.dtype, fmt.shape), its format and its level table.

    `memory`: what it leaves to the next frame, of the learned coder.
    """

    words: Words
    fmt: PixelFormat
    levels: LevelTable
    memory: Memory | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Decoders:
    """One implementation of the streams of the dual and of the learned coder (there are two)."""

    dual: dualformat.Engine
    learned: learneddecode.Engine


@dataclass(frozen=True)
class Given:
    """What a blob may need beside itself; more than it needs does no harm.

    `previous`: words of the previous frame; `shared`: the adapter that the object holds once; `upper`: planes of the
    global part out of a group's stack (int32, (rows, columns)), one for each plane that has one; `memory`: of the
    frame before, as its decoder gave it.
    """

    previous: Words | None = None
    shared: bytes | None = None
    upper: Sequence[NDArray[np.int32]] | None = None
    memory: Memory | None = None

    def context(self, fmt: PixelFormat) -> learneddecode.Context:
        """The same for a frame of this format; a previous frame of another format is none."""
        values, crc = None, 0
        if (
            self.previous is not None
            and self.previous.shape == fmt.shape
            and self.previous.dtype == np.dtype(fmt.dtype)
        ):
            values, crc = split_words(self.previous, fmt)[0], words_crc(self.previous)
        return learneddecode.Context(network_of, values, crc, self.shared, self.upper, self.memory)


def words_crc(words: Words) -> int:
    """CRC-32 of a frame's words, little-endian in raster order."""
    return zlib.crc32(np.ascontiguousarray(words, words.dtype.newbyteorder("<")).tobytes())


def decode_with(blob: bytes, decoders: Decoders, limits: Limits, given: Given) -> Frame:
    """Decode a blob. Raises CorruptBitstream on anything wrong, within bounded memory and time."""
    reader = Reader(blob)
    header = read_header(reader, limits)
    index, memory = _decode_index(reader, header, decoders, given)
    try:
        values = header.levels.value(index)
    except CodecError as error:
        raise CorruptBitstream("sample outside the frame's levels") from error
    return Frame(join_words(values, header.unused_bits(values), header.fmt), header.fmt, header.levels, memory)


def _decode_index(
    reader: Reader, header: Header, decoders: Decoders, given: Given
) -> tuple[NDArray[np.uint16], Memory | None]:
    """Level indices (the frame's shape) out of the coder's part, which must end where the blob does; the memory."""
    shape, count = header.fmt.shape, header.levels.count
    if header.coder == "dual":
        index = dualformat.decode_index(reader, shape, count, decoders.dual).astype(np.uint16)
        _check_end(reader)
        return index, None
    if header.coder == "learned":
        coded = read_learned(reader, shape, count)
        _check_end(reader)
        context = given.context(header.fmt) if coded.needs_context else learneddecode.Context(network_of)
        found, memory = learneddecode.decode_learned(coded, shape, header.levels, context, decoders.learned)
        return found.astype(np.uint16), memory
    start = reader.position
    body = bytes(reader.take(reader.left - 4))
    reader.check_crc(start, "coded frame")
    if header.coder == "raw":
        return unpack_bits(body, (count - 1).bit_length(), int(np.prod(shape))).reshape(shape), None
    return decode_standard(header.coder, body, shape), None


def _check_end(reader: Reader) -> None:
    if reader.left:
        raise CorruptBitstream(f"{reader.left} bytes after the end")
