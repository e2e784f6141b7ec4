"""The local path: every sample given all of G, by blended predictors and an adaptive mixture of logistics (numba).

The law of docs/bitstream.md, section 5. Integer arithmetic only in whatever the decoder depends on; the survey that
helps the encoder to choose k and the raw planes uses floats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from codec.rans import DECODE, FAILED, PRECISION, STATE, TOTAL, kernel, transfer
from codec.tables import (
    FIRST_ERROR,
    FIRST_SHARES,
    INVERSE_SCALE,
    LOG2,
    LOGISTIC,
    PAD,
    SCALE_HIGHEST,
    SCALE_LOWEST,
    SCALE_OFFSETS,
    TOP,
    WEIGHT,
    Z_LAST,
    Z_LIMIT,
    Z_STEPS,
)

CENTRES, WIDTHS, SPIKES = 3, 5, 4
LAWS = CENTRES * WIDTHS
COMPONENTS = LAWS + SPIKES
FIRST_SPIKE = 200
PREDICTORS = 14
FINAL, BLEND = 15, 14  # slots of the final and the blended prediction among the errors
ERROR_CAP = 1 << 20
BIAS_WINDOW, BIAS_PRIOR = 128, 8
SCALE_MEMORY = 60
SHARE_RATE, SHARE_FLOOR = 3, 32
RAW_CHOICES = 4
SPLIT_CHOICES = 5  # values of k that the survey looks at


@kernel
def log16(number: Any) -> Any:
    """About 16 log2(number) for 0 <= number < 2^28, from the table's leading 12 bits."""
    if number < 4096:
        return LOG2[number]
    if number < (1 << 20):
        return LOG2[number >> 8] + 128
    return LOG2[min(number >> 16, 4095)] + 256


@kernel
def logistic(offset: Any, inverse: Any) -> Any:
    """2^26 F((offset / 64) / scale), piecewise linear between table entries."""
    place = ((offset * inverse) >> 13) + (Z_LIMIT * Z_STEPS << 8)
    if place <= 0:
        return 0
    entry = place >> 8
    if entry >= Z_LAST:
        return LOGISTIC[Z_LAST]
    return LOGISTIC[entry] + (((LOGISTIC[entry + 1] - LOGISTIC[entry]) * (place & 255)) >> 8)


@kernel
def cumulative(level: Any, centre: Any, inverse: Any, share: Any) -> Any:
    """Mixture mass below `level` (its lower bin edge), of about 2^26."""
    edge = (level << 6) - 32
    total = np.int64(0)
    for c in range(CENTRES):
        offset = edge - centre[c]
        for s in range(WIDTHS):
            total += share[c * WIDTHS + s] * logistic(offset, inverse[s])
    for j in range(SPIKES):
        if edge > centre[CENTRES + j]:
            total += share[LAWS + j] << 26
    return total >> 16


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
def update_shares(share: Any, mass: Any, total: Any) -> None:
    """Move the components' weights towards their part in the sample just coded."""
    rough = (total >> 16) + 1
    if rough <= 16:
        return
    reciprocal = (np.int64(1) << 46) // rough
    for j in range(COMPONENTS):
        part = ((mass[j] >> 16) * reciprocal) >> 30
        share[j] = max(share[j] + ((part - share[j]) >> SHARE_RATE), SHARE_FLOOR)


@kernel
def find_level(target: Any, low: Any, high: Any, base: Any, span: Any, scale: Any, start: Any, step: Any, raw: Any,
               centre: Any, inverse: Any, share: Any) -> Any:  # fmt: skip
    """The symbol whose slots hold `target`, in [low, high] (units of 2^raw levels), by widening and halving."""
    bottom, top = low, high + 1  # cumulative(bottom) <= target < cumulative(top)
    probe = min(max(start, low + 1), high)
    while top - bottom > 1:
        mass = cumulative(probe << raw, centre, inverse, share) - base + probe - low
        if (mass * scale) >> 33 <= target:
            bottom = probe
            probe = probe + step
        else:
            top = probe
            probe = probe - step
        step *= 2
        if probe <= bottom or probe >= top:
            probe = (bottom + top) >> 1
            step = max(1, (top - bottom) >> 2)
    return bottom


