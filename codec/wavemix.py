"""The law of 16 samples, mixtures of logistics given by the network, and the search for the symbol of a slot.

Whatever the decoder depends on is an integer; float64 only ever holds integers below 2^53 and exact quotients' floors.
"""

from __future__ import annotations

import math
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
from codec.tables import Z_LIMIT
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
    bare,
    inner,
)

TOTAL = 1 << 28
CENTRE, REACHES, RATE, WEIGHT, FIELDS = 0, 1, 2, 3, 4  # rows of a component in `mix`
WIDTH_UNIT = math.log(2) / (256 * Z_LIMIT)  # of REACH, for odds in 1/256 octave
PATIENCE = 8  # probes of the search before it only halves


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
def place_of(edge: Any, at: Any, mix: Any) -> Any:
    """Where an edge (1/64 level) lies in the logistic's table for the component at `at`, 1/256 entry."""
    reach = load(mix, at + REACHES * LANES)
    far = clamp(edge - load(mix, at + CENTRE * LANES), splat(0) - reach, reach)
    return clamp(((far * load(mix, at + RATE * LANES)) >> Z_SHIFT) + Z_PLACE, splat(0), splat(Z_END))


@inner
def height(place: Any) -> Any:
    """2^26 times the logistic function, between the table's entries."""
    entry = place >> 8
    return gather(RISE, entry) + ((gather(SLOPE, entry) * (place & 255)) >> 8)


@inner
def mass_and_slope(level: Any, components: Any, mix: Any) -> Any:
    """C(level), the mixture's mass below the lower edge of `level`, and about what a level adds to it there (D, D)."""
    edge = (level << 6) - 32
    total, rise = to_double(splat(0)), to_double(splat(0))
    for k in range(components):
        at = k * FIELDS * LANES
        place = place_of(edge, at, mix)
        weight, rate = to_double(load(mix, at + WEIGHT * LANES)), to_double(load(mix, at + RATE * LANES))
        total = total + weight * to_double(height(place))
        rise = rise + weight * to_double(gather(SLOPE, place >> 8)) * rate
    return floor(total * (1.0 / (1 << MASS_SHIFT))), rise * (1.0 / (1 << (MASS_SHIFT + 15)))


@bare
def below(level: Any, components: Any, mix: Any) -> Any:
    """C(level) (D)."""
    return mass_and_slope(level, components, mix)[0]


@inner
def slot_of(mass: Any, scale: Any) -> Any:
    """The first slot above a mass, of 2^28."""
    return to_int(floor(mass * scale * (1.0 / (1 << SLOT_SHIFT))))


@inner
def slot(symbol: Any, first: Any, raw: Any, base: Any, scale: Any, components: Any, mix: Any) -> Any:
    """S(symbol): where its slots begin."""
    return slot_of(below(symbol << raw, components, mix) - base + to_double(symbol - first), scale)


@inner
def slot_scale(first: Any, last: Any, raw: Any, base: Any, components: Any, mix: Any) -> Any:
    """2^52 over the mass of all symbols, rounded down (D): the float64 quotient has the floor of the true one."""
    span = below((last + 1) << raw, components, mix) - base + to_double(last + 1 - first)
    return floor(float(1 << SCALE_BITS) / span)


@inner
def first_probe(target: Any, raw: Any, components: Any, mix: Any) -> Any:
    """About where one logistic of the components' mean centre and mean width would reach the target."""
    weights, centres, widths = to_double(splat(0)), to_double(splat(0)), to_double(splat(0))
    for k in range(components):
        at = k * FIELDS * LANES
        weight = to_double(load(mix, at + WEIGHT * LANES))
        weights = weights + weight
        centres = centres + weight * to_double(load(mix, at + CENTRE * LANES))
        widths = widths + weight * to_double(load(mix, at + REACHES * LANES))
    part = target >> 5
    odds = to_double(log256(part + 1) - log256(splat((1 << 23) + 1) - part))
    place = (centres + widths * odds * WIDTH_UNIT) / weights
    return (to_int(place) + 32) >> (6 + raw)


@inner
def find_symbols(target: Any, first: Any, last: Any, raw: Any, base: Any, scale: Any, components: Any,
                 mix: Any) -> Any:  # fmt: skip
    """The symbols whose slots hold `target`, with where their slots begin and end (three V).

    A bracket [bottom, top) holds the symbol; it is closed by Newton's steps, which aim just beyond the target, and
    from time to time by halving. Which probes are made is no part of the law.
    """
    bottom, top = first, last + 1
    low, high = splat(0), splat(TOTAL)
    probe = first_probe(target, raw, components, mix)
    for turn in range(64):
        wide = top - bottom > 1
        if bits_of(wide) == 0:
            break
        # A lane that has finished probes its bottom, which changes nothing.
        probe = vmax(vmin(probe, top - 1), bottom + select(wide, splat(1), splat(0)))
        mass, slope = mass_and_slope(probe << raw, components, mix)
        mark = slot_of(mass - base + to_double(probe - first), scale)
        under = mark <= target
        bottom, low = select(under, probe, bottom), select(under, mark, low)
        top, high = select(under, top, probe), select(under, high, mark)
        if turn % 3 == 2 or turn > PATIENCE:
            probe = bottom + ((top - bottom) >> 1)
        else:
            # Towards 0, then one further: just above the target from below, at or below it from above.
            step = to_int(to_double(target - mark) * float(1 << SLOT_SHIFT) / ((slope * float(1 << raw) + 1.0) * scale))
            probe = probe + step + select(under, splat(1), splat(-1))
    return bottom, low, high
