"""The learned local path of a tile: 16 rows at once, each 5 samples behind the one above (numba kernels).

One kernel serves the encoder, the decoder, the estimate of the cost and the training of the network.
docs/bitstream.md, law 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream
from codec.lanes import LANES, bits_of, iota, load, select, splat, store, to_double, vmin
from codec.net import Network, run_network
from codec.wavelaw import (
    blend,
    clamp_predictions,
    fitted_predictions,
    fixed_predictions,
    local_errors,
    mark_errors,
    own_inputs,
    pack_inputs,
)
from codec.wavemix import TOTAL, below, find_symbols, set_mixture, slot, slot_scale
from codec.waverans import DECODE, ENCODE, FAILED, SYMBOL, flush, open_stream, record, take
from codec.wavetables import (
    BLEND,
    ERROR_ABOVE,
    ERROR_FIRST,
    ERROR_STEPS,
    ERROR_STRIDE,
    GAP,
    LEVEL_ABOVE,
    LEVEL_FIRST,
    LEVEL_KEPT,
    LEVEL_STEPS,
    LEVEL_STRIDE,
    MOST_COMPONENTS,
    MOST_HIDDEN,
    MOST_INPUTS,
    NEAR_CAP,
    SHORTEST,
    SKEW,
    SLOTS,
    inner,
    outer,
)

COUNT, FEATURES = 2, 3  # modes besides DECODE and ENCODE
FACTS = 6  # of a sample: row, column, level, mean, s0, activity


class Scratch(NamedTuple):
    """What the kernel keeps between steps and the room for one step's numbers, 16 lanes innermost (int32)."""

    level: NDArray[np.int32]
    error: NDArray[np.int32]
    late_level: NDArray[np.int32]
    late_error: NDArray[np.int32]
    guess: NDArray[np.int32]
    near: NDArray[np.int32]
    logs: NDArray[np.int32]
    x: NDArray[np.int32]
    packed: NDArray[np.int32]
    sums: NDArray[np.int32]
    hidden: NDArray[np.int32]
    mix: NDArray[np.int32]
    step: NDArray[np.int32]


@inner
def fresh_scratch(anchor: Any, late: Any) -> Any:
    """Before the first step: all samples are the anchor, all errors 0. `late`: steps from lane 15 to lane -1."""
    level = np.empty(LEVEL_STEPS * LEVEL_STRIDE, np.int32)
    level[:] = anchor
    late_level = np.empty((late + 1) * LEVEL_ABOVE, np.int32)
    late_level[:] = anchor
    return Scratch(
        level,
        np.zeros(ERROR_STEPS * SLOTS * ERROR_STRIDE, np.int32),
        late_level,
        np.zeros((late + 1) * SLOTS * ERROR_ABOVE, np.int32),
        np.zeros(SLOTS * LANES, np.int32),
        np.zeros(SLOTS * LANES, np.int32),
        np.zeros(SLOTS * LANES, np.int32),
        np.zeros(MOST_INPUTS * LANES, np.int32),
        np.zeros(MOST_INPUTS * LANES, np.int32),
        np.zeros(MOST_HIDDEN * LANES, np.int32),
        np.zeros(MOST_HIDDEN * LANES, np.int32),
        np.zeros(MOST_COMPONENTS * 4 * LANES, np.int32),
        np.zeros(8 * LANES, np.int32),
    )


@inner
def view(room: Any, at: Any, step: Any, highest: Any, thresholds: Any, taps: Any, sets: Any, pairs: Any) -> Any:
    """From the neighbours to the network's packed inputs; the blended mean and the local scale s0 (1/64 level)."""
    top = highest << 6
    activity = fixed_predictions(room.level, at, room.guess)
    fitted_predictions(room.level, at, activity, thresholds, taps, sets, room.guess)
    clamp_predictions(room.guess, top)
    local_errors(room.error, step, room.near)
    mean = blend(room.guess, room.near, room.logs)
    s0 = ((vmin(load(room.near, BLEND * LANES), splat(NEAR_CAP)) * 85) >> 10) + 16
    own_inputs(room.level, at, room.error, step, top, room.guess, room.near, room.logs, mean, s0, room.x)
    pack_inputs(room.x, pairs, room.packed)
    return mean, s0


