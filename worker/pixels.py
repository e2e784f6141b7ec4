"""The frames of an object as stored words, and back to the pixel bytes of its file.

Words are what the file holds, unused bits and all: uint8 or uint16, (rows, columns) or (rows, columns, 3), C order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from codec.bitplane import Words
from codec.errors import UnsupportedFrame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, Unsupported
from gateway.pixelframes import split_fragments
from worker.decoders import as_words, decode_twice, find_pair
from worker.splice import (
    EXTENDED_OFFSETS,
    PIXEL_DATA,
    ObjectSpans,
    Step,
    cut_native,
    plan_decompressed,
    plan_native,
)

MAX_NATIVE_BYTES = 1 << 30  # of decoded pixels; a bound on memory, and on what a small compressed file may expand to
CACHE_BYTES = 1 << 26  # decoded frames of compressed input kept between the digest pass and the coding pass
SUBSAMPLED = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"})
CODESTREAM_COLOURS = frozenset({"YBR_RCT", "YBR_ICT"})
_LAYOUT = struct.Struct("<BBBBB")


@dataclass(frozen=True)
class Layout:
    """How words lie in the file. word_bytes 1 or 2; `big`: most significant byte first; `planar`: colour by plane.

    `swapped`: 8-bit samples in big-endian 16-bit words (OW, PS3.5 7.3): byte pairs are exchanged, and `pad` is the
    last byte of an odd pixel count, which then stands before the last sample.
    """

    word_bytes: int
    big: bool
    planar: bool
    swapped: bool
    pad: bytes = b""

    def pack(self) -> bytes:
        """Five bytes: word size, big, planar, swapped, pad length; then the pad."""
        return _LAYOUT.pack(self.word_bytes, self.big, self.planar, self.swapped, len(self.pad)) + self.pad

    @classmethod
    def unpack(cls, data: bytes) -> tuple[Layout, int]:
        """Inverse of `pack`: (layout, bytes consumed). Raises IntegrityError ``layout``."""
        if len(data) < _LAYOUT.size:
            raise IntegrityError("layout", "the pixel layout is cut off")
        word_bytes, big, planar, swapped, pad = _LAYOUT.unpack_from(data)
        end = _LAYOUT.size + pad
        if word_bytes not in (1, 2) or max(big, planar, swapped, pad) > 1 or len(data) < end:
            raise IntegrityError("layout", "the pixel layout is broken")
        return cls(word_bytes, bool(big), bool(planar), bool(swapped), data[_LAYOUT.size : end]), end


@dataclass(frozen=True)
class PixelSource:
    """Everything the coder and the splicer need: `frame(i)` gives the words of frame i, `steps` the splice plan."""

    spans: ObjectSpans
    fmt: PixelFormat
    frames: int
    layout: Layout
    steps: tuple[Step, ...]
    photometric: str
    lossy_origin: bool
    frame: Callable[[int], Words]

    def __iter__(self) -> Iterator[Words]:
        return (self.frame(index) for index in range(self.frames))

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all frames without padding."""
        return frame_bytes(self.fmt) * self.frames


def frame_bytes(fmt: PixelFormat) -> int:
    """Bytes of one native frame."""
    return fmt.rows * fmt.columns * fmt.samples * fmt.bits_allocated // 8


def pixel_digest(frames: Iterable[Words]) -> bytes:
    """SHA-256 of all words, little endian, colour by pixel, frame after frame."""
    digest = sha256()
    for words in frames:
        digest.update(little_endian(words))
    return digest.digest()


def little_endian(words: Words) -> bytes:
    """The words of a frame as pixel digests take them: little endian, colour by pixel."""
    return np.ascontiguousarray(words, dtype=f"<u{words.dtype.itemsize}").tobytes()


def open_pixels(spans: ObjectSpans, *, viewing: bool = False) -> PixelSource:
    """Check the header against the bytes and give access to the frames. Raises Unsupported with a reason.

    `viewing`: the frames are shown, or written with a header that fits them: see `find_pair`; colours of YBR_RCT come
    as RGB then.
    """
    if spans.encapsulated:
        pair = find_pair(spans.dataset.syntax, viewing=viewing)
        fmt, frames, photometric = _describe(spans)
        if not viewing and (photometric in CODESTREAM_COLOURS or EXTENDED_OFFSETS & set(spans.dataset.elements)):
            raise Unsupported("attribute-change", "native pixels would need other attributes than the compressed ones")
        return _open_encapsulated(spans, fmt, frames, photometric, lambda data: decode_twice(data, pair, fmt))
    return _open_native(spans, *_describe(spans))


