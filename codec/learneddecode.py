"""From the learned coder's bytes to level indices, with either decoder of its streams. No kernels.

docs/bitstream.md, part 2, sections 1 and 2.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.bitplane import LevelTable
from codec.dualformat import HIGHEST_TAP, RADIUS, Predictors
from codec.errors import CorruptBitstream, MissingContext
from codec.learnedformat import ADAPTER_SHARED, INHERITED, CodedFrame, CodedPlane, Preface, Tile, Words
from codec.memory import Head, Memory, PlaneMemory

if TYPE_CHECKING:
    from codec.network import Network

# the nine samples of the previous frame around the co-located one follow the 35 causal taps, row by row
PREVIOUS_TAPS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
PREVIOUS_RADIUS = np.array([abs(row) + abs(column) for row, column in PREVIOUS_TAPS], np.int64)
Plane = NDArray[np.int32]


def radius_of(previous: bool) -> NDArray[np.int64]:
    """Each tap's distance class 0, 1, 2, the contexts of its coefficient: int64[35], or [44] with a previous frame."""
    return np.concatenate((RADIUS, PREVIOUS_RADIUS)) if previous else RADIUS


@dataclass(frozen=True)
class Context:
    """What a blob may need beside itself.

    `network(weights, adapter, previous)`: the network of a weight file (4 bytes of its SHA-256) under an adapter
    (empty: none), for frames with or without a previous one; raises CorruptBitstream for what it does not have.
    `previous`: sample values (int32, the frame's shape) of the previous frame, `previous_crc` of its words;
    `shared`: an adapter's bytes; `upper`: the planes of G (int32, (rows, columns)), one for each plane that has one;
    `memory`: of the frame before.
    """

    network: Callable[[bytes, bytes, bool], Network]
    previous: Plane | None = None
    previous_crc: int = 0
    shared: bytes | None = None
    upper: Sequence[Plane] | None = None
    memory: Memory | None = None


@dataclass(frozen=True)
class Setting:
    """How the samples of one plane are coded: everything but the samples. `rate`: of the head's learning, 0: none."""

    highest: int
    k: int
    raw: int
    predictors: Predictors
    network: Network
    states: int
    rate: int = 0


@dataclass(frozen=True)
class Job:
    """Everything needed to decode one plane.

    `previous`: the previous frame's plane, edge-replicated by one sample (int32[rows + 2, columns + 2]), or None.
    `upper`: G of the plane where it comes from a group's stack, else None. `heads`: what each tile's last layer begins
    with; (): the network's.
    """

    shape: tuple[int, int]
    setting: Setting
    tile_rows: int
    tiles: tuple[Tile, ...]
    previous: Plane | None
    upper: Plane | None
    heads: tuple[Head, ...] = ()


class Engine(Protocol):
    """A decoder of the learned coder's streams. Both raise CorruptBitstream when a stream does not end as it should."""

    def taps(self, words: Words, sets: int, radius: NDArray[np.int64]) -> Plane:
        """Coefficients, int32[sets, radius.size], before the multiplication by 2^precision."""

    def plane(self, job: Job) -> tuple[Plane, tuple[Head, ...]]:
        """The samples of a plane, int32 of job.shape, and each tile's head after its last step."""


def previous_index(values: Plane, levels: LevelTable) -> Plane:
    """Where a previous frame's values lie among this frame's levels: how many levels are below each, int32."""
    if levels.table is None:
        return np.asarray(np.clip(values - np.int32(levels.minimum), 0, levels.count - 1), np.int32)
    span = int(levels.table[-1]) - levels.minimum
    present = np.zeros(span + 1, np.int32)
    present[levels.table - levels.minimum] = 1
    below: Plane = np.cumsum(present, dtype=np.int32) - present  # of every value from the least to the highest level
    return np.asarray(below[np.clip(values - np.int32(levels.minimum), 0, span)], np.int32)


def previous_planes(values: Plane, levels: LevelTable, transform: int | None) -> list[Plane]:
    """The previous frame's planes under this frame's levels and colour transform."""
    index = previous_index(values, levels)
    return [index] if transform is None else list(color.forward(index.astype(np.uint16), transform))


def framed(plane: Plane, low: int, highest: int) -> Plane:
    """A plane of the previous frame in a plane's range 0..highest, edge-replicated by one sample."""
    return np.asarray(np.pad(np.clip(plane - np.int32(low), 0, highest), 1, mode="edge"), np.int32)


