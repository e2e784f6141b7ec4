"""The learned coder's bytes outside the rANS streams: weights, context, planes, tiles. No kernels: two decoders share it.

Layout in docs/bitstream.md, part 2, section 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.bitplane import LevelTable
from codec.dualformat import HIGHEST_TAP, MAX_ACTIVITY, MAX_SIDE_WORDS, MAX_WORDS, RADIUS, Plan, Predictors
from codec.errors import CorruptBitstream, MissingContext
from codec.wire import Reader

if TYPE_CHECKING:
    from codec.net import Network

MAX_SETS = 15
MAX_ADAPTER = 65535
ADAPTER_NONE, ADAPTER_INLINE, ADAPTER_SHARED = 0, 1, 2
# the nine co-located samples of the previous frame follow the 35 causal taps, row by row
PREVIOUS_TAPS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
PREVIOUS_RADIUS = np.array([min(2, abs(row) + abs(column)) for row, column in PREVIOUS_TAPS], np.int64)
Plane = NDArray[np.int32]
Words = NDArray[np.uint32]


def radius_of(previous: bool) -> NDArray[np.int64]:
    """Each tap's distance class 0, 1, 2, the contexts of its coefficient: int64[35], or [44] with a previous frame."""
    return np.concatenate((RADIUS, PREVIOUS_RADIUS)) if previous else RADIUS


@dataclass(frozen=True)
class Context:
    """What a blob may need beside itself.

    `previous`: sample values (int32, the frame's shape) of the previous frame, and `previous_crc` of its words;
    `shared`: an adapter's bytes; `upper`: the planes of G (int32, (rows, columns)), one for each plane that has one.
    `network(weights, adapter, previous)`: the network of a weight file (4 bytes of its SHA-256) under an adapter
    (empty: none), for frames with or without a previous one; raises MissingContext for unknown weights and
    CorruptBitstream for a bad adapter.
    """

    network: Callable[[bytes, bytes, bool], Network]
    previous: Plane | None = None
    previous_crc: int = 0
    shared: bytes | None = None
    upper: Sequence[Plane] | None = None


@dataclass(frozen=True)
class Tile:
    """One tile as it stands in the blob; `upper`: the words of G (empty where there is none)."""

    first: int
    rows: int
    anchor: int
    upper: Words
    words: Words


@dataclass(frozen=True)
class Job:
    """Everything needed to decode one plane.

    `previous`: the previous frame's plane, edge-replicated by one sample (int32[rows + 2, columns + 2]), or None.
    `upper`: G of the plane where it comes from a group's stack, else None.
    """

    shape: tuple[int, int]
    highest: int
    plan: Plan
    network: Network
    states: int
    previous: Plane | None
    upper: Plane | None
    tiles: list[Tile] = field(default_factory=list)


class Engine(Protocol):
    """A decoder of the learned coder's streams. Both raise CorruptBitstream when a stream does not end as it should."""

    def taps(self, words: Words, sets: int, radius: NDArray[np.int64]) -> Plane:
        """Coefficients, int32[sets, radius.size], before the multiplication by 2^precision."""

    def plane(self, job: Job) -> Plane:
        """The samples of a plane, int32 of job.shape."""


