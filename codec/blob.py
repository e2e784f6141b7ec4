"""Decode a frame's blob with either implementation of the dual coder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codec.bitplane import LevelTable, Words, join_words
from codec.dualformat import Engine, decode_index
from codec.errors import CodecError, CorruptBitstream
from codec.header import read_header
from codec.limits import Limits
from codec.pixelformat import PixelFormat
from codec.standard import decode_standard, unpack_bits
from codec.wire import Reader


@dataclass(frozen=True)
class Frame:
    """A decoded frame: stored words (C order, fmt.dtype, fmt.shape), its format and its level table."""

    words: Words
    fmt: PixelFormat
    levels: LevelTable


def decode_with(blob: bytes, engine: Engine, limits: Limits) -> Frame:
    """Decode a blob; `engine` decodes the dual coder's streams (there are two of them)."""
    reader = Reader(blob)
    header = read_header(reader, limits)
    shape, count = header.fmt.shape, header.levels.count
    if header.coder == "dual":
        index = decode_index(reader, shape, count, engine).astype(np.uint16)
    else:
        start = reader.position
        body = bytes(reader.take(reader.left - 4))
        reader.check_crc(start, "coded frame")
        if header.coder == "raw":
            index = unpack_bits(body, (count - 1).bit_length(), int(np.prod(shape))).reshape(shape)
        else:
            index = decode_standard(header.coder, body, shape)
    if reader.left:
        raise CorruptBitstream(f"{reader.left} bytes after the end")
    try:
        values = header.levels.value(index)
    except CodecError as error:
        raise CorruptBitstream("sample outside the frame's levels") from error
    return Frame(join_words(values, header.unused_bits(values), header.fmt), header.fmt, header.levels)