@inner
def keep(room: Any, at: Any, step: Any, late: Any) -> None:
    """Put the last lanes' samples and errors by, and give lanes -4..-1 what lanes 12..15 had `late` steps ago."""
    here = step % (late + 1)
    for j in range(LEVEL_ABOVE):
        room.late_level[here * LEVEL_ABOVE + j] = room.level[at + LANES - LEVEL_ABOVE + j]
    base = (step & (ERROR_STEPS - 1)) * SLOTS * ERROR_STRIDE + ERROR_FIRST
    for i in range(SLOTS):
        for j in range(ERROR_ABOVE):
            place = base + i * ERROR_STRIDE + j
            room.late_error[(here * SLOTS + i) * ERROR_ABOVE + j] = room.error[place + LANES - ERROR_ABOVE]
    there = (step + 1) % (late + 1)
    for j in range(LEVEL_ABOVE):
        room.level[at - LEVEL_ABOVE + j] = room.late_level[there * LEVEL_ABOVE + j]
    for i in range(SLOTS):
        for j in range(ERROR_ABOVE):
            place = base + i * ERROR_STRIDE + j
            room.error[place - ERROR_ABOVE] = room.late_error[(there * SLOTS + i) * ERROR_ABOVE + j]


@inner
def pad(room: Any, at: Any, step: Any, active: Any, entering: Any) -> None:
    """Outside their rows, lanes repeat what they had; 5 steps before a row they take the row above's first sample."""
    own, before, above = load(room.level, at), load(room.level, at - LEVEL_STRIDE), load(room.level, at - 1)
    store(room.level, at, select(active, own, select(entering, above, before)))
    here = (step & (ERROR_STEPS - 1)) * SLOTS * ERROR_STRIDE + ERROR_FIRST
    last = ((step - 1) & (ERROR_STEPS - 1)) * SLOTS * ERROR_STRIDE + ERROR_FIRST
    for i in range(SLOTS):
        p = i * ERROR_STRIDE
        own, before, above = load(room.error, here + p), load(room.error, last + p), load(room.error, here + p - 1)
        store(room.error, here + p, select(active, own, select(entering, above, before)))


@inner
def interval(upper: Any, step: Any, k: Any, highest: Any, raw: Any) -> Any:
    """First and last symbol that G leaves."""
    low = load(upper, step * LANES) << k
    return low >> raw, vmin(low + ((1 << k) - 1), splat(highest)) >> raw


@inner
def code_known(room: Any, io: Any, stream: Any, active: Any, level: Any, first: Any, last: Any, raw: Any,
               components: Any) -> Any:  # fmt: skip
    """Where the slots of known samples begin and how many they are, into `room.step`; the latter also returned."""
    base = below(first << raw, components, room.mix)
    scale = slot_scale(first, last, raw, base, components, room.mix)
    symbol = level >> raw
    start = slot(symbol, first, raw, base, scale, components, room.mix)
    end = slot(symbol + 1, first, raw, base, scale, components, room.mix)
    end = select(symbol < last, end, splat(TOTAL))
    store(room.step, 0, start)
    store(room.step, LANES, end - start)
    store(room.step, 2 * LANES, level)
    return end - start


@inner
def decode_lanes(room: Any, io: Any, state: Any, words: Any, active: Any, first: Any, last: Any, raw: Any, mean: Any,
                 s0: Any, components: Any, states: Any) -> Any:  # fmt: skip
    """Take the samples of the active lanes from the stream, `states` lanes at a time."""
    base = below(first << raw, components, room.mix)
    scale = slot_scale(first, last, raw, base, components, room.mix)
    shift = 6 + raw
    guess, width = (mean + 32) >> shift, (s0 >> shift) + 1
    live = bits_of(active)
    for begin in range(0, LANES, states):
        turn = (live >> begin) & ((1 << states) - 1)
        if turn == 0:
            continue
        for lane in range(states):
            room.step[begin + lane] = state[lane] & (TOTAL - 1)
        mine = active & (iota() >= begin) & (iota() < begin + states)
        bottom, end = select(mine, first, splat(0)), select(mine, last, splat(0))
        symbol, low, high = find_symbols(
            load(room.step, 0), bottom, end, raw, base, scale, guess, width, components, room.mix
        )
        store(room.step, LANES, symbol)
        store(room.step, 2 * LANES, low)
        store(room.step, 3 * LANES, high - low)
        for lane in range(begin, begin + states):
            if (live >> lane) & 1:
                take(io, state, lane - begin, words, room.step[2 * LANES + lane], room.step[3 * LANES + lane])
                level = room.step[LANES + lane] << raw
                if raw:
                    shifted = 28 - raw
                    rest = (state[lane - begin] & (TOTAL - 1)) >> shifted
                    take(io, state, lane - begin, words, rest << shifted, 1 << shifted)
                    level |= rest
                room.step[4 * LANES + lane] = level
    return load(room.step, 4 * LANES)


