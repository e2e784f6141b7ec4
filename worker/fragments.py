"""Encapsulated pixel data as one byte string per frame (PS3.5 A.4)."""

from __future__ import annotations

import struct

from gateway.errors import Unsupported
from gateway.part10 import ITEM, SEQUENCE_END
from worker.splice import PIXEL_DATA, ObjectSpans

MAX_FRAGMENTS = 1 << 20
Piece = tuple[int, int]


def split_frames(spans: ObjectSpans, frames: int) -> list[tuple[Piece, ...]]:
    """Per frame the (start, end) of its fragments in the file.

    The basic offset table decides; without one, one fragment a frame, or all for a single frame.
    Raises Unsupported ``fragments`` when the pieces cannot be told apart.
    """
    table, pieces = _items(spans)
    if frames == 1:
        groups = [tuple(pieces)]
    elif len(pieces) == frames:
        groups = [(piece,) for piece in pieces]
    else:
        groups = _by_table(table, pieces, frames)
    if len(groups) != frames or not all(groups):
        raise Unsupported("fragments", "the fragments do not fit the number of frames")
    return groups


def _items(spans: ObjectSpans) -> tuple[tuple[int, ...], list[Piece]]:
    data = spans.dataset.data
    at, end = spans.dataset.elements[PIXEL_DATA].value_offset, spans.pixels.end
    found: list[Piece] = []
    while at + 8 <= end and len(found) <= MAX_FRAGMENTS:
        group, element, length = struct.unpack("<HHI", bytes(data[at : at + 8]))
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            break
        if tag != ITEM or at + 8 + length > end:
            raise Unsupported("fragments", "something other than a fragment in the pixel data")
        found.append((at + 8, at + 8 + length))
        at += 8 + length
    if not found or len(found) > MAX_FRAGMENTS:
        raise Unsupported("fragments", "no offset table item, or too many fragments")
    start, stop = found[0]
    offsets = struct.unpack(f"<{(stop - start) // 4}I", bytes(data[start : start + (stop - start) // 4 * 4]))
    return offsets, found[1:]


def _by_table(table: tuple[int, ...], pieces: list[Piece], frames: int) -> list[tuple[Piece, ...]]:
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
