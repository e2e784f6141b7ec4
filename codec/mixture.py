"""The law of a sample: an adaptive mixture of logistics and spikes, truncated to G's interval (numba kernels).

docs/bitstream.md, sections 5.2 to 5.4. Integers only in whatever the decoder depends on; the survey that helps the
encoder to choose k and the raw planes uses floats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from codec.prediction import BLEND, FINAL, PREDICTORS
from codec.rans import DECODE, PRECISION, STATE, TOTAL, kernel, transfer
from codec.tables import FIRST_SHARES, LOGISTIC, Z_LAST, Z_LIMIT, Z_STEPS

CENTRES, WIDTHS, SPIKES = 3, 5, 4
LAWS = CENTRES * WIDTHS
COMPONENTS = LAWS + SPIKES
FIRST_SPIKE = 200
ERROR_CAP = 1 << 20
SHARE_RATE, SHARE_FLOOR = 3, 32
RAW_CHOICES = 4
SPLIT_CHOICES = 5  # values of k that the survey looks at


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
def fresh_shares() -> Any:
    """First weights of the components: int64[32 x 8, 15]."""
    shares = np.zeros((768, COMPONENTS), np.int64)
    shares[:] = FIRST_SPIKE
    for place in range(768):
        for j in range(LAWS):
            shares[place, j] = FIRST_SHARES[j % WIDTHS]
    return shares


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
