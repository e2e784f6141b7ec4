"""The network's arithmetic for 16 samples: exact int32, pairs of int16 multiplied and added at once."""

from __future__ import annotations

from typing import Any

from codec.lanes import LANES, dot2, load, splat, splat_at, store, vmax, vmin
from codec.network import ACTIVATION_LIMIT, BLOCK
from codec.wavetables import inner


@inner
def dense(x: Any, net: Any, at: Any, pairs: Any, blocks: Any, out: Any) -> None:
    """One layer: out[o, lane] = b[o] + sum over j of w[o, j] x[j, lane].

    `x` int32[pairs * 16], pairs of int16; `net` from `at` on: weights, then biases; `out` int32[8 blocks * 16].
    """
    bias = at + pairs * blocks * BLOCK
    for block in range(blocks):
        o = bias + block * BLOCK
        s0, s1, s2, s3 = splat_at(net, o), splat_at(net, o + 1), splat_at(net, o + 2), splat_at(net, o + 3)
        s4, s5, s6, s7 = splat_at(net, o + 4), splat_at(net, o + 5), splat_at(net, o + 6), splat_at(net, o + 7)
        p = at + block * pairs * BLOCK
        for j in range(pairs):
            a = load(x, j * LANES)
            s0, s1 = dot2(s0, a, splat_at(net, p)), dot2(s1, a, splat_at(net, p + 1))
            s2, s3 = dot2(s2, a, splat_at(net, p + 2)), dot2(s3, a, splat_at(net, p + 3))
            s4, s5 = dot2(s4, a, splat_at(net, p + 4)), dot2(s5, a, splat_at(net, p + 5))
            s6, s7 = dot2(s6, a, splat_at(net, p + 6)), dot2(s7, a, splat_at(net, p + 7))
            p += BLOCK
        q = block * BLOCK * LANES
        store(out, q, s0)
        store(out, q + 16, s1)
        store(out, q + 32, s2)
        store(out, q + 48, s3)
        store(out, q + 64, s4)
        store(out, q + 80, s5)
        store(out, q + 96, s6)
        store(out, q + 112, s7)


@inner
def squash(sums: Any, net: Any, gains: Any, pairs: Any, hidden: Any, first: Any, rows: Any) -> None:
    """Hidden values clamp(((sum >> 3) * gain) >> 9, 0, 1023) of int32[2 pairs * 16].

    They are stored twice: in pairs (int32) in `hidden` from pair `first` on, and as int16[values * 16] in `rows`.
    """
    for j in range(pairs):
        even = ((load(sums, 2 * j * LANES) >> 3) * splat_at(net, gains + 2 * j)) >> 9
        odd = ((load(sums, (2 * j + 1) * LANES) >> 3) * splat_at(net, gains + 2 * j + 1)) >> 9
        even = vmin(vmax(even, splat(0)), splat(ACTIVATION_LIMIT))
        odd = vmin(vmax(odd, splat(0)), splat(ACTIVATION_LIMIT))
        store(hidden, (first + j) * LANES, pack(even, odd))
        store(rows, 2 * (first + j) * LANES, even)
        store(rows, (2 * (first + j) + 1) * LANES, odd)


@inner
def pack(even: Any, odd: Any) -> Any:
    """Two int32 vectors of int16 values as one vector of pairs."""
    return (even & 0xFFFF) | (odd << 16)


@inner
def hidden_layers(x: Any, net: Any, sizes: Any, sums: Any, hidden: Any, rows: Any) -> None:
    """Both hidden layers of `x`, packed inputs int32[pairs * 16]; `hidden`, `rows`: as in `squash`."""
    at = 0
    dense(x, net, at, sizes[0], sizes[1], sums)
    at += sizes[0] * sizes[1] * BLOCK + sizes[1] * BLOCK
    squash(sums, net, at, sizes[1] * (BLOCK // 2), hidden, 0, rows)
    at += sizes[1] * BLOCK
    dense(hidden, net, at, sizes[2], sizes[3], sums)
    at += sizes[2] * sizes[3] * BLOCK + sizes[3] * BLOCK
    squash(sums, net, at, sizes[3] * (BLOCK // 2), hidden, sizes[2], rows)