@kernel
def survey_sample(level: Any, highest: Any, bits: Any, centre: Any, inverse: Any, share: Any, gains: Any) -> None:
    """Add to gains[k] what knowing x >> k saves of this sample, to gains[32 + r] the cost with r raw planes (bits).

    k from bits - 1 down, r below min(RAW_CHOICES, bits); with `bits` = 0 only gains[32].
    """
    whole = cumulative(highest + 1, centre, inverse, share) - cumulative(0, centre, inverse, share) + highest + 1
    for k in range(max(1, bits - SPLIT_CHOICES), bits):
        low = (level >> k) << k
        high = min(low + (1 << k), highest + 1)
        part = cumulative(high, centre, inverse, share) - cumulative(low, centre, inverse, share) + high - low
        gains[k] += math.log2(whole / part)
    for raw in range(max(1, min(RAW_CHOICES, bits))):
        low = (level >> raw) << raw
        high = low + (1 << raw)
        part = cumulative(high, centre, inverse, share) - cumulative(low, centre, inverse, share) + 1
        gains[32 + raw] += math.log2(whole / part) + raw


@kernel
def code_sample(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, level: Any, low: Any, high: Any, raw: Any,
                centre: Any, inverse: Any, share: Any, widest: Any) -> Any:  # fmt: skip
    """Code one sample known to lie in [low, high]: the symbol level >> raw by the truncated law, then `raw` bits."""
    first, last = low >> raw, high >> raw
    symbol = level >> raw
    if last > first:
        base = cumulative(first << raw, centre, inverse, share)
        span = cumulative((last + 1) << raw, centre, inverse, share) - base + last - first + 1
        scale = (np.int64(1) << (PRECISION + 33)) // span
        if io[0] == DECODE:
            target = io[STATE] & (TOTAL - 1)
            symbol = find_level(
                target, first, last, base, span, scale, centre[0] >> (6 + raw), 1 + (widest >> (6 + raw)), raw,
                centre, inverse, share,
            )  # fmt: skip
        begin = ((cumulative(symbol << raw, centre, inverse, share) - base + symbol - first) * scale) >> 33
        end = np.int64(TOTAL)
        if symbol < last:
            end = ((cumulative((symbol + 1) << raw, centre, inverse, share) - base + symbol + 1 - first) * scale) >> 33
        transfer(io, words, starts, freqs, cost, begin, end - begin)
    else:
        symbol = np.int64(first)
    if raw == 0:
        return symbol
    shift = PRECISION - raw
    rest = level & ((1 << raw) - 1)
    if io[0] == DECODE:
        rest = (io[STATE] & (TOTAL - 1)) >> shift
    transfer(io, words, starts, freqs, cost, rest << shift, np.int64(1) << shift)
    return (symbol << raw) | rest


@kernel
def fresh_contexts() -> Any:
    """First state of the scale contexts: int64[3, 1024, 2] of (mean error in 1/512 level, count)."""
    state = np.zeros((3, 1024, 2), np.int64)
    for table in range(3):
        for place in range(1024):
            state[table, place, 0] = FIRST_ERROR[place >> 5]
    return state


@kernel
def fresh_shares() -> Any:
    """First weights of the components: int64[32 x 8, 15]."""
    shares = np.zeros((768, COMPONENTS), np.int64)
    shares[:] = FIRST_SPIKE
    for place in range(768):
        for j in range(LAWS):
            shares[place, j] = FIRST_SHARES[j % WIDTHS]
    return shares


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