def _describe(spans: ObjectSpans) -> tuple[PixelFormat, int, str]:
    """Image Pixel module (PS3.3 C.7.6.3), every number checked before it is used."""
    header = spans.dataset
    names = (0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
    found = [header.number(tag) for tag in names]
    rows, columns, samples, allocated, stored, high, sign = (-1 if value is None else value for value in found)
    if -1 in (rows, columns, samples, allocated):
        raise Unsupported("header", "an attribute that describes the pixels is missing")
    photometric = header.ascii(0x00280004)
    frames = header.integer_string(0x00280008, 1)
    if allocated not in (8, 16):
        raise Unsupported("bits-allocated", "only 8 and 16 bits allocated are coded")
    if samples not in (1, 3):
        raise Unsupported("samples", "only 1 and 3 samples per pixel are coded")
    if photometric in SUBSAMPLED:
        raise Unsupported("subsampled", "colour is subsampled")
    stored = allocated if stored < 0 else stored
    try:
        fmt = PixelFormat(rows, columns, samples, allocated, stored, stored - 1 if high < 0 else high, sign == 1)
    except UnsupportedFrame as error:
        raise Unsupported("pixel-format", str(error)) from error
    if frame_bytes(fmt) * frames > MAX_NATIVE_BYTES:
        raise Unsupported("too-large", "more pixel bytes than this gateway codes at once")
    return fmt, frames, photometric


def _lossy_origin(spans: ObjectSpans) -> bool:
    return spans.dataset.ascii(0x00282110) == "01"


def _planar(spans: ObjectSpans, fmt: PixelFormat) -> bool:
    planar = spans.dataset.number(0x00280006) if fmt.samples == 3 else 0
    if planar not in (0, 1):
        raise Unsupported("header", "the planar configuration is missing or unknown")
    return planar == 1


def _open_native(spans: ObjectSpans, fmt: PixelFormat, frames: int, photometric: str) -> PixelSource:
    header, element = spans.dataset, spans.dataset.elements[PIXEL_DATA]
    size, step = frame_bytes(fmt) * frames, frame_bytes(fmt)
    if element.length < size:
        raise Unsupported("pixel-length", "fewer pixel bytes than the header declares")
    swapped = header.big and element.vr == "OW" and fmt.bits_allocated == 8
    start, taken = element.value_offset, size + (size & 1 if swapped else 0)
    if element.length < taken:
        raise Unsupported("pixel-length", "odd pixel data without padding")
    data = header.data
    source, base = data, start
    pad = b""
    if swapped:
        source, base = swap_pairs(bytes(data[start : start + taken])), 0
        pad = bytes(source[size:taken])
    layout = Layout(fmt.bits_allocated // 8, header.big, _planar(spans, fmt), swapped, pad)
    cut = cut_native(spans, taken)

    def frame(index: int) -> Words:
        return words_from_bytes(bytes(source[base + index * step : base + (index + 1) * step]), fmt, layout)

    return PixelSource(cut, fmt, frames, layout, plan_native(cut), photometric, _lossy_origin(spans), frame)


def _open_encapsulated(
    spans: ObjectSpans, fmt: PixelFormat, frames: int, photometric: str, decode: Callable[[bytes], Words]
) -> PixelSource:
    header = spans.dataset
    pieces = split_fragments(header.data, header.elements[PIXEL_DATA], frames)
    layout = Layout(fmt.bits_allocated // 8, False, _planar(spans, fmt), False)
    steps = plan_decompressed(spans, frame_bytes(fmt) * frames, layout.word_bytes)
    keep = frame_bytes(fmt) * frames <= CACHE_BYTES
    cache: dict[int, Words] = {}

    def frame(index: int) -> Words:
        if index in cache:
            return cache[index]
        words = decode(b"".join(bytes(header.data[start:end]) for start, end in pieces[index]))
        if keep:
            cache[index] = words
        return words

    return PixelSource(spans, fmt, frames, layout, steps, photometric, _lossy_origin(spans), frame)


# --- file bytes <-> words, mirrored ---


def swap_pairs(data: bytes | bytearray) -> bytes:
    """Exchange the bytes of each 16-bit word; an involution. `data` has even length."""
    return np.frombuffer(data, dtype="<u2").byteswap().tobytes()


def words_from_bytes(data: bytes, fmt: PixelFormat, layout: Layout) -> Words:
    """One native frame to words."""
    stored = np.frombuffer(data, dtype=f"{'>' if layout.big else '<'}u{layout.word_bytes}")
    if fmt.samples == 3 and layout.planar:
        stored = stored.reshape(fmt.samples, fmt.rows, fmt.columns).transpose(1, 2, 0)
    return as_words(stored.reshape(fmt.shape), fmt)


def bytes_from_words(words: Words, fmt: PixelFormat, layout: Layout) -> bytes:
    """Words to one native frame."""
    if fmt.samples == 3 and layout.planar:
        words = words.transpose(2, 0, 1)
    return np.ascontiguousarray(words, dtype=f"{'>' if layout.big else '<'}u{layout.word_bytes}").tobytes()


def pixel_stream(frames: Iterable[Words], fmt: PixelFormat, layout: Layout) -> bytearray:
    """All frames as the file's pixel bytes, padding of swapped data included."""
    out = bytearray()
    for piece in pixel_pieces(frames, fmt, layout):
        out += piece
    return out


def pixel_pieces(frames: Iterable[Words], fmt: PixelFormat, layout: Layout) -> Iterator[bytes]:
    """The same, frame after frame."""
    if not layout.swapped:
        yield from (bytes_from_words(words, fmt, layout) for words in frames)
        return
    left = b""
    for words in frames:
        piece = left + bytes_from_words(words, fmt, layout)
        even = len(piece) & ~1
        left = piece[even:]
        yield swap_pairs(piece[:even])
    if (len(left) + len(layout.pad)) & 1:
        raise IntegrityError("layout", "swapped pixels are no whole words")
    yield swap_pairs(left + layout.pad)
