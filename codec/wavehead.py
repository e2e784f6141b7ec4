"""The network's last layer, which learns as it codes: 16 samples give it one exact integer gradient step.

docs/bitstream.md, part 2, section 4.7. The weights lie with the 16 outputs innermost; float64 only ever holds
integers below 2^53 and quotients of such, whose floors are exact.
"""

from __future__ import annotations

from typing import Any

from codec.lanes import (
    LANES,
    dot2,
    floor,
    gather,
    iota,
    load,
    select,
    splat,
    splat_at,
    store,
    to_double,
    to_int,
    vmax,
    vmin,
)
from codec.wavemix import FIELDS, WEIGHT, height, place_of
from codec.wavetables import HEAD_LIMIT, Z_PLACE, inner

GRADIENT_CAP = 8191
UNIT = 4096.0
PARTS = 4  # rows of a component among `parts`
PART_A, PART_V, PART_F, PART_E = 0, 1, 2, 3


@inner
def head_outputs(hidden: Any, pairs: Any, weights: Any, biases: Any, blocks: Any, sums: Any) -> None:
    """out[o, lane] = b[o] + sum of w[o, j] h[j, lane], into `sums` int32[4 blocks * 16].

    `hidden` int32[pairs * 16], pairs of int16; `weights` int32[pairs * 16], pairs of int16, outputs innermost.
    """
    for block in range(blocks):
        o = block * 4
        s0, s1 = splat_at(biases, o), splat_at(biases, o + 1)
        s2, s3 = splat_at(biases, o + 2), splat_at(biases, o + 3)
        for j in range(pairs):
            a = load(hidden, j * LANES)
            p = j * LANES + o
            s0, s1 = dot2(s0, a, splat_at(weights, p)), dot2(s1, a, splat_at(weights, p + 1))
            s2, s3 = dot2(s2, a, splat_at(weights, p + 2)), dot2(s3, a, splat_at(weights, p + 3))
        q = o * LANES
        store(sums, q, s0)
        store(sums, q + 16, s1)
        store(sums, q + 32, s2)
        store(sums, q + 48, s3)


@inner
def pack_head(master: Any, j: Any, weights: Any) -> None:
    """The weights of inputs 2j and 2j + 1, master >> 16, as pairs of int16."""
    even, odd = load(master, 2 * j * LANES), load(master, (2 * j + 1) * LANES)
    store(weights, j * LANES, ((even >> 16) & 0xFFFF) | (odd & -0x10000))


@inner
def bounded(numerator: Any, denominator: Any) -> Any:
    """The quotient's floor within +-GRADIENT_CAP (V)."""
    quotient, cap = floor(numerator / denominator), to_double(splat(GRADIENT_CAP))
    quotient = select(quotient > cap, cap, quotient)
    return to_int(select(quotient < cap * -1.0, cap * -1.0, quotient))


@inner
def head_gradient(level: Any, active: Any, components: Any, mix: Any, parts: Any, gradient: Any) -> None:
    """The gradient of the samples' log probability by the outputs, 1/4096, into `gradient` int16[16 * 16].

    `parts` float64[components * 4 * 16] is room for numbers.
    """
    edge = (level << 6) + 32
    mass, whole = to_double(splat(1)), to_double(splat(0))
    for k in range(components):
        at = k * PARTS * LANES
        high, low = place_of(edge, k * FIELDS * LANES, mix), place_of(edge - 64, k * FIELDS * LANES, mix)
        above, below = height(high), height(low)
        v = to_double((load(mix, (k * FIELDS + WEIGHT) * LANES) + 3) >> 2)
        a = v * to_double((above - below) >> 4)
        steep = floor(to_double(above) * to_double(splat(1 << 26) - above) * (1.0 / (1 << 30)))
        flat = floor(to_double(below) * to_double(splat(1 << 26) - below) * (1.0 / (1 << 30)))
        stretch = to_double(low - Z_PLACE) * flat - to_double(high - Z_PLACE) * steep
        mass, whole = mass + a, whole + v
        store(parts, at + PART_A * LANES, a)
        store(parts, at + PART_V * LANES, v)
        store(parts, at + PART_F * LANES, flat - steep)
        store(parts, at + PART_E * LANES, floor(stretch * (1.0 / (1 << 13))))
    none = splat(0)
    for k in range(components):
        at = k * PARTS * LANES
        v = load(parts, at + PART_V * LANES) * UNIT
        share = to_int(floor(load(parts, at + PART_A * LANES) * UNIT / mass)) - to_int(floor(v / whole))
        offset = bounded(v * load(parts, at + PART_F * LANES), mass)
        width = bounded(v * load(parts, at + PART_E * LANES), mass)
        store(gradient, k * LANES, select(active, share, none))
        store(gradient, (components + k) * LANES, select(active, offset, none))
        store(gradient, (2 * components + k) * LANES, select(active, width, none))


@inner
def learn_head(master: Any, weights: Any, gradient: Any, hidden: Any, pairs: Any, rate: Any) -> None:
    """master[j, o] += (sum over lanes of gradient[o] hidden[j] + 2^(rate - 1)) >> rate, and the weights from it.

    `gradient` int32[16 * 8]: a row an output, pairs of lanes; `hidden` int32[2 pairs * 8]: a row an input, likewise.
    """
    place = iota() << 3
    g0, g1 = gather(gradient, place), gather(gradient, place + 1)
    g2, g3 = gather(gradient, place + 2), gather(gradient, place + 3)
    g4, g5 = gather(gradient, place + 4), gather(gradient, place + 5)
    g6, g7 = gather(gradient, place + 6), gather(gradient, place + 7)
    half, limit = splat(1 << (rate - 1)), splat(HEAD_LIMIT)
    for j in range(pairs):
        for row in range(2 * j, 2 * j + 2):
            p = row * 8
            even, odd = dot2(half, g0, splat_at(hidden, p)), dot2(splat(0), g1, splat_at(hidden, p + 1))
            even, odd = dot2(even, g2, splat_at(hidden, p + 2)), dot2(odd, g3, splat_at(hidden, p + 3))
            even, odd = dot2(even, g4, splat_at(hidden, p + 4)), dot2(odd, g5, splat_at(hidden, p + 5))
            even, odd = dot2(even, g6, splat_at(hidden, p + 6)), dot2(odd, g7, splat_at(hidden, p + 7))
            moved = load(master, row * LANES) + ((even + odd) >> rate)
            store(master, row * LANES, vmax(vmin(moved, limit), splat(0) - limit))
        pack_head(master, j, weights)
