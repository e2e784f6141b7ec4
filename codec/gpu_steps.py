"""A step of the wavefront as phases for single lanes: what each of a tile's 16 lanes may do without waiting.

Within a phase no lane reads what another writes; between two phases all lanes meet. So it does not matter in which
order, or whether at once, the lanes of a phase run: a device runs them as threads with a barrier between phases, the
tests run them one after the other in any order. What a sample's law is stands in codec.wavelaw and codec.wavemix, whose
kernels are ported (codec.gpu_port); here is only what codec.wavetile does around them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.gpu_lanes import LANES, dot2_lower, dot2_upper, lane_number, load, plain, splat, splat_at, store
from codec.rans import LOWEST, PRECISION, TOTAL
from codec.wavelaw import clamp, mark_errors, ring
from codec.wavemix import below, find_symbols, set_mixture, slot_scale
from codec.wavenet import pack
from codec.wavetables import (
    ERROR_ABOVE,
    ERROR_STRIDE,
    LEVEL_ABOVE,
    LEVEL_STRIDE,
    SKEW,
    SLOTS,
)
from codec.wavetile import interval, known_slots, view

BLOCK = 8  # outputs of a layer that a thread computes together
ACTIVATION_LIMIT = 1023
# Rows of room.step (16 int32 each); the first five are codec.wavetile's.
MEAN, SCALE, LEVEL, PHASE, ROW, ACTIVE, NEED, SYMBOL, WORD = 5, 6, 7, 8, 9, 10, 11, 12, 13  # WORD: two rows
STEP_ROWS = 16
FIRST_OPTIONAL, MOST_INPUTS = 67, 90  # inputs that are not always there
FAILED = 2  # of counts int64[3]: a word was missing; before it: words read or written so far, by the turn's parity


def for_lanes(function: Any) -> Any:
    """Marks a function that codec.gpu_port compiles."""
    function.for_lanes = True
    return function


class Room(NamedTuple):
    """One tile's memory, as codec.wavetile.Room, but that all activations and gradients are int32.

    `hidden` int32[pairs * 16]: pairs of int16, the first layer's and then the second's; `master` int32[2 pairs * 16]
    as there; `head` int32[pairs * 16], outputs innermost: of weights 2j and 2j + 1 (w >> 4, w >> 4, w & 15, w & 15), an
    int8 each; `pads` int32[17 * 16], `counts` int64[3], `state` int64[16].
    """

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
    gradient: NDArray[np.int32]
    hidden: NDArray[np.int32]
    mix: NDArray[np.int32]
    step: NDArray[np.int32]
    pads: NDArray[np.int32]
    where: NDArray[np.int32]
    cells: NDArray[np.int32]
    head: NDArray[np.int32]
    master: NDArray[np.int32]
    parts: NDArray[np.float64]
    counts: NDArray[np.int64]
    state: NDArray[np.int64]


# --- the way to the law ---


@for_lanes
def enter(room: Any, rows: Any, columns: Any, period: Any) -> None:
    """Before the first step: where the lane is. Lane l is SKEW l steps behind lane 0."""
    lane = lane_number()
    room.step[PHASE * LANES + lane] = period - SKEW * lane if lane > 0 else 0
    room.step[ROW * LANES + lane] = lane - LANES if lane > 0 else 0


@for_lanes
def look(room: Any, law: Any, at: Any, step: Any, rows: Any, columns: Any) -> None:
    """Whether the lane has a sample; its neighbours, predictions and the network's packed inputs."""
    lane = lane_number()
    phase, row = room.step[PHASE * LANES + lane], room.step[ROW * LANES + lane]
    room.step[ACTIVE * LANES + lane] = 1 if phase < columns and row >= 0 and row < rows else 0
    for j in range(FIRST_OPTIONAL, MOST_INPUTS):  # what `view` does not write is 0, and `x` lay under other arrays
        store(room.x, j * LANES, splat(0))
    mean, s0 = view(room, at, step, law)
    store(room.step, MEAN * LANES, mean)
    store(room.step, SCALE * LANES, s0)


