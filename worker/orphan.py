"""Pixels and sealed parts of files whose header is damaged, stripped, foreign or gone altogether.

Nothing here needs a key or believes anything: what is found is offered in order of likelihood, and whoever has the keys
finds out what it is. Bounded: a file gives at most a few dozen readings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from codec.bitplane import Words, split_words
from codec.errors import UnsupportedFrame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, InvalidInstance, Unsupported
from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE
from worker import container as box
from worker.attributes import DataSet, read_tolerant
from worker.pixelrules import clean_unused_bits
from worker.pixels import MAX_NATIVE_BYTES, Layout, PixelSource, frame_bytes, open_pixels, words_from_bytes
from worker.splice import ObjectSpans, read_object

#: bits stored of 16 allocated, the frequent ones first
DEPTHS: Final = (16, 12, 10, 14, 11, 13, 15, 9, 8)
MAX_CONTAINERS: Final = 64
_PIXELS: Final = (b"\xe0\x7f\x10\x00OW\x00\x00", b"\xe0\x7f\x10\x00OB\x00\x00", b"\xe0\x7f\x10\x00")
_WORD_TAGS: Final = {
    "rows": 0x0010, "columns": 0x0011, "allocated": 0x0100, "stored": 0x0101, "representation": 0x0103,
    "padding": 0x0120, "limit": 0x0121,
}  # fmt: skip
_UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Shape:
    """What somebody knows of the pixels from elsewhere; None: look in the file, or try. Grey images only."""

    rows: int | None = None
    columns: int | None = None
    frames: int | None = None
    allocated: int | None = None
    stored: int | None = None
    signed: bool | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a file's pixels. paddings: sets of padding values to try."""

    source: PixelSource
    paddings: tuple[tuple[int, ...], ...]


def readings(data: bytes, shape: Shape) -> Iterator[Reading]:
    """Ways to read the pixels, the likeliest first: by the header, by what is left of it, as raw samples.

    Empty when not even a shape is known.
    """
    given = any(getattr(shape, name) is not None for name in Shape.__slots__)
    if not given:
        for whole in _with_meta(data):
            try:
                source = open_pixels(read_object(whole))
            except (InvalidInstance, Unsupported):
                continue
            yield Reading(source, stated_padding(whole, source.fmt))
    found = _scan(data)
    yield from _raw_readings(data, _completed(shape, found), found)


def stated_padding(data: bytes, fmt: PixelFormat) -> tuple[tuple[int, ...], ...]:
    """Sets of padding values to try: what attributes in these bytes say (PS3.3 C.7.5.1.1.2), and none."""
    return _paddings(_scan(data), fmt)


def containers(data: bytes) -> Iterator[memoryview]:
    """Every whole container of ours in the bytes, wherever it lies: its own digest says where it ends."""
    view, at = memoryview(data), data.find(box.MAGIC)
    for _ in range(MAX_CONTAINERS):
        if at < 0:
            return
        try:
            box.parse(view[at:])
            yield view[at:]
        except IntegrityError:
            pass  # four bytes that only look like one, or one that is damaged
        at = data.find(box.MAGIC, at + 1)


# --- a header, or most of one ---


def _with_meta(data: bytes) -> Iterator[bytes]:
    """The file, and the file with preamble and file meta information put in front, in case those were cut off."""
    yield data
    if data[128:132] != b"DICM":
        for syntax in (EXPLICIT_LE, IMPLICIT_LE):
            uid = syntax.encode("ascii") + b"\x00" * (len(syntax) & 1)
            yield bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid + data


def tolerant_header(data: bytes) -> DataSet | None:
    """As much of the header as can be read, None without any."""
    headers = (read_tolerant(whole) for whole in _with_meta(data))
    return max((header for header in headers if header), key=lambda header: len(header.elements), default=None)


def _scan(data: bytes) -> Mapping[str, int]:
    """Values of the attributes that describe pixels, found by their bytes anywhere before the pixels."""
    end = min((at for tag in _PIXELS if (at := data.find(tag)) >= 0), default=len(data))
    found = {}
    for name, element in _WORD_TAGS.items():
        for vr in (b"US\x02\x00", b"SS\x02\x00", b"\x02\x00\x00\x00"):
            head = struct.pack("<HH", 0x0028, element) + vr
            at = data.find(head, 0, end)
            if 0 <= at <= len(data) - len(head) - 2:
                found[name] = struct.unpack_from("<H", data, at + len(head))[0]
                break
    return found


