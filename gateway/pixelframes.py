"""Where the frames of pixel data lie in an object's file: read from the header, nothing decoded (PS3.5 8, A.4)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.errors import NotFound, Unsupported
from gateway.part10 import EXPLICIT_BE, ITEM, SEQUENCE_END, Buffer, Element, read_meta, walk
from gateway.transfer_syntaxes import DEFLATED_LE, NATIVE

__all__ = ["FrameMap", "Piece", "map_frames", "split_fragments"]

Piece = tuple[int, int]  # [start, end) in the file

MAX_FRAGMENTS: Final = 1 << 20
MAX_FRAMES: Final = 1 << 20
PIXELS: Final = {0x7FE00010: 0, 0x7FE00008: 32, 0x7FE00009: 64}  # tag -> bits of a sample, 0: as the header says
EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
SUBSAMPLED_422: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
_ROWS, _COLUMNS, _SAMPLES, _BITS, _PHOTOMETRIC, _FRAMES = (
    0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280004, 0x00280008,
)  # fmt: skip


@dataclass(frozen=True)
class FrameMap:
    """frames: per frame its pieces, in order; encapsulated frames have fragments, native ones a single piece."""

    syntax: str
    frames: tuple[tuple[Piece, ...], ...]


def map_frames(data: Buffer) -> FrameMap:
    """The frames of a Part 10 file. Raises InvalidInstance, NotFound ``no-pixels``, Unsupported ``frames``."""
    syntax, offset = read_meta(data)
    if syntax == DEFLATED_LE:
        raise Unsupported("frames", "the frames of a deflated object cannot be told apart")
    elements = {element.tag: element for element in walk(data, syntax, offset)}
    tag = next((tag for tag in PIXELS if tag in elements), None)
    if tag is None:
        raise NotFound("no-pixels", "this instance has no pixel data")
    element = elements[tag]
    count = _frame_count(data, elements)
    if element.undefined:
        table = _extended_offsets(data, elements)
        return FrameMap(syntax, tuple(split_fragments(data, element, count, table)))
    if syntax not in NATIVE:
        raise Unsupported("frames", "the pixel data element contradicts the transfer syntax")
    size = _frame_bytes(data, syntax, elements, PIXELS[tag], count)
    if size * count > element.length:
        raise Unsupported("frames", "fewer pixel bytes than the header declares")
    starts = range(element.value_offset, element.value_offset + size * count, size)
    return FrameMap(syntax, tuple(((start, start + size),) for start in starts))


def split_fragments(
    data: Buffer, element: Element, frames: int, offsets: Sequence[int] = ()
) -> list[tuple[Piece, ...]]:
    """Per frame the pieces of its fragments in the file.

    One fragment a frame, or all for a single frame; else the basic or extended offset table decides.
    Raises Unsupported ``fragments`` when the pieces cannot be told apart.
    """
    table, pieces = _items(data, element)
    if frames == 1:
        groups = [tuple(pieces)]
    elif len(pieces) == frames:
        groups = [(piece,) for piece in pieces]
    else:
        groups = _by_table(offsets or table, pieces, frames)
    if len(groups) != frames or not all(groups):
        raise Unsupported("fragments", "the fragments do not fit the number of frames")
    return groups


def _items(data: Buffer, element: Element) -> tuple[tuple[int, ...], list[Piece]]:
    at, end = element.value_offset, element.end
    found: list[Piece] = []
    while at + 8 <= end and len(found) <= MAX_FRAGMENTS:
        group, number, length = struct.unpack_from("<HHI", data, at)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            break
        if tag != ITEM or at + 8 + length > end:
            raise Unsupported("fragments", "something other than a fragment in the pixel data")
        found.append((at + 8, at + 8 + length))
        at += 8 + length
    if not found or len(found) > MAX_FRAGMENTS:
        raise Unsupported("fragments", "no offset table item, or too many fragments")
    start, stop = found[0]
    if stop - start > 4 * MAX_FRAMES:
        raise Unsupported("fragments", "the offset table is longer than any")
    return struct.unpack_from(f"<{(stop - start) // 4}I", data, start), found[1:]


def _by_table(table: Sequence[int], pieces: list[Piece], frames: int) -> list[tuple[Piece, ...]]:
    """Offsets count from the first fragment's item tag."""
    if len(table) != frames or not pieces:
        raise Unsupported("fragments", "several fragments a frame and no offset table")
    origin = pieces[0][0] - 8
    starts = {piece[0] - 8 - origin: index for index, piece in enumerate(pieces)}
    try:
        cuts = [starts[offset] for offset in table] + [len(pieces)]
    except KeyError as error:
        raise Unsupported("fragments", "the offset table points between fragments") from error
    if cuts[0]:
        raise Unsupported("fragments", "the offset table leaves out the first fragments")
    return [tuple(pieces[low:high]) for low, high in zip(cuts[:-1], cuts[1:], strict=True)]


def _extended_offsets(data: Buffer, elements: dict[int, Element]) -> tuple[int, ...]:
    element = elements.get(EXTENDED_OFFSET_TABLE)
    if element is None or element.length % 8 or element.length > 8 * MAX_FRAMES:
        return ()
    return struct.unpack_from(f"<{element.length // 8}Q", data, element.value_offset)


def _frame_count(data: Buffer, elements: dict[int, Element]) -> int:
    text = _text(data, elements.get(_FRAMES)) or "1"
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and 1 <= int(text) <= MAX_FRAMES):
        raise Unsupported("frames", "Number of Frames is no positive number")
    return int(text)


def _frame_bytes(data: Buffer, syntax: str, elements: dict[int, Element], sample_bits: int, count: int) -> int:
    rows, columns, samples, allocated = (
        _number(data, syntax, elements.get(tag)) for tag in (_ROWS, _COLUMNS, _SAMPLES, _BITS)
    )
    subsampled = _text(data, elements.get(_PHOTOMETRIC)) in SUBSAMPLED_422
    bits = rows * columns * (2 if subsampled else samples) * (sample_bits or allocated)
    if bits == 0 or (bits % 8 and count > 1):
        raise Unsupported("frames", "the frames do not begin at whole bytes, or have no size")
    return -(-bits // 8)


def _text(data: Buffer, element: Element | None) -> str:
    if element is None or element.undefined or element.length > 64:
        return ""
    value = bytes(data[element.value_offset : element.end]).decode("ascii", "replace")
    return value.split("\\")[0].strip("\0 ")


def _number(data: Buffer, syntax: str, element: Element | None) -> int:
    """A US value, 0 where there is none."""
    if element is None or element.length != 2:
        return 0
    return int(struct.unpack_from(">H" if syntax == EXPLICIT_BE else "<H", data, element.value_offset)[0])