@kernel
def code_local(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, buf: Any, upper: Any, highest: Any, k: Any,
               raw: Any, thresholds: Any, taps: Any, gains: Any) -> None:  # fmt: skip
    """Code a tile in raster order, given G.

    `buf` int32[rows + TOP, columns + 2 PAD]: the tile inside its padding; its first TOP rows and the left padding of
    its first row hold the anchor. While decoding the samples are written into it. `upper` int32[rows, columns] is G.
    `taps` int32[sets, 35]. With gains.size > 0 nothing is coded: the survey is summed into `gains`.
    """
    rows, columns = upper.shape
    sums = np.zeros(taps.shape[0], np.int64)
    for row in range(taps.shape[0]):
        sums[row] = taps[row].sum()
    errors = np.zeros((3, columns + 2 * PAD, 16), np.int32)
    signed = np.zeros((2, columns + 2 * PAD), np.int64)
    guess, near, logs = np.zeros(16, np.int64), np.zeros(16, np.int64), np.zeros(16, np.int64)
    centre, inverse = np.zeros(CENTRES + SPIKES, np.int64), np.zeros(WIDTHS, np.int64)
    mass, context = np.zeros(COMPONENTS, np.int64), np.zeros(5, np.int64)
    state, shares, bias = fresh_contexts(), fresh_shares(), np.zeros((2048, 2), np.int64)
    for row in range(rows):
        y = row + TOP
        e0, e1, e2 = errors[row % 3], errors[(row + 2) % 3], errors[(row + 1) % 3]
        s0, s1 = signed[row % 2], signed[(row + 1) % 2]
        for column in range(columns):
            p = column + PAD
            activity = predict(buf, y, p, highest, thresholds, taps, sums, guess)
            mean = blend(e0, e1, e2, p, guess, near, logs)
            scale_contexts(near, guess, mean, activity, s0[p - 1], s1[p], context)
            cell = bias[bias_context(buf, y, p, mean, guess[13], s0[p - 1], s1[p], context[4])]
            centre[0] = min(max(mean + cell[0] // (cell[1] + BIAS_PRIOR), 0), highest << 6)
            centre[1], centre[2], centre[3], centre[4] = guess[13], mean, guess[0], guess[1]
            centre[5], centre[6] = guess[3], np.int64(buf[y - 1, p - 1]) << 6
            logsum = np.int64(0)
            for table in range(3):
                logsum += log16(state[table, context[table], 0])
            q: Any = min(max(logsum // 6 - 28, SCALE_LOWEST), SCALE_HIGHEST)
            for s in range(WIDTHS):
                inverse[s] = INVERSE_SCALE[q + SCALE_OFFSETS[s]]
            share = shares[((q >> 3) * 8 + context[3]) * 3 + flatness(buf, y, p)]
            level = np.int64(buf[y, p])
            if gains.size:
                survey_sample(level, highest, k, centre, inverse, share, gains)
            else:
                low = np.int64(upper[row, column]) << k
                high = min(low + (1 << k) - 1, highest)
                level = code_sample(
                    io, words, starts, freqs, cost, level, low, high, raw, centre, inverse, share,
                    (np.int64(1) << (q >> 3)),
                )  # fmt: skip
                buf[y, p] = level
            mark_sample(level, e0[p], guess, mean, centre, inverse, share, mass)
            s0[p] = (level << 6) - mean
            learn(state, context, abs((level << 6) - centre[0]) * 8)
            cell[0] += s0[p]
            cell[1] += 1
            if cell[1] >= BIAS_WINDOW:
                cell[0] >>= 1
                cell[1] >>= 1
        if io[FAILED]:
            return
        pad_row(buf, y, columns, e0, e2)


@kernel
def mark_sample(level: Any, row: Any, guess: Any, mean: Any, centre: Any, inverse: Any, share: Any, mass: Any) -> None:
    """Record the errors of all predictions of a known sample and update the components' weights."""
    exact = level << 6
    for i in range(PREDICTORS):
        row[i] = min(abs(exact - guess[i]) >> 2, ERROR_CAP)
    row[BLEND] = min(abs(exact - mean) >> 2, ERROR_CAP)
    row[FINAL] = min(abs(exact - centre[0]) >> 2, ERROR_CAP)
    total = np.int64(0)
    for c in range(CENTRES):
        offset = exact - 32 - centre[c]
        for s in range(WIDTHS):
            part = logistic(offset + 64, inverse[s]) - logistic(offset, inverse[s])
            mass[c * WIDTHS + s] = share[c * WIDTHS + s] * part
            total += share[c * WIDTHS + s] * part
    for j in range(SPIKES):
        part = share[LAWS + j] << 26 if exact == centre[CENTRES + j] else 0
        mass[LAWS + j] = part
        total += part
    update_shares(share, mass, total)
