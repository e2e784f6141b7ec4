"""Encode and decode one frame: the shortest of the dual path and the standard codecs, proven by decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import LevelTable, Words, choose_levels, join_words, split_words
from codec.errors import CodecError, CorruptBitstream, UnsupportedFrame
from codec.header import UNUSED_STORED, Header, classify_unused, read_header, write_header
from codec.limits import DEFAULT_LIMITS, Limits
from codec.pixelformat import PixelFormat
from codec.standard import STANDARD, Plane, decode_standard, pack_bits, unpack_bits
from codec.wire import Reader, put_crc

ALL_CODERS: tuple[str, ...] = ("jpegls", "htj2k", "jxl", "raw")
DEFAULT_EFFORT = 7


@dataclass(frozen=True)
class EncodedFrame:
    """A coded frame. `lengths`: bytes of the whole blob per candidate tried; `details`: facts of the dual coder."""

    blob: bytes
    coder: str
    lengths: dict[str, int]
    details: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """A decoded frame: stored words (C order, fmt.dtype, fmt.shape), its format and its level table."""

    words: Words
    fmt: PixelFormat
    levels: LevelTable


def encode_frame(
    words: Words,
    fmt: PixelFormat,
    *,
    levels: LevelTable | None = None,
    coders: Sequence[str] = ALL_CODERS,
    threads: int = 1,
    effort: int = DEFAULT_EFFORT,
) -> EncodedFrame:
    """Code one frame losslessly and keep the shortest candidate that decodes to the same words.

    `levels` may be any superset of the levels used. `effort` is JPEG XL's. Raises UnsupportedFrame on a frame that the
    format cannot hold and CodecError when no candidate reproduces the words.
    """
    if words.size > DEFAULT_LIMITS.max_samples:
        raise UnsupportedFrame(f"{words.size} samples are above the limit of {DEFAULT_LIMITS.max_samples}")
    values, unused = split_words(words, fmt)
    table = choose_levels(values) if levels is None else levels
    kind = classify_unused(values, unused, fmt)
    header = Header(fmt, table, "raw", kind, unused if kind == UNUSED_STORED else None)
    index = table.rank(values)
    candidates: dict[str, bytes] = {}
    for name, blob in _candidates(index, header, coders, effort):
        candidates[name] = blob
    lengths = {name: len(blob) for name, blob in candidates.items()}
    for name in sorted(candidates, key=lambda name: lengths[name]):
        if _proven(candidates[name], words, fmt, threads):
            return EncodedFrame(candidates[name], name, lengths)
    raise CodecError("no candidate reproduces the frame")


def _candidates(
    index: NDArray[np.uint16], header: Header, coders: Sequence[str], effort: int
) -> Iterator[tuple[str, bytes]]:
    """Blobs of the wanted coders; a library codec that refuses the frame's shape is left out."""
    small: Plane = index.astype(np.uint8) if header.levels.count <= 256 else index
    for name in coders:
        if name == "raw":
            body = pack_bits(index, (header.levels.count - 1).bit_length())
        else:
            try:
                body = STANDARD[name].encode(small, effort)
            except (RuntimeError, ValueError):
                continue
        out = bytearray(write_header(replace(header, coder=name)))
        start = len(out)
        out += body
        put_crc(out, start)
        yield name, bytes(out)


def _proven(blob: bytes, words: Words, fmt: PixelFormat, threads: int) -> bool:
    """Whether a blob decodes to exactly these words."""
    try:
        frame = decode_frame(blob, threads=threads)
    except CorruptBitstream:
        return False
    return frame.fmt == fmt and np.array_equal(frame.words, words)


def decode_frame(blob: bytes, *, threads: int = 1, limits: Limits = DEFAULT_LIMITS) -> Frame:
    """Decode a blob of encode_frame. Raises CorruptBitstream on anything wrong, within bounded memory and time."""
    reader = Reader(blob)
    header = read_header(reader, limits)
    index = _decode_index(reader, header)
    try:
        values = header.levels.value(index)
    except CodecError as error:
        raise CorruptBitstream("sample outside the frame's levels") from error
    return Frame(join_words(values, header.unused_bits(values), header.fmt), header.fmt, header.levels)


def _decode_index(reader: Reader, header: Header) -> NDArray[np.uint16]:
    """The level indices out of a standard coder's part."""
    shape = header.fmt.shape
    start = reader.position
    body = bytes(reader.take(reader.left - 4))
    reader.check_crc(start, "coded frame")
    if header.coder == "raw":
        bits = (header.levels.count - 1).bit_length()
        return unpack_bits(body, bits, int(np.prod(shape))).reshape(shape)
    return decode_standard(header.coder, body, shape)