@dataclass(frozen=True)
class Preface:
    """What stands between the frame header and the first plane. `adapter`: its bytes where it travels in the blob."""

    weights: bytes
    states: int
    adapter_kind: int = ADAPTER_NONE
    adapter: bytes = b""
    shared_crc: int = 0
    previous_crc: int | None = None
    stacked: bool = False

    def write(self) -> bytearray:
        """Its bytes."""
        out = bytearray(self.weights)
        out.append(
            (self.previous_crc is not None)
            | self.adapter_kind << 1
            | self.stacked << 3
            | (self.states.bit_length() - 1) << 4
        )
        if self.adapter_kind == ADAPTER_INLINE:
            put = len(self.adapter)
            out += put.to_bytes(2, "little") + self.adapter
        elif self.adapter_kind == ADAPTER_SHARED:
            out += self.shared_crc.to_bytes(4, "little")
        if self.previous_crc is not None:
            out += self.previous_crc.to_bytes(4, "little")
        return out

    @staticmethod
    def read(reader: Reader) -> Preface:
        """Parse one; its checksum is that of the first plane's header."""
        weights = bytes(reader.take(4))
        flags = reader.byte()
        kind, states = flags >> 1 & 3, flags >> 4 & 7
        if flags >> 7 or kind == 3 or states > 4:
            raise CorruptBitstream("reserved flag of the learned coder")
        adapter, shared_crc, previous_crc = b"", 0, None
        if kind == ADAPTER_INLINE:
            adapter = bytes(reader.take(int.from_bytes(reader.take(2), "little")))
            if not adapter:
                raise CorruptBitstream("empty adapter")
        elif kind == ADAPTER_SHARED:
            shared_crc = int.from_bytes(reader.take(4), "little")
        if flags & 1:
            previous_crc = int.from_bytes(reader.take(4), "little")
        return Preface(weights, 1 << states, kind, adapter, shared_crc, previous_crc, bool(flags & 8))


def previous_index(values: Plane, levels: LevelTable) -> Plane:
    """Where a previous frame's values lie among this frame's levels: how many levels are below each, int32."""
    if levels.table is None:
        place = values - np.int32(levels.minimum)
    else:
        place = np.searchsorted(levels.table, values).astype(np.int32)
    return np.clip(place, 0, levels.count - 1).astype(np.int32)


def previous_plane(plane: Plane, low: int, highest: int) -> Plane:
    """A plane of the previous frame in this plane's range 0..highest, edge-replicated by one sample."""
    return np.pad(np.clip(plane - np.int32(low), 0, highest), 1, mode="edge").astype(np.int32)


class _Planes:
    """Reads the planes of one frame: resolves the network, previous planes and G only once their names are checked."""

    def __init__(self, reader: Reader, preface: Preface, levels: LevelTable, context: Context, engine: Engine) -> None:
        self.reader, self.preface, self.levels, self.context, self.engine = reader, preface, levels, context, engine
        self.network: Network | None = None
        self.stacked = 0

    def resolve(self) -> Network:
        """The frame's network, after its checksum has been checked."""
        if self.network is None:
            adapter = self.preface.adapter
            if self.preface.adapter_kind == ADAPTER_SHARED:
                if self.context.shared is None or zlib.crc32(self.context.shared) != self.preface.shared_crc:
                    raise MissingContext("the frame needs a shared adapter that was not given")
                adapter = self.context.shared
            self.network = self.context.network(
                self.preface.weights, adapter, self.preface.previous_crc is not None
            )
        return self.network

    def previous(self, shape: tuple[int, ...], kind: int | None) -> list[Plane] | None:
        """The planes of the previous frame before their shift by `low`, or None when it is not used."""
        if self.preface.previous_crc is None:
            return None
        values = self.context.previous
        if values is None or values.shape != shape or self.context.previous_crc != self.preface.previous_crc:
            raise MissingContext("the frame needs its previous frame")
        index = previous_index(values, self.levels)
        return [index] if kind is None else list(color.forward(index.astype(np.uint16), kind))

    def plane(self, start: int, low: int, highest: int, shape: tuple[int, int], before: Callable[[], Plane | None]
              ) -> Plane:  # fmt: skip
        """One plane (int32, 0..highest); its header's checksum begins at `start`."""
        if highest == 0:
            self.reader.check_crc(start, "plane header")
            return np.zeros(shape, np.int32)
        radius = radius_of(self.preface.previous_crc is not None)
        plan = read_plan(self.reader, start, shape[0], highest, self.engine, radius)
        earlier = before()
        upper, top = None, highest >> plan.k
        if top and self.preface.stacked:
            upper = self._stacked(shape, top)
        job = Job(
            shape, highest, plan, self.resolve(), self.preface.states,
            None if earlier is None else previous_plane(earlier, low, highest), upper,
        )  # fmt: skip
        self._tiles(job, coded=top > 0 and upper is None)
        plane = self.engine.plane(job)
        if int(plane.min()) < 0 or int(plane.max()) > highest:
            raise CorruptBitstream("sample outside the plane's range")
        return plane

    def _stacked(self, shape: tuple[int, int], top: int) -> Plane:
        """The next plane of G out of the group's stack."""
        planes = self.context.upper
        if planes is None or self.stacked >= len(planes):
            raise MissingContext("the frame's global part lies in a group's stack that was not given")
        upper = np.ascontiguousarray(planes[self.stacked], np.int32)
        self.stacked += 1
        if upper.shape != shape or int(upper.min()) < 0 or int(upper.max()) > top:
            raise MissingContext("the global part belongs to another frame")
        return upper

    def _tiles(self, job: Job, *, coded: bool) -> None:
        """Read the tiles of a plane; `coded`: each holds words of G."""
        reader, rows = self.reader, job.plan.tile_rows
        for first in range(0, job.shape[0], rows):
            start = reader.position
            anchor = reader.varint(job.highest)
            upper = _read_words(reader) if coded else np.zeros(0, np.uint32)
            words = _read_words(reader)
            reader.check_crc(start, "tile")
            job.tiles.append(Tile(first, min(rows, job.shape[0] - first), anchor, upper, words))


