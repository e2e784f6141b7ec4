"""All steps of a tile of the learned local path: 16 rows at once, each 5 samples behind the one above (numba kernels).

One kernel serves the decoder, the encoder, the estimates of the cost and the training of the network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.lanes import LANES, bits_of, iota, load, select, splat, store, to_double, vmin
from codec.network import BLOCK
from codec.wavecontext import CONTEXTS, context_inputs, fresh_cells, learn_contexts
from codec.wavehead import head_gradient, head_outputs, learn_head
from codec.wavelaw import (
    around,
    blend,
    clamp_predictions,
    fitted_predictions,
    fixed_predictions,
    local_errors,
    log256,
    mark_errors,
    own_inputs,
    pack_inputs,
    previous_inputs,
    ring,
    upper_inputs,
)
from codec.wavemix import TOTAL, below, find_symbols, set_mixture, slot, slot_scale
from codec.wavenet import hidden_layers
from codec.waverans import DECODE, ENCODE, FAILED, SYMBOL, record, take
from codec.wavetables import (
    BLEND,
    ERROR_ABOVE,
    ERROR_STEPS,
    ERROR_STRIDE,
    FIRST_PREVIOUS,
    FIRST_UPPER,
    LEVEL_ABOVE,
    LEVEL_FIRST,
    LEVEL_KEPT,
    LEVEL_STEPS,
    LEVEL_STRIDE,
    MOST_COMPONENTS,
    MOST_HIDDEN,
    MOST_INPUTS,
    NEAR_CAP,
    OWN_INPUTS,
    SHORTEST,
    SKEW,
    SLOTS,
    bare,
    inner,
)

COUNT, SURVEY, FEATURES = 2, 3, 4  # modes besides DECODE and ENCODE
FACTS = 5  # of a sample, for training: level, mean, s0 (1/64 level), least and highest level that G leaves
RAW_CHOICES, SPLIT_CHOICES, GAINS = 4, 5, 64
FRESH_CELLS = fresh_cells()
CHANCE_STEPS = 16  # probabilities multiplied before their logarithm is taken: 2^-28 each at least


class Law(NamedTuple):
    """How a tile is coded; the same for all samples.

    `thresholds` int32[classes - 1]; `taps` int32[neighbours * 16], sets innermost; `sizes`, `net`, `biases`:
    network.Packed; `rate` of the head's learning, 0 for none;
    `upper`, `previous`: G and the previous frame, `skew_around`, or empty (no G: k has all bits).
    """

    highest: int
    k: int
    raw: int
    sets: int
    thresholds: NDArray[np.int32]
    taps: NDArray[np.int32]
    components: int
    sizes: NDArray[np.int32]
    net: NDArray[np.int32]
    biases: NDArray[np.int32]
    rate: int
    upper: NDArray[np.int32]
    previous: NDArray[np.int32]


class Room(NamedTuple):
    """What lives from step to step, and room for one step's numbers, 16 lanes innermost (int32)."""

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
    rows: NDArray[np.int16]
    row_pairs: NDArray[np.int32]
    master: NDArray[np.int32]
    head: NDArray[np.int32]
    gradient: NDArray[np.int16]
    gradient_pairs: NDArray[np.int32]
    parts: NDArray[np.float64]
    mix: NDArray[np.int32]
    step: NDArray[np.int32]
    cells: NDArray[np.int32]
    where: NDArray[np.int32]
    chance: NDArray[np.float64]