@for_lanes
def hidden_layer(x: Any, net: Any, at: Any, quads: Any, blocks: Any, out: Any, pairs: Any, first: Any, stride: Any
                 ) -> None:  # fmt: skip
    """Blocks first, first + stride, .. of a hidden layer, packed in pairs, into `out` from pair `pairs` on.

    `x` int32[2 quads * 16], pairs of int16; `net` from `at` on: per block and quad of inputs 8 int32 of 4 int8; then
    biases, then gains.
    """
    bias = at + blocks * quads * BLOCK
    for block in range(first, blocks, stride):
        o = bias + block * BLOCK
        s0, s1, s2, s3 = splat_at(net, o), splat_at(net, o + 1), splat_at(net, o + 2), splat_at(net, o + 3)
        s4, s5, s6, s7 = splat_at(net, o + 4), splat_at(net, o + 5), splat_at(net, o + 6), splat_at(net, o + 7)
        p = at + block * quads * BLOCK
        for j in range(quads):
            low, high = load(x, 2 * j * LANES), load(x, (2 * j + 1) * LANES)
            s0, s1 = dot4(s0, low, high, splat_at(net, p)), dot4(s1, low, high, splat_at(net, p + 1))
            s2, s3 = dot4(s2, low, high, splat_at(net, p + 2)), dot4(s3, low, high, splat_at(net, p + 3))
            s4, s5 = dot4(s4, low, high, splat_at(net, p + 4)), dot4(s5, low, high, splat_at(net, p + 5))
            s6, s7 = dot4(s6, low, high, splat_at(net, p + 6)), dot4(s7, low, high, splat_at(net, p + 7))
            p += BLOCK
        o += blocks * BLOCK
        q = (pairs + block * (BLOCK // 2)) * LANES
        store(out, q, pack(squashed(s0, splat_at(net, o)), squashed(s1, splat_at(net, o + 1))))
        store(out, q + 16, pack(squashed(s2, splat_at(net, o + 2)), squashed(s3, splat_at(net, o + 3))))
        store(out, q + 32, pack(squashed(s4, splat_at(net, o + 4)), squashed(s5, splat_at(net, o + 5))))
        store(out, q + 48, pack(squashed(s6, splat_at(net, o + 6)), squashed(s7, splat_at(net, o + 7))))


@for_lanes
def dot4(total: Any, low: Any, high: Any, weights: Any) -> Any:
    """total + four products: pairs of int16 with four int8."""
    return dot2_upper(dot2_lower(total, low, weights), high, weights)


@for_lanes
def squashed(total: Any, gain: Any) -> Any:
    """A hidden unit's activation."""
    return clamp(((total >> 3) * gain) >> 9, splat(0), splat(ACTIVATION_LIMIT))


@for_lanes
def head_sums(hidden: Any, pairs: Any, head: Any, biases: Any, outputs: Any, sums: Any, first: Any, stride: Any
              ) -> None:  # fmt: skip
    """Outputs first, first + stride, .. of the last layer (codec.wavehead.head_outputs)."""
    for o in range(first, outputs, stride):
        above, below = splat(0), splat(0)
        for j in range(pairs):
            a, w = load(hidden, j * LANES), splat_at(head, j * LANES + o)
            above, below = dot2_lower(above, a, w), dot2_upper(below, a, w)
        store(sums, o * LANES, splat_at(biases, o) + (above << 4) + below)


@for_lanes
def weigh(room: Any, law: Any) -> None:
    """The network's outputs become logistics."""
    mean, s0 = load(room.step, MEAN * LANES), load(room.step, SCALE * LANES)
    set_mixture(room.sums, law.components, mean, s0, law.highest << 6, room.mix)


# --- known samples: the encoder ---


@for_lanes
def note(room: Any, law: Any, step: Any, samples: Any, columns: Any, starts: Any, freqs: Any) -> None:
    """The sample, and where its slots begin and how many they are: int32[steps * 16] each, 0 slots for no sample."""
    lane = lane_number()
    freqs[step * LANES + lane] = 0
    if room.step[ACTIVE * LANES + lane] == 0:
        room.step[LEVEL * LANES + lane] = 0
        return
    level = splat(samples[room.step[ROW * LANES + lane] * columns + room.step[PHASE * LANES + lane]])
    low, high = interval(law, step)
    store(room.step, LEVEL * LANES, level)
    known_slots(room, level, low, high, law)
    starts[step * LANES + lane] = room.step[lane]
    freqs[step * LANES + lane] = room.step[LANES + lane]


@for_lanes
def push(room: Any, step: Any, raw: Any, samples: Any, columns: Any, period: Any, starts: Any, freqs: Any, begin: Any,
         states: Any) -> None:  # fmt: skip
    """A noted sample, its raw planes first, goes onto the lane's state; what falls out waits in room.step.

    Only lanes begin .. begin + states - 1.
    """
    lane = lane_number()
    room.step[NEED * LANES + lane] = 0
    freq = np.int64(freqs[step * LANES + lane])
    if lane < begin or lane >= begin + states or freq == 0:
        return
    state, need = room.state[lane - begin], 0
    if raw > 0:
        since = step - SKEW * lane
        row, phase = since // period * LANES + lane, since % period
        rest = np.int64(samples[row * columns + phase]) & ((np.int64(1) << raw) - 1)
        width = np.int64(PRECISION - raw)
        if (state >> (63 - raw)) > 0:
            room.step[WORD * LANES + lane] = state & 0xFFFFFFFF
            state, need = state >> 32, 1
        state = ((state >> width) << PRECISION) + (state & ((np.int64(1) << width) - 1)) + (rest << width)
    if (state >> (63 - PRECISION)) >= freq:
        room.step[(WORD + need) * LANES + lane] = state & 0xFFFFFFFF
        state, need = state >> 32, need + 1
    quotient, start = state // freq, np.int64(starts[step * LANES + lane])
    room.state[lane - begin] = (quotient << PRECISION) + (state - quotient * freq) + start
    room.step[NEED * LANES + lane] = need


@for_lanes
def drop(room: Any, words: Any, begin: Any, states: Any, turn: Any) -> None:
    """What fell out goes to `words` (uint32), the last lane's first: backwards, as it was pushed."""
    lane = lane_number()
    place, total = room.counts[turn & 1], np.int64(0)
    for other in range(begin + states - 1, begin - 1, -1):
        if other == lane:
            for j in range(room.step[NEED * LANES + lane]):
                words[place + total + j] = np.uint32(room.step[(WORD + j) * LANES + lane] & 0xFFFFFFFF)
        total += room.step[NEED * LANES + other]
    if lane == 0:
        room.counts[(turn + 1) & 1] = place + total


# --- samples to come: the decoder ---


@for_lanes
def search(room: Any, law: Any, step: Any, begin: Any, states: Any) -> None:
    """Find the lane's symbol and take it, and then its raw planes, off its state; how many words that asks for.

    Only lanes begin .. begin + states - 1. Whether the raw planes ask for a word does not depend on the first word:
    it depends on whether the state is 2^(31 + raw) or more, and a word changes only its lower 32 bits.
    """
    lane = lane_number()
    room.step[NEED * LANES + lane] = 0
    if lane < begin or lane >= begin + states or room.step[ACTIVE * LANES + lane] == 0:
        return
    low, high = interval(law, step)
    first, last = low >> law.raw, high >> law.raw
    base = below(first << law.raw, law.components, room.mix)
    scale = slot_scale(first, last, law.raw, base, law.components, room.mix)
    state = room.state[lane - begin]
    target = splat(state & (TOTAL - 1))
    symbol, start, end = find_symbols(target, first, last, law.raw, base, scale, law.components, room.mix)
    begins = plain(start)
    state = (plain(end) - begins) * (state >> PRECISION) + (state & (TOTAL - 1)) - begins
    store(room.step, SYMBOL * LANES, symbol)
    room.state[lane - begin] = state
    need = 1 if state < LOWEST else 0
    if law.raw > 0:
        whole = state << 32 if need > 0 else state
        need += 1 if (whole >> (31 + law.raw)) == 0 else 0
    room.step[NEED * LANES + lane] = need


@for_lanes
def refill(room: Any, law: Any, words: Any, samples: Any, columns: Any, begin: Any, states: Any, turn: Any) -> None:
    """The lane's words, those of the lanes before it first; its level."""
    lane = lane_number()
    place, total = room.counts[turn & 1], np.int64(0)
    mine = place
    for other in range(begin, begin + states):
        mine = place + total if other == lane else mine
        total += room.step[NEED * LANES + other]
    if lane == 0:
        room.counts[(turn + 1) & 1] = place + total
    if lane < begin or lane >= begin + states:
        return
    if room.step[ACTIVE * LANES + lane] == 0:
        room.step[LEVEL * LANES + lane] = 0
        return
    state, level = room.state[lane - begin], np.int64(room.step[SYMBOL * LANES + lane]) << law.raw
    if mine + room.step[NEED * LANES + lane] > words.size:
        room.counts[FAILED] = 1
        state = np.int64(LOWEST)
    else:
        if state < LOWEST:
            state = (state << 32) | np.int64(words[mine])
            mine += 1
        if law.raw > 0:
            width = np.int64(PRECISION - law.raw)
            level |= (state & (TOTAL - 1)) >> width
            state = ((state >> PRECISION) << width) + (state & ((np.int64(1) << width) - 1))
            if state < LOWEST:
                state = (state << 32) | np.int64(words[mine])
    room.state[lane - begin] = state
    if level > law.highest:  # raw planes of a hostile stream
        room.counts[FAILED], level = 1, np.int64(law.highest)
    room.step[LEVEL * LANES + lane] = level
    samples[room.step[ROW * LANES + lane] * columns + room.step[PHASE * LANES + lane]] = level


# --- after the sample ---


@for_lanes
def settle(room: Any, at: Any, step: Any) -> None:
    """The sample is a neighbour from now on, and its predictions' errors are known."""
    level = load(room.step, LEVEL * LANES)
    store(room.level, at, level)
    mark_errors(room.error, step, level, room.guess, load(room.step, MEAN * LANES))


@for_lanes
def put_by(room: Any, at: Any, step: Any, late: Any) -> None:
    """The last lanes' samples and errors are put by; lane i does slot i (codec.wavetile.keep, first half)."""
    lane, here = lane_number(), step % (late + 1)
    if lane < LEVEL_ABOVE:
        room.late_level[here * LEVEL_ABOVE + lane] = room.level[at + LANES - LEVEL_ABOVE + lane]
    last = ring(step, ERROR_ABOVE) + LANES
    for j in range(ERROR_ABOVE):
        room.late_error[(here * SLOTS + lane) * ERROR_ABOVE + j] = room.error[last + lane * ERROR_STRIDE + j]


@for_lanes
def bring_back(room: Any, at: Any, step: Any, late: Any) -> None:
    """Lanes -4..-1 get what lanes 12..15 had `late` steps ago (codec.wavetile.keep, second half)."""
    lane, there = lane_number(), (step + 1) % (late + 1)
    if lane < LEVEL_ABOVE:
        room.level[at - LEVEL_ABOVE + lane] = room.late_level[there * LEVEL_ABOVE + lane]
    above = ring(step, ERROR_ABOVE)
    for j in range(ERROR_ABOVE):
        room.error[above + lane * ERROR_STRIDE + j] = room.late_error[(there * SLOTS + lane) * ERROR_ABOVE + j]


@for_lanes
def pad_read(room: Any, at: Any, step: Any, period: Any) -> None:
    """What a lane outside its rows will have: what it had, or 5 steps before a row the row above's first sample."""
    lane = lane_number()
    active = room.step[ACTIVE * LANES + lane] != 0
    entering = room.step[PHASE * LANES + lane] == period - SKEW
    from_level, from_error = at, ring(step, 0)
    if not active:
        from_level = at - 1 if entering else at - LEVEL_STRIDE
        from_error = ring(step, 0) - 1 if entering else ring(step - 1, 0)
    store(room.pads, SLOTS * LANES, load(room.level, from_level))
    for i in range(SLOTS):
        store(room.pads, i * LANES, load(room.error, from_error + i * ERROR_STRIDE))


@for_lanes
def pad_write(room: Any, at: Any, step: Any) -> None:
    """The lane has it."""
    store(room.level, at, load(room.pads, SLOTS * LANES))
    for i in range(SLOTS):
        store(room.error, ring(step, 0) + i * ERROR_STRIDE, load(room.pads, i * LANES))


@for_lanes
def advance(room: Any, period: Any) -> None:
    """The lane's next sample, or 16 rows below."""
    lane = lane_number()
    phase = room.step[PHASE * LANES + lane] + 1
    if phase >= period:
        phase = 0
        room.step[ROW * LANES + lane] += LANES
    room.step[PHASE * LANES + lane] = phase


@for_lanes
def raise_row(room: Any, at: Any, step: Any) -> None:
    """Row 0's new sample and its errors are repeated above it; lane i does slot i (codec.wavetile.raise_first_row)."""
    lane = lane_number()
    if lane <= LEVEL_ABOVE:
        for ahead in range(-SKEW if step == 0 else 0, SKEW + 1 if lane > 0 else 0):
            room.level[at + (ahead - SKEW * lane) * LEVEL_STRIDE - lane] = room.level[at]
    error = room.error[ring(step, 0) + lane * ERROR_STRIDE]
    for d in range(ERROR_ABOVE + 1):
        for ahead in range(-2 if step == 0 else 0, 4 if d > 0 else 0):
            room.error[ring(step + ahead - SKEW * d, d) + lane * ERROR_STRIDE] = error


@for_lanes
def all_active(room: Any) -> Any:
    """Whether every lane has a sample in this step."""
    count = 0
    for lane in range(LANES):
        count += room.step[ACTIVE * LANES + lane]
    return count == LANES
