"""The law of 16 samples, mixtures of logistics given by the network, and the search for the symbol of a slot.

Whatever the decoder depends on is an integer; float64 only ever holds integers below 2^53 and exact quotients' floors.
"""

from __future__ import annotations

from typing import Any

from codec.lanes import (
    LANES,
    bits_of,
    floor,
    gather,
    load,
    select,
    splat,
    store,
    to_double,
    to_int,
    vmax,
    vmin,
)
from codec.wavelaw import clamp, log256, power
from codec.wavetables import (
    ERROR_CAP,
    INVERSE,
    MASS_SHIFT,
    OFFSET_LIMIT,
    REACH,
    RISE,
    SCALE_BIAS,
    SCALE_BITS,
    SCALES,
    SLOPE,
    SLOT_SHIFT,
    Z_END,
    Z_PLACE,
    Z_SHIFT,
    inner,
)

TOTAL = 1 << 28
CENTRE, REACHES, RATE, WEIGHT, FIELDS = 0, 1, 2, 3, 4  # rows of a component in `mix`
PATIENCE = 9  # probes of the search before it only halves


@inner
def set_mixture(sums: Any, components: Any, mean: Any, s0: Any, top: Any, mix: Any) -> None:
    """The logistics that the network's outputs describe, into `mix` int32[components * 4 * 16]."""
    q0 = (log256(s0) >> 4) + SCALE_BIAS
    best = load(sums, 0)
    for k in range(1, components):
        best = vmax(best, load(sums, k * LANES))
    unit = vmin(s0, splat(ERROR_CAP))
    for k in range(components):
        at = k * FIELDS * LANES
        offset = clamp(load(sums, (components + k) * LANES) >> 5, splat(-OFFSET_LIMIT), splat(OFFSET_LIMIT))
        store(mix, at + CENTRE * LANES, clamp(mean + ((offset * unit) >> 7), splat(0), splat(top)))
        q = clamp(q0 + (load(sums, (2 * components + k) * LANES) >> 8), splat(0), splat(SCALES - 1))
        store(mix, at + REACHES * LANES, gather(REACH, q))
        store(mix, at + RATE * LANES, gather(INVERSE, q))
        store(mix, at + WEIGHT * LANES, power((best - load(sums, k * LANES)) >> 4) + 1)


@inner
def below(level: Any, components: Any, mix: Any) -> Any:
    """C(level): the mixture's mass below the lower edge of `level` (D)."""
    edge = (level << 6) - 32
    total = to_double(splat(0))
    for k in range(components):
        at = k * FIELDS * LANES
        reach = load(mix, at + REACHES * LANES)
        far = clamp(edge - load(mix, at + CENTRE * LANES), splat(0) - reach, reach)
        place = clamp(((far * load(mix, at + RATE * LANES)) >> Z_SHIFT) + Z_PLACE, splat(0), splat(Z_END))
        entry = place >> 8
        mass = gather(RISE, entry) + ((gather(SLOPE, entry) * (place & 255)) >> 8)
        total = total + to_double(load(mix, at + WEIGHT * LANES)) * to_double(mass)
    return floor(total * (1.0 / (1 << MASS_SHIFT)))


@inner
def slot(symbol: Any, first: Any, raw: Any, base: Any, scale: Any, components: Any, mix: Any) -> Any:
    """S(symbol): where its slots begin, of 2^28."""
    mass = below(symbol << raw, components, mix) - base + to_double(symbol - first)
    return to_int(floor(mass * scale * (1.0 / (1 << SLOT_SHIFT))))


@inner
def slot_scale(first: Any, last: Any, raw: Any, base: Any, components: Any, mix: Any) -> Any:
    """2^52 over the mass of all symbols, rounded down (D): the float64 quotient has the floor of the true one."""
    span = below((last + 1) << raw, components, mix) - base + to_double(last + 1 - first)
    return floor(float(1 << SCALE_BITS) / span)


@inner
def find_symbols(target: Any, first: Any, last: Any, raw: Any, base: Any, scale: Any, guess: Any, step: Any,
                 components: Any, mix: Any) -> Any:  # fmt: skip
    """The symbols whose slots hold `target`, with where their slots begin and end (three V).

    A bracket [bottom, top) holds the symbol; it is probed first around `guess`, then where a line between its ends
    meets the target, at last in its middle. Which probes are made is no part of the law.
    """
    bottom, top = first, last + 1
    low, high = splat(0), splat(TOTAL)
    probe = guess
    for turn in range(64):
        if bits_of(top - bottom > 1) == 0:
            break
        # A lane that has finished probes its bottom, which changes nothing.
        probe = vmax(vmin(probe, top - 1), bottom + select(top - bottom > 1, splat(1), splat(0)))
        mark = slot(probe, first, raw, base, scale, components, mix)
        under = mark <= target
        bottom, low = select(under, probe, bottom), select(under, mark, low)
        top, high = select(under, top, probe), select(under, high, mark)
        if turn < 2:
            probe = probe + select(under, step, splat(0) - step)
            step = step << 1
        elif turn % 3 == 0 or turn > PATIENCE:
            probe = bottom + ((top - bottom) >> 1)
        else:
            part = to_double(target - low) / to_double(high - low)
            probe = bottom + to_int(part * to_double(top - bottom) + 0.5)
    return bottom, low, high
