"""The learned coder's bytes: weights, context, planes, tiles. Reads and writes them, decodes nothing.

Layout in docs/bitstream.md, part 2, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from codec.color import TRANSFORMS
from codec.dualformat import MAX_ACTIVITY, MAX_SIDE_WORDS, MAX_WORDS
from codec.errors import CorruptBitstream
from codec.wire import Reader, put_crc, put_signed, put_varint

MAX_SETS = 16
INHERITED = 31  # in the place of the number of sets: the predictors are those of the frame before
WAVE_ROWS = 16  # rows that are coded together: tiles are whole ones, or a decoder would work 16 times for nothing
MAX_PRECISION = 4
RATES = (0, *range(7, 15))  # of the head's learning; 0: none
MAX_ADAPTER = 65535
MAX_SPAN = (1 << 17) - 1  # of a colour plane
ADAPTER_NONE, ADAPTER_INLINE, ADAPTER_SHARED = 0, 1, 2
NO_WORDS = np.zeros(0, np.uint32)
Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Preface:
    """What stands between the frame header and the first plane.

    `weights`: first 4 bytes of the weight file's SHA-256. `states`: of each rANS stream of the samples, 1..16.
    `adapter`: its bytes where it travels in the blob; `shared_crc`: CRC-32 of the one that the object holds once.
    `previous_crc`: CRC-32 of the words of the previous frame where it is used. `stacked`: G lies in a group's stack.
    `memory_crc`: CRC-32 of the memory of the frame before (codec.memory) where this one goes on from it.
    """

    weights: bytes
    states: int
    adapter_kind: int = ADAPTER_NONE
    adapter: bytes = b""
    shared_crc: int = 0
    previous_crc: int | None = None
    stacked: bool = False
    memory_crc: int | None = None


@dataclass(frozen=True)
class Tile:
    """One tile as it stands in the blob; `upper`: the words of G, none where there is no G or it is elsewhere."""

    anchor: int
    upper: Words
    words: Words


@dataclass(frozen=True)
class CodedPlane:
    """One plane as it stands in the blob; `low` is added to its samples 0..highest (0 in frames of one plane).

    `k`, `raw`, `tile_rows`: split, raw planes, rows of a tile. `taps`: words of `sets` least-squares predictors, whose
    coefficients are multiples of 2^precision; there are `directions` (1 or 3) for each activity class between
    `thresholds`; sets = INHERITED: those of the frame before. `rate`: one of RATES. A plane of highest 0 has nothing
    but its level.
    """

    low: int
    highest: int
    k: int = 1
    raw: int = 0
    tile_rows: int = 1
    precision: int = 0
    sets: int = 0
    directions: int = 1
    rate: int = 0
    thresholds: tuple[int, ...] = ()
    taps: Words = field(default_factory=lambda: NO_WORDS)
    tiles: tuple[Tile, ...] = ()

    @property
    def top(self) -> int:
        """The highest value of G; 0: there is no G."""
        return self.highest >> self.k


@dataclass(frozen=True)
class CodedFrame:
    """The learned coder's part of a blob; `transform` is None in frames of one plane."""

    preface: Preface
    transform: int | None
    planes: tuple[CodedPlane, ...]

    @property
    def needs_context(self) -> bool:
        """Whether something beside the blob and the weights is needed."""
        preface = self.preface
        earlier = preface.previous_crc is not None or preface.memory_crc is not None
        return preface.stacked or earlier or preface.adapter_kind == ADAPTER_SHARED

    def without_upper(self) -> CodedFrame:
        """The same with G left to a group's stack."""
        planes = tuple(
            replace(plane, tiles=tuple(replace(tile, upper=NO_WORDS) for tile in plane.tiles)) for plane in self.planes
        )
        return CodedFrame(replace(self.preface, stacked=True), self.transform, planes)


def read_learned(reader: Reader, shape: Sequence[int], count: int) -> CodedFrame:
    """Parse and check the learned coder's part of a frame of `shape` with `count` levels, checksums too."""
    start = reader.position
    preface = _read_preface(reader)
    if len(shape) == 2:
        return CodedFrame(preface, None, (_read_plane(reader, start, (0, count - 1), shape[0], preface),))
    transform = reader.byte()
    if transform >= len(TRANSFORMS):
        raise CorruptBitstream("unknown colour transform")
    planes = []
    for _ in range(3):
        low, highest = reader.signed(1 << 17), reader.varint(MAX_SPAN)
        planes.append(_read_plane(reader, start, (low, highest), shape[0], preface))
        start = reader.position
    return CodedFrame(preface, transform, tuple(planes))


def write_learned(frame: CodedFrame) -> bytes:
    """Exact inverse of read_learned."""
    out = _preface_bytes(frame.preface)
    if frame.transform is not None:
        out.append(frame.transform)
    start = 0
    for plane in frame.planes:
        if frame.transform is not None:
            put_signed(out, plane.low)
            put_varint(out, plane.highest)
        _put_plane(out, start, plane, frame.preface.stacked)
        start = len(out)
    return bytes(out)