def fresh_room(anchor: int, late: int, head: NDArray[np.int32]) -> Room:
    """Before the first step: all samples are the anchor, all errors 0. `late`: steps from lane 15 to lane -1."""
    rows, gradient = np.zeros(MOST_HIDDEN * LANES, np.int16), np.zeros(LANES * LANES, np.int16)
    pairs = head.reshape(-1, 2, LANES)
    return Room(
        np.full(LEVEL_STEPS * LEVEL_STRIDE, anchor, np.int32),
        np.zeros(ERROR_STEPS * SLOTS * ERROR_STRIDE, np.int32),
        np.full((late + 1) * LEVEL_ABOVE, anchor, np.int32),
        np.zeros((late + 1) * SLOTS * ERROR_ABOVE, np.int32),
        np.zeros(SLOTS * LANES, np.int32),
        np.zeros(SLOTS * LANES, np.int32),
        np.zeros(SLOTS * LANES, np.int32),
        np.zeros(MOST_INPUTS * LANES, np.int32),
        np.zeros(MOST_INPUTS // 2 * LANES, np.int32),
        np.zeros(MOST_HIDDEN * LANES, np.int32),
        np.zeros(MOST_HIDDEN // 2 * LANES, np.int32),
        rows,
        rows.view(np.int32),
        head.copy(),
        ((pairs[:, 0] >> 16 & 0xFFFF) | (pairs[:, 1] & -0x10000)).ravel(),
        gradient,
        gradient.view(np.int32),
        np.zeros(MOST_COMPONENTS * 4 * LANES, np.float64),
        np.zeros(MOST_COMPONENTS * 4 * LANES, np.int32),
        np.zeros(8 * LANES, np.int32),
        FRESH_CELLS.copy(),
        np.zeros(CONTEXTS * LANES, np.int32),
        np.ones(GAINS * LANES, np.float64),
    )


@inner
def view(room: Any, at: Any, step: Any, law: Any) -> Any:
    """From the neighbours to the network's packed inputs; the blended mean and the local scale s0 (1/64 level)."""
    top = law.highest << 6
    activity, direction = fixed_predictions(room.level, at, room.guess)
    fitted_predictions(
        room.level, at, activity, direction, law.previous, step, law.thresholds, law.taps, law.sets, room.guess
    )
    clamp_predictions(room.guess, top)
    local_errors(room.error, step, room.near)
    mean = blend(room.guess, room.near, room.logs)
    s0 = ((vmin(load(room.near, BLEND * LANES), splat(NEAR_CAP)) * 85) >> 10) + 16
    own_inputs(room.level, at, room.error, step, top, room.guess, room.near, room.logs, mean, s0, room.x)
    energy = log256(vmin(load(room.near, BLEND * LANES), splat(NEAR_CAP)) + 96)
    context_inputs(room.error, step, room.guess, activity, energy, mean, s0, room.cells, room.where, room.x, OWN_INPUTS)
    if law.upper.size > 0:
        upper_inputs(law.upper, step, law.k, law.highest, mean, s0, room.x, FIRST_UPPER)
    if law.previous.size > 0:
        previous_inputs(room.level, at, law.previous, step, mean, s0, room.x, FIRST_PREVIOUS)
    pack_inputs(room.x, law.sizes[0], room.packed)
    return mean, s0


@inner
def keep(room: Any, at: Any, step: Any, late: Any) -> None:
    """Put the last lanes' samples and errors by, and give lanes -4..-1 what lanes 12..15 had `late` steps ago."""
    here, there = step % (late + 1), (step + 1) % (late + 1)
    for j in range(LEVEL_ABOVE):
        room.late_level[here * LEVEL_ABOVE + j] = room.level[at + LANES - LEVEL_ABOVE + j]
    for j in range(LEVEL_ABOVE):
        room.level[at - LEVEL_ABOVE + j] = room.late_level[there * LEVEL_ABOVE + j]
    last, above = ring(step, ERROR_ABOVE) + LANES, ring(step, ERROR_ABOVE)
    for i in range(SLOTS):
        for j in range(ERROR_ABOVE):
            room.late_error[(here * SLOTS + i) * ERROR_ABOVE + j] = room.error[last + i * ERROR_STRIDE + j]
    for i in range(SLOTS):
        for j in range(ERROR_ABOVE):
            room.error[above + i * ERROR_STRIDE + j] = room.late_error[(there * SLOTS + i) * ERROR_ABOVE + j]


@inner
def pad(room: Any, at: Any, step: Any, active: Any, entering: Any) -> None:
    """Outside their rows, lanes repeat what they had; 5 steps before a row they take the row above's first sample."""
    own, before, above = load(room.level, at), load(room.level, at - LEVEL_STRIDE), load(room.level, at - 1)
    store(room.level, at, select(active, own, select(entering, above, before)))
    here, last = ring(step, 0), ring(step - 1, 0)
    for i in range(SLOTS):
        p = i * ERROR_STRIDE
        own, before, above = load(room.error, here + p), load(room.error, last + p), load(room.error, here + p - 1)
        store(room.error, here + p, select(active, own, select(entering, above, before)))


@inner
def raise_first_row(room: Any, at: Any, step: Any) -> None:
    """Repeat row 0's new sample and its errors above it, up to where the next sample's neighbours reach.

    Row -d lies in lane -d, its column c at step c - 5 d. The first sample also becomes the left padding.
    """
    level = room.level[at]
    for d in range(LEVEL_ABOVE + 1):
        for ahead in range(-SKEW if step == 0 else 0, SKEW + 1 if d > 0 else 0):
            room.level[at + (ahead - SKEW * d) * LEVEL_STRIDE - d] = level
    here = ring(step, 0)
    for d in range(ERROR_ABOVE + 1):
        for ahead in range(-2 if step == 0 else 0, 4 if d > 0 else 0):
            there = ring(step + ahead - SKEW * d, d)
            for i in range(SLOTS):
                room.error[there + i * ERROR_STRIDE] = room.error[here + i * ERROR_STRIDE]


@inner
def interval(law: Any, step: Any) -> Any:
    """Least and highest level that G leaves."""
    if law.upper.size == 0:
        return splat(0), splat(law.highest)
    low = around(law.upper, step, 0, 0) << law.k
    return low, vmin(low + ((1 << law.k) - 1), splat(law.highest))


@inner
def known_slots(room: Any, level: Any, low: Any, high: Any, law: Any) -> Any:
    """Where the slots of known samples begin and how many they are, into `room.step`; the latter also returned."""
    first, last, symbol = low >> law.raw, high >> law.raw, level >> law.raw
    base = below(first << law.raw, law.components, room.mix)
    scale = slot_scale(first, last, law.raw, base, law.components, room.mix)
    start = slot(symbol, first, law.raw, base, scale, law.components, room.mix)
    end = slot(symbol + 1, first, law.raw, base, scale, law.components, room.mix)
    end = select(symbol < last, end, splat(TOTAL))
    store(room.step, 0, start)
    store(room.step, LANES, end - start)
    store(room.step, 2 * LANES, level)
    return end - start


@inner
def decode_lanes(room: Any, io: Any, state: Any, words: Any, active: Any, low: Any, high: Any, law: Any,
                 states: Any) -> Any:  # fmt: skip
    """Take the samples of the active lanes from the stream, `states` lanes at a time."""
    first, last = low >> law.raw, high >> law.raw
    base = below(first << law.raw, law.components, room.mix)
    scale = slot_scale(first, last, law.raw, base, law.components, room.mix)
    live = bits_of(active)
    for begin in range(0, LANES, states):
        if (live >> begin) & ((1 << states) - 1) == 0:
            continue
        for lane in range(states):
            room.step[begin + lane] = state[lane] & (TOTAL - 1)
        mine = active & (iota() >= begin) & (iota() < begin + states)
        symbol, start, end = find_symbols(
            load(room.step, 0), select(mine, first, splat(0)), select(mine, last, splat(0)), law.raw, base, scale,
            law.components, room.mix,
        )  # fmt: skip
        store(room.step, LANES, symbol)
        store(room.step, 2 * LANES, start)
        store(room.step, 3 * LANES, end - start)
        for lane in range(begin, begin + states):
            if (live >> lane) & 1:
                level = take_lane(room.step, io, state, lane - begin, words, lane, law.raw)
                if level > law.highest:  # raw planes of a hostile stream
                    io[FAILED] = 1
                room.step[4 * LANES + lane] = level
    return vmin(load(room.step, 4 * LANES), splat(law.highest))


@inner
def take_lane(step: Any, io: Any, state: Any, which: Any, words: Any, lane: Any, raw: Any) -> Any:
    """Remove a lane's symbol and its raw planes from its state; the level."""
    take(io, state, which, words, step[2 * LANES + lane], step[3 * LANES + lane])
    level = step[LANES + lane] << raw
    if raw > 0:
        shift = 28 - raw
        rest = (state[which] & (TOTAL - 1)) >> shift
        take(io, state, which, words, rest << shift, np.int64(1) << shift)
        level |= rest
    return level


@bare
def sum_logs(room: Any, gains: Any) -> None:
    """Take the logarithms of the products in `room.chance` to `gains` (bits)."""
    for place in range(GAINS):
        for lane in range(LANES):
            if room.chance[place * LANES + lane] != 1.0:
                gains[place] -= np.log2(room.chance[place * LANES + lane])
                room.chance[place * LANES + lane] = 1.0


@inner
def multiply(room: Any, place: Any, active: Any, part: Any) -> None:
    """Multiply a probability into the product for gains[place]."""
    old = load(room.chance, place * LANES)
    store(room.chance, place * LANES, old * select(active, part, to_double(splat(1))))


@inner
def survey(room: Any, active: Any, level: Any, bits: Any, law: Any) -> None:
    """What knowing level >> k would save, gains[k], and the cost with r raw planes, gains[32 + r] (r not counted)."""
    base = below(splat(0), law.components, room.mix)
    whole = below(splat(law.highest + 1), law.components, room.mix) - base + float(law.highest + 1)
    for choice in range(SPLIT_CHOICES + RAW_CHOICES):
        splitting = choice < SPLIT_CHOICES
        width = bits - 1 - choice if splitting else choice - SPLIT_CHOICES
        if width < (1 if splitting else 0) or width >= max(bits, 1):
            continue
        low = (level >> width) << width
        high = low + (1 << width)
        if splitting:
            high = vmin(high, splat(law.highest + 1))
        part = below(high, law.components, room.mix) - below(low, law.components, room.mix)
        part = part + (to_double(high - low) if splitting else to_double(splat(1)))
        multiply(room, width if splitting else 32 + width, active, part / whole)


@inner
def dump(room: Any, step: Any, live: Any, level: Any, low: Any, high: Any, mean: Any, s0: Any, stride: Any, io: Any,
         facts: Any, inputs: Any) -> None:  # fmt: skip
    """Copy what training needs of one of `stride` live samples, while there is room in `facts` and `inputs`."""
    store(room.step, 0, level)
    store(room.step, LANES, mean)
    store(room.step, 2 * LANES, s0)
    store(room.step, 3 * LANES, low)
    store(room.step, 4 * LANES, high)
    for lane in range(LANES):
        place = (np.uint64(step * LANES + lane) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        if (live >> lane) & 1 and place % np.uint64(stride) == 0 and io[SYMBOL] < facts.shape[0]:
            for j in range(FACTS):
                facts[io[SYMBOL], j] = room.step[j * LANES + lane]
            for j in range(inputs.shape[1]):
                inputs[io[SYMBOL], j] = room.x[j * LANES + lane]
            io[SYMBOL] += 1


@inner
def code_known(mode: Any, room: Any, io: Any, stream: Any, step: Any, active: Any, level: Any, low: Any, high: Any,
               law: Any, gains: Any) -> None:  # fmt: skip
    """Note the symbols of a step's samples, or what they cost."""
    if mode == SURVEY:
        survey(room, active, level, io[0], law)
    else:
        freq = known_slots(room, level, low, high, law)
        if mode == ENCODE:
            record(io, stream, room.step, bits_of(active), law.raw)
        else:
            multiply(room, 0, active, to_double(freq) * (1.0 / TOTAL))
    if mode != ENCODE and step % CHANCE_STEPS == 0:
        sum_logs(room, gains)


@bare
def run_tile(mode: Any, io: Any, state: Any, words: Any, stream: Any, levels: Any, shape: Any, room: Any, law: Any,
             states: Any, gains: Any, facts: Any, inputs: Any) -> None:  # fmt: skip
    """All steps of a tile. `levels` int32[steps * 16] skewed samples, read or (decoding) written.

    `gains` float64[64]: COUNT leaves the cost in bits in gains[0], without raw planes; SURVEY see `survey`, its
    number of bits being io[0]. FEATURES: one sample of io[0] goes to `facts` int32[n, FACTS], `inputs` int16[n, I].
    """
    rows, columns, period, steps = shape
    late = period - SHORTEST
    pairs = law.sizes[2] + law.sizes[3] * (BLOCK // 2)
    phase = iota() * -SKEW
    row = iota() + select(phase < 0, splat(-LANES), splat(0))
    phase = phase + select(phase < 0, splat(period), splat(0))
    at = (LEVEL_KEPT - 1) * LEVEL_STRIDE + LEVEL_FIRST
    for step in range(steps):
        at += LEVEL_STRIDE
        if at >= LEVEL_STEPS * LEVEL_STRIDE:
            for place in range(0, LEVEL_KEPT * LEVEL_STRIDE, LANES):
                kept = load(room.level, (LEVEL_STEPS - LEVEL_KEPT) * LEVEL_STRIDE + place)
                store(room.level, place, kept)
            at = LEVEL_KEPT * LEVEL_STRIDE + LEVEL_FIRST
        active = (phase < columns) & (row >= 0) & (row < rows)
        live = bits_of(active)
        mean, s0 = view(room, at, step, law)
        low, high = interval(law, step)
        if mode != FEATURES:
            hidden_layers(room.packed, law.net, law.sizes, room.sums, room.hidden, room.rows)
            head_outputs(room.hidden, pairs, room.head, law.biases, law.sizes[4], room.sums)
            set_mixture(room.sums, law.components, mean, s0, law.highest << 6, room.mix)
        if mode == DECODE:
            level = decode_lanes(room, io, state, words, active, low, high, law, states)
            store(levels, step * LANES, level)
            if io[FAILED]:
                return
        else:
            level = load(levels, step * LANES)
            if mode == FEATURES:
                dump(room, step, live, level, low, high, mean, s0, io[0], io, facts, inputs)
            else:
                code_known(mode, room, io, stream, step, active, level, low, high, law, gains)
        store(room.level, at, level)
        mark_errors(room.error, step, level, room.guess, mean)
        keep(room, at, step, late)
        if live != 0xFFFF:
            pad(room, at, step, active, phase == period - SKEW)
            keep(room, at, step, late)
        if step < columns:
            raise_first_row(room, at, step)
        if law.rate > 0 and mode != FEATURES:
            head_gradient(level, active, law.components, room.mix, room.parts, room.gradient)
            learn_head(room.master, room.head, room.gradient_pairs, room.row_pairs, pairs, law.rate)
        learn_contexts(room.cells, room.where, live, level, mean, room.step)
        phase = phase + 1
        wrapped = phase >= period
        phase = select(wrapped, splat(0), phase)
        row = row + select(wrapped, splat(LANES), splat(0))
    sum_logs(room, gains)
