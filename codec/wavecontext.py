"""Adaptive contexts of the learned local path: local error scales and biases learnt within the tile, 16 lanes at once.

Cells (sum, count) only ever have things added, and are halved when full: the order of the lanes never matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.lanes import LANES, floor, gather, load, select, splat, store, to_double, to_int, vabs, vmax, vmin
from codec.wavelaw import clamp, log256, ring, signed_log
from codec.wavetables import ERROR_CAP, ERROR_STRIDE, INPUT_LIMIT, NEAR_CAP, SIGNED, SKEW, inner

SCALE_TABLES, SCALE_CELLS, BIAS_CELLS = 3, 1024, 2048
CELLS = SCALE_TABLES * SCALE_CELLS + BIAS_CELLS
CONTEXTS = 4
SCALE_LIMIT, BIAS_LIMIT, BIAS_PRIOR = 64, 128, 8
ACTIVITY_CAP = 1 << 20


def fresh_cells() -> NDArray[np.int32]:
    """int32[2 * CELLS]: all sums, the scale tables' first (1/64 level), then all counts."""
    first = np.repeat(np.floor(np.exp2(np.arange(32) / 2) * 4 / 3).astype(np.int32) + 1, 32)
    sums = np.concatenate([np.tile(2 * first, SCALE_TABLES), np.zeros(BIAS_CELLS, np.int32)])
    counts = np.zeros(CELLS, np.int32)
    counts[: SCALE_TABLES * SCALE_CELLS] = 2
    return np.concatenate([sums, counts]).astype(np.int32)


@inner
def half_octave(v: Any) -> Any:
    """2 log2(v) in 0..31 for v >= 1."""
    return vmin(log256(vmin(v, splat(NEAR_CAP))) >> 7, splat(31))


@inner
def bit(mask: Any, place: int) -> Any:
    """1 << place where the mask has a 1, else 0."""
    return select(mask, splat(1 << place), splat(0))


@inner
def context_inputs(error: Any, step: Any, guess: Any, activity: Any, energy: Any, mean: Any, s0: Any, cells: Any,
                   where: Any, x: Any, first: Any) -> None:  # fmt: skip
    """Choose the samples' cells, into `where` int32[4 * 16], and give the inputs first..first + 4 from them.

    `energy`: logarithm of the blend's local error, as in the blend.
    """
    ls = log256(s0)
    p = SIGNED * ERROR_STRIDE
    west, north = load(error, ring(step - 1, 0) + p), load(error, ring(step - SKEW, 1) + p)
    p13 = load(guess, 13 * LANES)
    energy = clamp((energy - 1536) >> 7, splat(0), splat(31))
    spread = vabs(p13 - mean) + vabs(load(guess, 8 * LANES) - mean) + vabs(load(guess, 12 * LANES) - mean)
    spread = half_octave((spread >> 2) + 1)
    gradient = half_octave((vmin(activity, splat(ACTIVITY_CAP)) << 3) + 1)
    recent = half_octave(vabs(west) + vabs(north) + 8)
    store(where, 0, (energy << 5) + spread)
    store(where, LANES, (energy << 5) + gradient + SCALE_CELLS)
    store(where, 2 * LANES, (spread << 5) + recent + 2 * SCALE_CELLS)
    texture = bit(west > 0, 4) + bit(north > 0, 5) + bit(p13 > mean, 6) + bit(load(guess, LANES) > mean, 7)
    texture = texture + bit(load(guess, 0) > mean, 8) + bit(load(guess, 3 * LANES) > mean, 9)
    texture = texture + bit(load(guess, 6 * LANES) > mean, 10) + (energy >> 1)
    store(where, 3 * LANES, texture + SCALE_TABLES * SCALE_CELLS)
    for table in range(SCALE_TABLES):
        cell = load(where, table * LANES)
        total, count = gather(cells, cell) + 1, gather(cells, cell + CELLS)
        size = select(total < (1 << 24), log256(total), log256(total >> 8) + 2048)
        far = (size - log256(count) - ls) >> 1
        store(x, (first + table) * LANES, clamp(far, splat(-INPUT_LIMIT), splat(INPUT_LIMIT)))
    cell = load(where, 3 * LANES)
    count = gather(cells, cell + CELLS)
    bias = to_int(floor(to_double(gather(cells, cell)) / to_double(count + BIAS_PRIOR)))
    bias = signed_log(bias, s0, ls) << 1
    store(x, (first + 3) * LANES, clamp(bias, splat(-INPUT_LIMIT), splat(INPUT_LIMIT)))
    store(x, (first + 4) * LANES, vmin(log256(count + 1) >> 2, splat(256)))


@inner
def learn_contexts(cells: Any, where: Any, live: Any, level: Any, mean: Any, spare: Any) -> None:
    """Add the live lanes' samples to their cells, then halve those that are full. `spare` int32[16 or more]."""
    error = vmax(vmin((level << 6) - mean, splat(ERROR_CAP)), splat(-ERROR_CAP))
    store(spare, 0, error)
    for lane in range(LANES):
        if (live >> lane) & 1:
            for table in range(SCALE_TABLES):
                cell = np.int64(where[table * LANES + lane])
                cells[cell] += abs(spare[lane])
                cells[cell + CELLS] += 1
            cell = np.int64(where[3 * LANES + lane])
            cells[cell] += spare[lane]
            cells[cell + CELLS] += 1
    for table in range(CONTEXTS):
        limit = SCALE_LIMIT if table < SCALE_TABLES else BIAS_LIMIT
        for lane in range(LANES):
            cell = np.int64(where[table * LANES + lane])
            if cells[cell + CELLS] >= limit:  # only cells just touched can be
                cells[cell] >>= 1
                cells[cell + CELLS] >>= 1