def _completed(shape: Shape, found: Mapping[str, int]) -> Shape:
    """What was given, and for the rest what stands in the file. Depth and sign in a file are only a first guess."""
    rows, columns = shape.rows or found.get("rows"), shape.columns or found.get("columns")
    return replace(shape, rows=rows, columns=columns, allocated=shape.allocated or found.get("allocated"))


def _paddings(found: Mapping[str, int], fmt: PixelFormat) -> tuple[tuple[int, ...], ...]:
    if "padding" not in found:
        return ((),)
    ends = [found["padding"], found.get("limit", found["padding"])]
    if fmt.signed:
        ends = [value - 0x10000 if value & 0x8000 else value for value in ends]
    half = 1 << (fmt.bits_stored - 1)
    low, high = (-half, half - 1) if fmt.signed else (0, 2 * half - 1)
    stated = tuple(range(max(low, min(ends)), min(high, max(ends)) + 1))
    return (stated, ()) if stated else ((),)


# --- raw samples ---


def _raw_readings(data: bytes, shape: Shape, found: Mapping[str, int]) -> Iterator[Reading]:
    if shape.rows is None or shape.columns is None:
        return
    depths = (shape.allocated,) if shape.allocated else (16, 8)
    for allocated, start in product(depths, (None, "tail", "head")):
        try:
            largest = PixelFormat(shape.rows, shape.columns, 1, allocated, allocated, allocated - 1, False)
        except UnsupportedFrame:
            continue
        pixels, frames = _pixel_bytes(data, largest, shape.frames, start)
        if pixels is None:
            continue
        for fmt in _formats(pixels, largest, shape, found):
            yield Reading(_raw_source(pixels, fmt, frames), _paddings(found, fmt))


def _pixel_bytes(data: bytes, fmt: PixelFormat, wanted: int | None, start: str | None) -> tuple[memoryview | None, int]:
    """(bytes, frames): behind a pixel data element's head (start None), else the end or the beginning of the file."""
    step, view = frame_bytes(fmt), memoryview(data)
    if start is None:
        for head in _PIXELS:
            at = data.find(head) + len(head)
            if at < len(head) or at + 4 > len(data):
                continue
            length = struct.unpack_from("<I", data, at)[0]
            frames = wanted or max(1, length // step)
            if length != _UNDEFINED and step * frames <= min(length, len(data) - at - 4, MAX_NATIVE_BYTES):
                return view[at + 4 : at + 4 + step * frames], frames
        return None, 0
    frames = wanted or 1
    size = step * frames
    if size > min(len(data), MAX_NATIVE_BYTES) or any(head in data for head in _PIXELS[:2]):
        return None, 0
    padded = len(data) - size == 1 and size & 1
    return (view[:size] if start == "head" or padded else view[len(data) - size :]), frames


def _formats(pixels: memoryview, largest: PixelFormat, shape: Shape, found: Mapping[str, int]) -> Iterator[PixelFormat]:
    """Depths and signs that the first frame's words agree with: those given, or all, those stated in the file first."""
    first = words_from_bytes(bytes(pixels[: frame_bytes(largest)]), largest, _layout(largest))
    known = tuple(depth for depth in DEPTHS if depth <= largest.bits_allocated)
    depths = (shape.stored,) if shape.stored else sorted(known, key=lambda depth: depth != found.get("stored"))
    stated = found.get("representation") == 1
    signs = (stated, not stated) if shape.signed is None else (shape.signed,)
    for stored, signed in product(depths, signs):
        try:
            fmt = PixelFormat(*_sides(largest), 1, largest.bits_allocated, stored, stored - 1, signed)
            clean_unused_bits(*split_words(first, fmt), fmt)
        except (UnsupportedFrame, Unsupported):
            continue
        yield fmt


def _raw_source(pixels: memoryview, fmt: PixelFormat, frames: int) -> PixelSource:
    step, layout = frame_bytes(fmt), _layout(fmt)

    def frame(index: int) -> Words:
        return words_from_bytes(bytes(pixels[index * step : (index + 1) * step]), fmt, layout)

    nothing = ObjectSpans(DataSet(b"", EXPLICIT_LE, 0, False, {}, frozenset()), (), False)
    return PixelSource(nothing, fmt, frames, layout, (), "", False, frame)


def _layout(fmt: PixelFormat) -> Layout:
    return Layout(fmt.bits_allocated // 8, False, False, False)


def _sides(fmt: PixelFormat) -> tuple[int, int]:
    return fmt.rows, fmt.columns
