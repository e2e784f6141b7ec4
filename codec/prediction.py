"""Predictions of a sample from its causal neighbours, and the contexts that they give (numba kernels).

docs/bitstream.md, sections 5.1 and 5.2. Integers only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codec.rans import kernel
from codec.tables import FIRST_ERROR, LOG2, PAD, WEIGHT

PREDICTORS = 14
FINAL, BLEND = 15, 14  # slots of the final and the blended prediction among the errors
SCALE_MEMORY = 60


@kernel
def log16(number: Any) -> Any:
    """About 16 log2(number) for 0 <= number < 2^28, from the table's leading 12 bits."""
    if number < 4096:
        return LOG2[number]
    if number < (1 << 20):
        return LOG2[number >> 8] + 128
    return LOG2[min(number >> 16, 4095)] + 256


@kernel
def class_of(activity: Any, thresholds: Any) -> Any:
    """Number of thresholds below the activity."""
    out = 0
    while out < thresholds.size and activity > thresholds[out]:
        out += 1
    return out


@kernel
def predict(buf: Any, y: Any, p: Any, highest: Any, thresholds: Any, taps: Any, sums: Any, out: Any) -> Any:
    """The 14 predictions of the sample at buffer row y, column p (1/64 level) into `out`; returns the activity."""
    r0, r1, r2, r3, r4 = buf[y], buf[y - 1], buf[y - 2], buf[y - 3], buf[y - 4]
    w, n, nw, ne = np.int64(r0[p - 1]), np.int64(r1[p]), np.int64(r1[p - 1]), np.int64(r1[p + 1])
    ww, nn, nne = np.int64(r0[p - 2]), np.int64(r2[p]), np.int64(r2[p + 1])
    activity = abs(w - nw) + abs(n - nw) + abs(n - ne) + abs(w - ww) + abs(n - nn)
    low, high = min(w, n), max(w, n)
    med = low if nw >= high else (high if nw <= low else w + n - nw)
    out[0], out[1], out[2], out[3] = w << 6, n << 6, (w + n - nw) << 6, ne << 6
    out[4], out[5], out[6] = (w + ne - n) << 6, (2 * w - ww) << 6, (2 * n - nn) << 6
    out[7] = ((w + n) << 5) + ((ne - nw) << 4)
    out[8], out[9], out[10], out[11] = med << 6, (w + ne) << 5, (3 * (w + n) - 2 * nw) << 4, (n + ne - nne) << 6
    sets = taps.shape[0]
    if sets == 0:
        out[12], out[13] = out[7], out[8]
    else:
        own = class_of(activity, thresholds) + 1 if sets > 1 else 0
        first, second = taps[0], taps[own]
        a, b = np.int64(0), np.int64(0)
        for j in range(5):
            a += np.int64(r0[p - 5 + j]) * first[j]
            b += np.int64(r0[p - 5 + j]) * second[j]
        for j in range(9):
            a += np.int64(r1[p - 4 + j]) * first[5 + j] + np.int64(r2[p - 4 + j]) * first[14 + j]
            b += np.int64(r1[p - 4 + j]) * second[5 + j] + np.int64(r2[p - 4 + j]) * second[14 + j]
        for j in range(7):
            a += np.int64(r3[p - 3 + j]) * first[23 + j]
            b += np.int64(r3[p - 3 + j]) * second[23 + j]
        for j in range(5):
            a += np.int64(r4[p - 2 + j]) * first[30 + j]
            b += np.int64(r4[p - 2 + j]) * second[30 + j]
        out[12] = ((w + n) * (1024 - sums[0]) + 2 * a) >> 5
        out[13] = ((w + n) * (1024 - sums[own]) + 2 * b) >> 5
    for i in range(PREDICTORS):
        out[i] = min(max(out[i], 0), highest << 6)
    return activity