def decode_learned(
    coded: CodedFrame, shape: tuple[int, ...], levels: LevelTable, context: Context, engine: Engine
) -> tuple[Plane, Memory]:
    """Level indices (int32, `shape`, below levels.count), and the frame's memory.

    Raises CorruptBitstream, MissingContext.
    """
    side, preface = (shape[0], shape[1]), coded.preface
    earlier: list[Plane] | None = None
    if preface.previous_crc is not None:
        values = context.previous
        if values is None or values.shape != shape or context.previous_crc != preface.previous_crc:
            raise MissingContext("the frame needs its previous frame")
        earlier = previous_planes(values, levels, coded.transform)
    upper = iter(_stacked(coded, side, context))
    known = _remembered(coded, context)
    network: Network | None = None
    planes, left = list[Plane](), list[PlaneMemory | None]()
    for number, plane in enumerate(coded.planes):
        if plane.highest == 0:
            planes.append(np.full(side, plane.low, np.int32))
            left.append(None)
            continue
        network = _network(preface, context) if network is None else network
        memory = None if known is None else _usable(known.planes[number], plane, network)
        predictors = _predictors(plane, engine, earlier is not None, memory)
        setting = Setting(plane.highest, plane.k, plane.raw, predictors, network, preface.states, plane.rate)
        before = None if earlier is None else framed(earlier[number], plane.low, plane.highest)
        above = next(upper) if preface.stacked and plane.top else None
        begun = () if memory is None else memory.heads
        samples, heads = engine.plane(Job(side, setting, plane.tile_rows, plane.tiles, before, above, begun))
        if int(samples.min()) < 0 or int(samples.max()) > plane.highest:
            raise CorruptBitstream("sample outside the plane's range")
        planes.append(samples + np.int32(plane.low) if plane.low else samples)
        left.append(PlaneMemory(predictors, plane.tile_rows, heads))
    own = Memory(earlier is not None, tuple(left))
    if coded.transform is None:
        return planes[0], own
    index = color.inverse((planes[0], planes[1], planes[2]), coded.transform)
    if int(index.min()) < 0 or int(index.max()) >= levels.count:
        raise CorruptBitstream("sample outside the frame's levels")
    return index, own


def _remembered(coded: CodedFrame, context: Context) -> Memory | None:
    """The memory that the frame goes on from, if it does."""
    memory, crc = context.memory, coded.preface.memory_crc
    if crc is None:
        return None
    if memory is None or memory.crc != crc:
        raise MissingContext("the frame goes on from the frame before it, whose memory was not given")
    if memory.volume != (coded.preface.previous_crc is not None) or len(memory.planes) != len(coded.planes):
        raise CorruptBitstream("the frame before had another network or other planes")
    return memory


def _usable(memory: PlaneMemory | None, plane: CodedPlane, network: Network) -> PlaneMemory:
    """A plane's memory, of the same tiles and as large a head."""
    if memory is None or memory.tile_rows != plane.tile_rows or len(memory.heads) != len(plane.tiles):
        raise CorruptBitstream("the plane of the frame before has other tiles")
    if any(head.shape != network.w3.shape for head in memory.heads):
        raise CorruptBitstream("the head of the frame before has another size")
    return memory


def _network(preface: Preface, context: Context) -> Network:
    """The network that the frame names."""
    adapter = preface.adapter
    if preface.adapter_kind == ADAPTER_SHARED:
        if context.shared is None or zlib.crc32(context.shared) != preface.shared_crc:
            raise MissingContext("the frame needs a shared adapter that was not given")
        adapter = context.shared
    return context.network(preface.weights, adapter, preface.previous_crc is not None)


def _stacked(coded: CodedFrame, shape: tuple[int, int], context: Context) -> list[Plane]:
    """The planes of G out of the group's stack, checked."""
    tops = [plane.top for plane in coded.planes if plane.top]
    if not coded.preface.stacked or not tops:
        return []
    if context.upper is None or len(context.upper) != len(tops):
        raise MissingContext("the frame's global part lies in a group's stack that was not given")
    planes = [np.ascontiguousarray(plane, np.int32) for plane in context.upper]
    for plane, top in zip(planes, tops, strict=True):
        if plane.shape != shape or int(plane.min()) < 0 or int(plane.max()) > top:
            raise MissingContext("the global part belongs to another frame")
    return planes


def _predictors(plane: CodedPlane, engine: Engine, previous: bool, memory: PlaneMemory | None) -> Predictors:
    """The plane's least-squares predictors."""
    if plane.sets == INHERITED and memory is not None:
        return memory.predictors
    radius = radius_of(previous)
    taps = np.zeros((0, radius.size), np.int32)
    if plane.sets:
        wide = engine.taps(plane.taps, plane.sets, radius).astype(np.int64) << plane.precision
        taps = np.clip(wide, -HIGHEST_TAP, HIGHEST_TAP).astype(np.int32)
    return Predictors(np.array(plane.thresholds, np.int64), taps)
