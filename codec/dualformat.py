"""The dual coder's bytes outside the rANS streams: planes, their parameters, tiles. No kernels: two decoders share it.

Layout in docs/bitstream.md, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.errors import CorruptBitstream
from codec.tables import TAPS
from codec.wire import Reader

MAX_SETS = 12
MAX_WORDS = 1 << 28
MAX_SIDE_WORDS = 1 << 12
MAX_ACTIVITY = 5 << 17
HIGHEST_TAP = 32767
Words = NDArray[np.uint32]
# each tap's distance class 0, 1, 2: the contexts of its coefficient
RADIUS = np.array([min(2, max(-row, abs(column)) - 1) for row, column in TAPS], np.int64)


@dataclass(frozen=True)
class Predictors:
    """Least-squares predictors: activity thresholds (int64, increasing) and taps int32[0, 1 or classes + 1, 35]."""

    thresholds: NDArray[np.int64]
    taps: NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """How a plane is coded: split k, raw planes, rows per tile; taps are multiples of 2^precision."""

    k: int
    raw: int
    tile_rows: int
    precision: int
    predictors: Predictors


@dataclass(frozen=True)
class TileJob:
    """Everything needed to decode the tiles of one plane; `tiles`: (first row, rows, anchor, words) of each."""

    shape: tuple[int, int]
    highest: int
    plan: Plan
    tiles: list[tuple[int, int, int, Words]] = field(default_factory=list)


class Engine(Protocol):
    """A decoder of rANS streams. Both methods raise CorruptBitstream when a stream does not end where it should."""

    def taps(self, words: Words, sets: int) -> NDArray[np.int32]:
        """Coefficients, int32[sets, 35], before the multiplication by 2^precision."""

    def tiles(self, job: TileJob) -> NDArray[np.int32]:
        """The samples of a plane, int32 of job.shape."""


def decode_index(reader: Reader, shape: tuple[int, ...], count: int, engine: Engine) -> NDArray[np.int32]:
    """Level indices (int32, `shape`, below `count`) from the dual coder's part."""
    start = reader.position
    if len(shape) == 2:
        return _decode_plane(reader, start, (shape[0], shape[1]), count - 1, engine)
    kind = reader.byte()
    if kind >= len(color.TRANSFORMS):
        raise CorruptBitstream("unknown colour transform")
    planes = []
    for _ in range(3):
        low, span = reader.signed(1 << 17), reader.varint((1 << 17) - 1)
        planes.append(_decode_plane(reader, start, (shape[0], shape[1]), span, engine) + np.int32(low))
        start = reader.position
    index = color.inverse((planes[0], planes[1], planes[2]), kind)
    if int(index.min()) < 0 or int(index.max()) >= count:
        raise CorruptBitstream("sample outside the frame's levels")
    return index


def _decode_plane(
    reader: Reader, start: int, shape: tuple[int, int], highest: int, engine: Engine
) -> NDArray[np.int32]:
    """One plane (int32, `shape`, 0..highest); its header's checksum begins at `start`."""
    if highest == 0:
        reader.check_crc(start, "plane header")
        return np.zeros(shape, np.int32)
    job = TileJob(shape, highest, _read_plan(reader, start, shape[0], highest, engine))
    for first in range(0, shape[0], job.plan.tile_rows):
        start = reader.position
        anchor, size = reader.varint(highest), reader.varint(MAX_WORDS)
        words = np.frombuffer(reader.take(4 * size), "<u4").astype(np.uint32)
        reader.check_crc(start, "tile")
        job.tiles.append((first, min(job.plan.tile_rows, shape[0] - first), anchor, words))
    plane = engine.tiles(job)
    if int(plane.max()) > highest:
        raise CorruptBitstream("sample outside the plane's range")
    return plane


def _read_plan(reader: Reader, start: int, rows: int, highest: int, engine: Engine) -> Plan:
    """A plane's parameters, checked against their CRC before they are used."""
    split, tile_rows, layout = reader.byte(), reader.varint(rows), reader.byte()
    k, raw, sets, precision = split & 31, split >> 5, layout & 15, layout >> 4
    if not 1 <= k <= highest.bit_length() or raw > k or tile_rows == 0 or sets > MAX_SETS or precision > 4:
        raise CorruptBitstream("plane parameters out of range")
    thresholds, last = [], -1
    for _ in range(max(0, sets - 2)):
        last += 1 + reader.varint(MAX_ACTIVITY)
        thresholds.append(last)
    words = np.zeros(0, np.uint32)
    if sets:
        words = np.frombuffer(reader.take(4 * reader.varint(MAX_SIDE_WORDS)), "<u4").astype(np.uint32)
    reader.check_crc(start, "plane header")
    taps = np.zeros((0, len(TAPS)), np.int32)
    if sets:
        taps = engine.taps(words, sets)
        taps = np.clip(taps.astype(np.int64) << precision, -HIGHEST_TAP, HIGHEST_TAP).astype(np.int32)
    return Plan(k, raw, tile_rows, precision, Predictors(np.array(thresholds, np.int64), taps))