def _preface_bytes(preface: Preface) -> bytearray:
    out = bytearray(preface.weights)
    flags = (preface.previous_crc is not None) | preface.adapter_kind << 1 | preface.stacked << 3
    out.append(flags | (preface.states.bit_length() - 1) << 4 | (preface.memory_crc is not None) << 7)
    if preface.adapter_kind == ADAPTER_INLINE:
        put_varint(out, len(preface.adapter))
        out += preface.adapter
    elif preface.adapter_kind == ADAPTER_SHARED:
        out += preface.shared_crc.to_bytes(4, "little")
    if preface.previous_crc is not None:
        out += preface.previous_crc.to_bytes(4, "little")
    if preface.memory_crc is not None:
        out += preface.memory_crc.to_bytes(4, "little")
    return out


def _read_preface(reader: Reader) -> Preface:
    """Its checksum is that of the first plane's header."""
    weights = bytes(reader.take(4))
    flags = reader.byte()
    kind, states = flags >> 1 & 3, flags >> 4 & 7
    if kind == 3 or states > 4:
        raise CorruptBitstream("reserved flag of the learned coder")
    adapter, shared_crc, previous_crc, memory_crc = b"", 0, None, None
    if kind == ADAPTER_INLINE:
        adapter = bytes(reader.take(reader.varint(MAX_ADAPTER)))
        if not adapter:
            raise CorruptBitstream("empty adapter")
    elif kind == ADAPTER_SHARED:
        shared_crc = int.from_bytes(reader.take(4), "little")
    if flags & 1:
        previous_crc = int.from_bytes(reader.take(4), "little")
    if flags >> 7:
        memory_crc = int.from_bytes(reader.take(4), "little")
    return Preface(weights, 1 << states, kind, adapter, shared_crc, previous_crc, bool(flags & 8), memory_crc)


def _put_words(out: bytearray, words: Words) -> None:
    put_varint(out, words.size)
    out += words.astype("<u4").tobytes()


def _take_words(reader: Reader, limit: int) -> Words:
    return np.frombuffer(reader.take(4 * reader.varint(limit)), "<u4").astype(np.uint32)


def _put_plane(out: bytearray, start: int, plane: CodedPlane, stacked: bool) -> None:
    """Append one plane; its header's checksum begins at `start` of `out`."""
    if plane.highest == 0:
        put_crc(out, start)
        return
    out.append(plane.k | plane.raw << 5)
    put_varint(out, plane.tile_rows)
    out += bytes((plane.sets | plane.precision << 5, plane.rate | (plane.directions == 3) << 4))
    for gap in np.diff(plane.thresholds, prepend=-1):
        put_varint(out, int(gap) - 1)
    if plane.sets and plane.sets != INHERITED:
        _put_words(out, plane.taps)
    put_crc(out, start)
    for tile in plane.tiles:
        start = len(out)
        put_varint(out, tile.anchor)
        if plane.top and not stacked:
            _put_words(out, tile.upper)
        _put_words(out, tile.words)
        put_crc(out, start)


def _read_plane(reader: Reader, start: int, ends: tuple[int, int], rows: int, preface: Preface) -> CodedPlane:
    """Parse one plane with samples low..low + highest (`ends`); its header's checksum begins at `start`."""
    low, highest = ends
    if highest == 0:
        reader.check_crc(start, "plane header")
        return CodedPlane(low, 0)
    split, tile_rows, layout, learning = reader.byte(), reader.varint(rows), reader.byte(), reader.byte()
    k, raw, sets, precision = split & 31, split >> 5, layout & 31, layout >> 5
    inherits = preface.memory_crc is not None and layout == INHERITED and not learning & 16
    rate, directions = learning & 15, 3 if learning & 16 else 1
    if (
        not 1 <= k <= highest.bit_length()
        or raw > k
        or tile_rows == 0
        or (tile_rows % WAVE_ROWS and tile_rows < rows)
        or precision > MAX_PRECISION
        or rate not in RATES
        or learning >> 5
        or not (inherits or _explained(sets, directions))
    ):
        raise CorruptBitstream("plane parameters out of range")
    thresholds, last = [], -1
    for _ in range(0 if inherits else (sets - 1) // directions - 1):
        last += 1 + reader.varint(MAX_ACTIVITY)
        thresholds.append(last)
    taps = _take_words(reader, MAX_SIDE_WORDS) if sets and not inherits else NO_WORDS
    reader.check_crc(start, "plane header")
    tiles = []
    for _ in range(0, rows, tile_rows):
        start = reader.position
        anchor = reader.varint(highest)
        upper = _take_words(reader, MAX_WORDS) if highest >> k and not preface.stacked else NO_WORDS
        words = _take_words(reader, MAX_WORDS)
        reader.check_crc(start, "tile")
        tiles.append(Tile(anchor, upper, words))
    return CodedPlane(
        low, highest, k, raw, tile_rows, precision, sets, directions, rate, tuple(thresholds), taps, tuple(tiles)
    )


def _explained(sets: int, directions: int) -> bool:
    """Whether there are classes that so many sets of taps are for."""
    return sets <= MAX_SETS and directions <= max(1, sets - 1) and (sets == 0 or (sets - 1) % directions == 0)