def decode_index(
    reader: Reader, shape: tuple[int, ...], levels: LevelTable, context: Context, engine: Engine
) -> Plane:
    """Level indices (int32, `shape`, below levels.count) from the learned coder's part."""
    start = reader.position
    preface = Preface.read(reader)
    planes = _Planes(reader, preface, levels, context, engine)
    side = (shape[0], shape[1])
    if len(shape) == 2:
        return planes.plane(start, 0, levels.count - 1, side, lambda: _first(planes.previous(shape, None)))
    kind = reader.byte()
    if kind >= len(color.TRANSFORMS):
        raise CorruptBitstream("unknown colour transform")
    out: list[Plane] = []
    earlier: list[Plane] | None = None
    for number in range(3):
        low, span = reader.signed(1 << 17), reader.varint((1 << 17) - 1)

        def before(number: int = number) -> Plane | None:
            nonlocal earlier
            earlier = planes.previous(shape, kind) if earlier is None else earlier
            return None if earlier is None else earlier[number]

        out.append(planes.plane(start, low, span, side, before) + np.int32(low))
        start = reader.position
    index = color.inverse((out[0], out[1], out[2]), kind)
    if int(index.min()) < 0 or int(index.max()) >= levels.count:
        raise CorruptBitstream("sample outside the frame's levels")
    return index


def _first(planes: list[Plane] | None) -> Plane | None:
    return None if planes is None else planes[0]


def _read_words(reader: Reader) -> Words:
    """A counted sequence of 32-bit words."""
    return np.frombuffer(reader.take(4 * reader.varint(MAX_WORDS)), "<u4").astype(np.uint32)


def read_plan(
    reader: Reader, start: int, rows: int, highest: int, engine: Engine, radius: NDArray[np.int64]
) -> Plan:
    """A plane's parameters, checked against their CRC before they are used."""
    split, tile_rows, layout = reader.byte(), reader.varint(rows), reader.byte()
    k, raw, sets, precision = split & 31, split >> 5, layout & 15, layout >> 4
    if not 1 <= k <= highest.bit_length() or raw > k or tile_rows == 0 or precision > 4:
        raise CorruptBitstream("plane parameters out of range")
    thresholds, last = [], -1
    for _ in range(max(0, sets - 2)):
        last += 1 + reader.varint(MAX_ACTIVITY)
        thresholds.append(last)
    words = np.zeros(0, np.uint32)
    if sets:
        words = np.frombuffer(reader.take(4 * reader.varint(MAX_SIDE_WORDS)), "<u4").astype(np.uint32)
    reader.check_crc(start, "plane header")
    taps = np.zeros((0, radius.size), np.int32)
    if sets:
        wide = engine.taps(words, sets, radius).astype(np.int64) << precision
        taps = np.clip(wide, -HIGHEST_TAP, HIGHEST_TAP).astype(np.int32)
    return Plan(k, raw, tile_rows, precision, Predictors(np.array(thresholds, np.int64), taps))