@outer
def run_tile(mode: Any, io: Any, state: Any, words: Any, stream: Any, levels: Any, upper: Any, shape: Any,
             anchor: Any, highest: Any, k: Any, raw: Any, thresholds: Any, taps: Any, sets: Any, sizes: Any, net: Any,
             components: Any, states: Any, facts: Any, inputs: Any) -> float:  # fmt: skip
    """All steps of a tile. `levels` int32[steps * 16] skewed samples, read or (decoding) written.

    Returns the cost in bits (mode COUNT), without raw planes.
    """
    rows, columns, period, steps = shape
    late = period - SHORTEST
    room = fresh_scratch(anchor, late)
    phase = iota() * -SKEW
    row = iota() + select(phase < 0, splat(-LANES), splat(0))
    phase = phase + select(phase < 0, splat(period), splat(0))
    at = (LEVEL_KEPT - 1) * LEVEL_STRIDE + LEVEL_FIRST
    bits, chance = 0.0, to_double(splat(1))
    for step in range(steps):
        at += LEVEL_STRIDE
        if at >= LEVEL_STEPS * LEVEL_STRIDE:
            for j in range(LEVEL_KEPT * LEVEL_STRIDE):
                room.level[j] = room.level[(LEVEL_STEPS - LEVEL_KEPT) * LEVEL_STRIDE + j]
            at = LEVEL_KEPT * LEVEL_STRIDE + LEVEL_FIRST
        active = (phase < columns) & (row >= 0) & (row < rows)
        live = bits_of(active)
        mean, s0 = view(room, at, step, highest, thresholds, taps, sets, sizes[0])
        run_network(room.packed, net, sizes, room.sums, room.hidden)
        set_mixture(room.sums, components, mean, s0, highest << 6, room.mix)
        first, last = interval(upper, step, k, highest, raw)
        if mode == DECODE:
            level = decode_lanes(
                room, io, state, words, active, first, last, raw, mean, s0, components, states
            )
            level = vmin(level, splat(highest))
            store(levels, step * LANES, level)
            if io[FAILED]:
                return 0.0
        else:
            level = load(levels, step * LANES)
            freq = code_known(room, io, stream, active, level, first, last, raw, components)
            if mode == ENCODE:
                record(io, stream, room.step, live, raw)
            elif mode == COUNT:
                chance = chance * select(active, to_double(freq) * (1.0 / TOTAL), to_double(splat(1)))
                if (step & 15) == 15:
                    bits -= log2_of(chance, room.step)
                    chance = to_double(splat(1))
        store(room.level, at, level)
        mark_errors(room.error, step, level, room.guess, mean)
        keep(room, at, step, late)
        if live != 0xFFFF:
            pad(room, at, step, active, phase == period - SKEW)
            keep(room, at, step, late)
        phase = phase + 1
        wrapped = phase >= period
        phase = select(wrapped, splat(0), phase)
        row = row + select(wrapped, splat(LANES), splat(0))
    return bits - log2_of(chance, room.step)