@kernel
def blend(e0: Any, e1: Any, e2: Any, p: Any, guess: Any, near: Any, logs: Any) -> Any:
    """Local errors of all 16 slots into `near` (sum of twelve, 1/16 level); the error-weighted mean prediction."""
    for i in range(16):
        near[i] = (
            2 * (e0[p - 1, i] + e1[p, i])
            + e1[p - 1, i]
            + e1[p + 1, i]
            + e0[p - 2, i]
            + e2[p, i]
            + e2[p + 1, i]
            + e2[p - 1, i]
            + e1[p + 2, i]
            + e1[p - 2, i]
        )
    least = np.int64(1 << 30)
    for i in range(PREDICTORS):
        logs[i] = log16(near[i] + 24)
        least = min(least, logs[i])
    total, mean = np.int64(0), np.int64(0)
    for i in range(PREDICTORS):
        weight = WEIGHT[min(logs[i] - least, 65)]
        total += weight
        mean += weight * guess[i]
    return (mean + (total >> 1)) // total


@kernel
def scale_contexts(near: Any, guess: Any, mean: Any, activity: Any, west: Any, north: Any, out: Any) -> None:
    """The three scale contexts of a sample into `out`, and in out[3] which centre has lately been better (0..7)."""
    energy = min(log16(near[BLEND] + 4) >> 3, 31)
    spread = abs(guess[13] - mean) + abs(guess[8] - mean) + abs(guess[12] - mean)
    spread = min(log16((spread >> 2) + 1) >> 3, 31)
    gradient = min(log16(8 * activity + 1) >> 3, 31)
    recent = min(log16(abs(west) + abs(north) + 8) >> 3, 31)
    out[0] = energy * 32 + spread
    out[1] = energy * 32 + gradient
    out[2] = spread * 32 + recent
    out[3] = min(max((log16(near[FINAL] + 4) - log16(near[13] + 4) + 8) >> 2, 0), 7)
    out[4] = energy


@kernel
def bias_context(buf: Any, y: Any, p: Any, mean: Any, second: Any, west: Any, north: Any, energy: Any) -> Any:
    """Texture (7 bits) and energy (4 bits) as the context of the bias."""
    r1 = buf[y - 1]
    context = (west > 0) | (north > 0) << 1 | (second > mean) << 2 | (np.int64(r1[p]) << 6 > mean) << 3
    context |= (np.int64(buf[y, p - 1]) << 6 > mean) << 4 | (np.int64(r1[p + 1]) << 6 > mean) << 5
    context |= ((2 * np.int64(r1[p]) - np.int64(buf[y - 2, p])) << 6 > mean) << 6
    return context | (energy >> 1) << 7


@kernel
def flatness(buf: Any, y: Any, p: Any) -> Any:
    """0: W and N differ; 1: they are equal; 2: W, N, NW and NE are all equal."""
    w, n = buf[y, p - 1], buf[y - 1, p]
    if w != n:
        return 0
    return 2 if n == buf[y - 1, p - 1] and n == buf[y - 1, p + 1] else 1


@kernel
def fresh_contexts() -> Any:
    """First state of the scale contexts: int64[3, 1024, 2] of (mean error in 1/512 level, count)."""
    state = np.zeros((3, 1024, 2), np.int64)
    for table in range(3):
        for place in range(1024):
            state[table, place, 0] = FIRST_ERROR[place >> 5]
    return state


@kernel
def learn(state: Any, context: Any, error: Any) -> None:
    """Move the mean errors of the three scale contexts towards `error` (1/512 level)."""
    for table in range(3):
        cell = state[table, context[table]]
        cell[1] = min(cell[1] + 1, SCALE_MEMORY)
        cell[0] += (error - cell[0]) // (cell[1] + 3)


@kernel
def pad_row(buf: Any, y: Any, columns: Any, errors: Any, following: Any) -> None:
    """Fill the padding right of row y and left of the next row, in the samples and in the errors."""
    for d in range(PAD):
        buf[y, PAD + columns + d] = buf[y, PAD + columns - 1]
        if y + 1 < buf.shape[0]:
            buf[y + 1, d] = buf[y, PAD]
        for i in range(16):
            following[d, i] = errors[PAD, i]
            errors[PAD + columns + d, i] = errors[PAD + columns - 1, i]
