"""Tiles of the learned local path: encode, decode, what they cost, and what training needs of them.

docs/bitstream.md, part 2, section 4. Every function releases the GIL for nearly all of its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.lanes import LANES
from codec.waverans import DECODE, ENCODE, FAILED, SYMBOL, WORD, flush, open_stream
from codec.wavetables import (
    AROUND_FIRST,
    AROUND_STEPS,
    AROUND_STRIDE,
    GAP,
    MOST_HIDDEN,
    MOST_INPUTS,
    MOST_SETS,
    SHORTEST,
    SKEW,
    outer,
)
from codec.wavetile import COUNT, FACTS, FEATURES, GAINS, RAW_CHOICES, SURVEY, Law, fresh_room, run_tile

if TYPE_CHECKING:
    from codec.learneddecode import Setting

Plane = NDArray[np.int32]
Words = NDArray[np.uint32]
NO_WORDS = np.empty(0, np.uint32)
NO_PLANE = np.empty(0, np.int32)
NO_STREAM = (NO_PLANE, NO_PLANE, np.empty(0, np.uint8))
IO_FIELDS = 5


def geometry(rows: int, columns: int) -> tuple[int, int, int, int]:
    """(rows, columns, steps from a lane's row to its next, steps of the whole tile)."""
    period = max(columns + GAP, SHORTEST)
    last = rows - 1
    return rows, columns, period, last // LANES * period + SKEW * (last % LANES) + columns


@outer
def skew(plane: Any, period: Any, steps: Any) -> Any:
    """A plane int32[rows, columns] in the wavefront's order: int32[steps * 16], 0 where no lane has a sample."""
    rows, columns = plane.shape
    out = np.zeros(steps * LANES, np.int32)
    for row in range(rows):
        lane = row % LANES
        place = ((row // LANES) * period + SKEW * lane) * LANES + lane
        for column in range(columns):
            out[place + column * LANES] = plane[row, column]
    return out


@outer
def straighten(levels: Any, out: Any, period: Any) -> None:
    """The inverse of `skew`, into int32[rows, columns]."""
    rows, columns = out.shape
    for row in range(rows):
        lane = row % LANES
        place = ((row // LANES) * period + SKEW * lane) * LANES + lane
        for column in range(columns):
            out[row, column] = levels[place + column * LANES]


@outer
def skew_around(plane: Any, period: Any, steps: Any) -> Any:
    """A plane with a border of one, int32[rows + 2, columns + 2], for `around`: every lane's 3 x 3 at any step.

    Lane -1 has the row above lane 0's, lane 16 the row below lane 15's.
    """
    rows, columns = plane.shape
    out = np.zeros((steps + 2 * AROUND_STEPS) * AROUND_STRIDE, np.int32)
    last = steps + 2 * AROUND_STEPS - 1
    for line in range(rows):
        row = line - 1
        group, lane = row // LANES, row % LANES
        for copy in range(3):
            if copy == 1 and lane == 0:
                group, lane = group - 1, LANES
            elif copy == 2 and lane == LANES - 1:
                group, lane = group + 1, -1
            elif copy > 0:
                continue
            begin = group * period + SKEW * lane - 1 + AROUND_STEPS
            for column in range(max(0, -begin), min(columns, last - begin + 1)):
                out[(begin + column) * AROUND_STRIDE + AROUND_FIRST + lane] = plane[line, column]
    return out


def encode_tile(
    tile: Plane, anchor: int, upper: Plane | None, previous: Plane | None, setting: Setting, head: Plane | None = None
) -> Words:
    """The words of a tile int32[rows, columns] of samples 0..setting.highest.

    `upper`: G, int32 of the tile's shape, not looked at where k has all bits of highest; `previous`: the previous
    frame's samples, int32[rows + 2, columns + 2], or None; `head`: what the last layer begins with (see
    codec.memory), or None: the network's.
    """
    symbols = tile.size * (2 if setting.raw else 1)
    stream = (np.empty(symbols, np.int32), np.empty(symbols, np.int32), np.empty(symbols, np.uint8))
    io = _run(ENCODE, tile, anchor, upper, previous, setting, head, stream=stream)
    words: Words = flush(*stream, io[SYMBOL], setting.states)
    return words


def decode_tile(
    out: Plane, words: Words, anchor: int, upper: Plane | None, previous: Plane | None, setting: Setting,
    head: Plane | None = None,
) -> Plane | None:  # fmt: skip
    """Decode words into `out` int32[rows, columns]; what the head learnt, None where they were no whole stream.

    The rest as in encode_tile.
    """
    io, state = np.zeros(IO_FIELDS, np.int64), np.zeros(LANES, np.int64)
    open_stream(io, state, words, setting.states)
    if io[FAILED]:
        return None
    words = np.array(words, np.uint32)  # a copy may be written to: the kernel is compiled for one kind of array only
    shape = geometry(*out.shape)
    levels = np.zeros(shape[3] * LANES, np.int32)
    law = _law(shape, upper, previous, setting)
    room = fresh_room(anchor, shape[2] - SHORTEST, _master(setting, head))
    run_tile(
        DECODE,
        io,
        state,
        words,
        NO_STREAM,
        levels,
        shape,
        room,
        law,
        setting.states,
        *_no_gains(),
    )
    straighten(levels, out, shape[2])
    whole = not io[FAILED] and io[WORD] == words.size and bool((state[: setting.states] == 1 << 31).all())
    return setting.network.unpack_head(room.master) if whole else None


def _master(setting: Setting, head: Plane | None) -> Plane:
    packed: Plane = setting.network.packed.head if head is None else setting.network.pack_head(head)
    return packed


def count_tile(
    tile: Plane, anchor: int, upper: Plane | None, previous: Plane | None, setting: Setting, head: Plane | None = None
) -> float:
    """How many bits a tile's samples take, without the states. Arguments as for encode_tile."""
    gains = np.zeros(GAINS, np.float64)
    _run(COUNT, tile, anchor, upper, previous, setting, head, gains=gains)
    return float(gains[0]) + setting.raw * tile.size


def survey_tile(
    tile: Plane, anchor: int, previous: Plane | None, setting: Setting, head: Plane | None = None
) -> NDArray[np.float64]:
    """float64[64], bits: [k] what knowing sample >> k would save, [32 + r] the cost with r raw planes, without G.

    k: the five below the number of bits of setting.highest; r < min(4, that number).
    """
    gains = np.zeros(GAINS, np.float64)
    _run(SURVEY, tile, anchor, None, previous, setting, head, gains=gains, first=setting.highest.bit_length())
    for raw in range(max(1, min(RAW_CHOICES, setting.highest.bit_length()))):
        gains[32 + raw] += raw * tile.size
    return gains


def features_tile(
    tile: Plane, anchor: int, upper: Plane | None, previous: Plane | None, setting: Setting, inputs: int, stride: int
) -> tuple[NDArray[np.int16], Plane]:
    """What training needs of about one of `stride` samples: the network's inputs int16[n, inputs], and int32[n, 5].

    The latter: level, blended mean, local scale s0 (1/64 level), least and highest level that G leaves.
    """
    most = tile.size if stride == 1 else min(tile.size, tile.size // stride * 2 + 64)
    facts, seen = np.zeros((most, FACTS), np.int32), np.zeros((most, inputs), np.int16)
    io = _run(FEATURES, tile, anchor, upper, previous, setting, facts=facts, inputs=seen, first=stride)
    return seen[: io[SYMBOL]], facts[: io[SYMBOL]]


def _no_gains() -> tuple[Any, Any, Any]:
    return np.zeros(GAINS, np.float64), np.zeros((0, FACTS), np.int32), np.zeros((0, 0), np.int16)


def _run(mode: int, tile: Plane, anchor: int, upper: Plane | None, previous: Plane | None, setting: Setting,
         head: Plane | None = None, *, stream: Any = NO_STREAM, gains: Any = None, facts: Any = None,
         inputs: Any = None, first: int = 0) -> NDArray[np.int64]:  # fmt: skip
    """Run the kernel over known samples; its io."""
    shape = geometry(*tile.shape)
    io = np.zeros(IO_FIELDS, np.int64)
    io[0] = first
    spare = _no_gains()
    run_tile(
        mode, io, np.zeros(LANES, np.int64), NO_WORDS, stream, skew(tile, shape[2], shape[3]), shape,
        fresh_room(anchor, shape[2] - SHORTEST, _master(setting, head)),
        _law(shape, upper, previous, setting), setting.states,
        spare[0] if gains is None else gains, spare[1] if facts is None else facts,
        spare[2] if inputs is None else inputs,
    )  # fmt: skip
    return io


def _law(shape: tuple[int, int, int, int], upper: Plane | None, previous: Plane | None, setting: Setting) -> Law:
    """The kernel's arrangement of a setting. ValueError for what the kernel has no room for."""
    bits = setting.highest.bit_length()
    k = min(setting.k, bits)
    around = NO_PLANE
    if upper is not None and k < bits:
        around = skew_around(np.pad(upper, 1, mode="edge"), shape[2], shape[3])
    before = NO_PLANE if previous is None else skew_around(np.ascontiguousarray(previous), shape[2], shape[3])
    taps = setting.predictors.taps
    arranged = np.zeros((44, LANES), np.int32)
    if taps.shape[0] > MOST_SETS or taps.shape[1] > 44:
        raise ValueError("too many sets of taps")
    arranged[: taps.shape[1], : taps.shape[0]] = taps.T
    thresholds = np.minimum(setting.predictors.thresholds, 1 << 30).astype(np.int32)
    packed = setting.network.packed
    if packed.head.size > MOST_HIDDEN * LANES or setting.network.inputs > MOST_INPUTS:
        raise ValueError("the network is too large for the kernel")
    return Law(
        setting.highest, k, setting.raw, taps.shape[0], thresholds, arranged.ravel(), setting.network.components,
        packed.sizes, packed.hidden, packed.biases, setting.rate, around, before,
    )  # fmt: skip