@inner
def log2_of(chance: Any, spare: Any) -> float:
    """Sum of the lanes' binary logarithms."""
    out = np.empty(LANES, np.float64)
    store(out, 0, chance)
    total = 0.0
    for lane in range(LANES):
        total += np.log2(out[lane])
    return total


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
def straighten(levels: Any, rows: Any, columns: Any, period: Any) -> Any:
    """The plane int32[rows, columns] that was skewed."""
    out = np.empty((rows, columns), np.int32)
    for row in range(rows):
        lane = row % LANES
        place = ((row // LANES) * period + SKEW * lane) * LANES + lane
        for column in range(columns):
            out[row, column] = levels[place + column * LANES]
    return out


def geometry(rows: int, columns: int) -> tuple[int, int, int, int]:
    """(rows, columns, steps from a lane's row to its next, steps of the whole tile)."""
    period = max(columns + GAP, SHORTEST)
    last = rows - 1
    return rows, columns, period, last // LANES * period + SKEW * (last % LANES) + columns


def _arranged(taps: NDArray[np.int32]) -> NDArray[np.int32]:
    """Taps int32[sets, neighbours] with the sets innermost: int32[neighbours * 16]."""
    out = np.zeros((max(taps.shape[1], 1), LANES), np.int32)
    out[: taps.shape[1], : taps.shape[0]] = taps.T
    return out.ravel()


def encode_tile(samples: NDArray[np.int32], previous: None, upper: NDArray[np.int32] | None, anchor: int,
                highest: int, k: int, raw: int, thresholds: NDArray[np.int32], taps: NDArray[np.int32],
                network: Network, states: int) -> NDArray[np.uint32]:  # fmt: skip
    """The words (uint32) of a tile."""
    shape = geometry(*samples.shape)
    symbols = samples.size * (2 if raw else 1)
    stream = (np.empty(symbols, np.int32), np.empty(symbols, np.int32), np.empty(symbols, np.uint8))
    io = np.zeros(5, np.int64)
    _run(ENCODE, io, np.zeros(16, np.int64), np.zeros(0, np.uint32), stream, skew(samples, shape[2], shape[3]), shape,
         upper, anchor, highest, k, raw, thresholds, taps, network, states)  # fmt: skip
    return flush(*stream, io[SYMBOL], states)


def count_tile(samples: NDArray[np.int32], previous: None, upper: NDArray[np.int32] | None, anchor: int,
               highest: int, k: int, raw: int, thresholds: NDArray[np.int32], taps: NDArray[np.int32],
               network: Network, states: int) -> float:  # fmt: skip
    """How many bits the tile's samples take, without the states."""
    shape = geometry(*samples.shape)
    return raw * samples.size + _run(
        COUNT, np.zeros(5, np.int64), np.zeros(16, np.int64), np.zeros(0, np.uint32), NO_STREAM,
        skew(samples, shape[2], shape[3]), shape, upper, anchor, highest, k, raw, thresholds, taps, network, states,
    )  # fmt: skip


NO_STREAM = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))


def decode_tile(words: NDArray[np.uint32], rows: int, columns: int, anchor: int, previous: None,
                upper: NDArray[np.int32] | None, highest: int, k: int, raw: int, thresholds: NDArray[np.int32],
                taps: NDArray[np.int32], network: Network, states: int) -> NDArray[np.int32]:  # fmt: skip
    """The samples int32[rows, columns] of a tile; CorruptBitstream if the words are no whole stream."""
    shape = geometry(rows, columns)
    io, state = np.zeros(5, np.int64), np.zeros(16, np.int64)
    open_stream(io, state, words, states)
    levels = np.zeros(shape[3] * LANES, np.int32)
    if not io[FAILED]:
        _run(DECODE, io, state, words, NO_STREAM, levels, shape, upper, anchor, highest, k, raw, thresholds, taps,
             network, states)  # fmt: skip
    if io[FAILED] or io[2] != words.size or (state[:states] != 1 << 31).any():
        raise CorruptBitstream("the samples' stream does not end where it should")
    return straighten(levels, rows, columns, shape[2])


def _run(mode: int, io: Any, state: Any, words: Any, stream: Any, levels: Any, shape: tuple[int, int, int, int],
         upper: NDArray[np.int32] | None, anchor: int, highest: int, k: int, raw: int, thresholds: NDArray[np.int32],
         taps: NDArray[np.int32], network: Network, states: int) -> float:  # fmt: skip
    sizes, net = network.packed()
    known = np.zeros(shape[3] * LANES, np.int32) if upper is None else skew(upper, shape[2], shape[3])
    return run_tile(
        mode, io, state, words, stream, levels, known, shape, anchor, highest, k, raw, thresholds.astype(np.int32),
        _arranged(taps), taps.shape[0], sizes, net, network.components, states, np.zeros((0, FACTS), np.int32),
        np.zeros((0, 0), np.int16),
    )  # fmt: skip
