"""The network that gives a sample's law: its integers, and their arrangement for the wavefront kernel.

The arithmetic is `dense` and `squash`; everything is exact int32. Pairs of int16 are multiplied and added at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.lanes import LANES, dot2, load, splat, splat_at, store, vmax, vmin
from codec.wavetables import ACTIVATION_LIMIT, inner

BLOCK = 8  # outputs computed together: their sums stay in registers


@dataclass(frozen=True)
class Network:
    """Weights w int32[outputs, inputs], biases b and gains g int32[outputs] of three layers; the third has no gains."""

    w1: NDArray[np.int32]
    b1: NDArray[np.int32]
    g1: NDArray[np.int32]
    w2: NDArray[np.int32]
    b2: NDArray[np.int32]
    g2: NDArray[np.int32]
    w3: NDArray[np.int32]
    b3: NDArray[np.int32]

    @property
    def inputs(self) -> int:
        """How many inputs the first layer takes."""
        return int(self.w1.shape[1])

    @property
    def components(self) -> int:
        """How many logistics the last layer describes."""
        return int(self.w3.shape[0]) // 3

    def packed(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The kernel's arrangement: (sizes int32[6], all weights, biases and gains in one int32 array).

        sizes: pairs of inputs and blocks of outputs of each layer. Per layer: weights [block, pair, 8], each int32 a
        pair of int16 for inputs 2j and 2j + 1; then biases and gains, all padded with zeros to whole blocks.
        """
        sizes: list[int] = []
        parts: list[NDArray[np.int32]] = []
        columns = (self.inputs + 1) // 2 * 2
        for w, b, g in ((self.w1, self.b1, self.g1), (self.w2, self.b2, self.g2), (self.w3, self.b3, self.b3)):
            rows = -(-w.shape[0] // BLOCK) * BLOCK
            whole = np.zeros((rows, columns), np.int64)
            whole[: w.shape[0], : w.shape[1]] = w
            pairs = ((whole[:, 0::2] & 0xFFFF) | (whole[:, 1::2] << 16)).astype(np.int64).astype(np.uint32)
            blocks = pairs.reshape(rows // BLOCK, BLOCK, columns // 2).transpose(0, 2, 1)
            parts += [np.ascontiguousarray(blocks).view(np.int32).ravel(), *(_padded(line, rows) for line in (b, g))]
            sizes += [columns // 2, rows // BLOCK]
            columns = rows
        return np.array(sizes, np.int32), np.concatenate(parts)


def _padded(line: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    return np.concatenate([line.astype(np.int32), np.zeros(length - line.size, np.int32)])


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
def squash(sums: Any, net: Any, gains: Any, pairs: Any, out: Any) -> None:
    """Hidden activations clamp(((sum >> 3) * gain) >> 9, 0, 1023) of int32[2 pairs * 16], packed in pairs."""
    for j in range(pairs):
        even = ((load(sums, 2 * j * LANES) >> 3) * splat_at(net, gains + 2 * j)) >> 9
        odd = ((load(sums, (2 * j + 1) * LANES) >> 3) * splat_at(net, gains + 2 * j + 1)) >> 9
        even, odd = vmax(even, splat(0)), vmax(odd, splat(0))
        store(out, j * LANES, pack(vmin(even, splat(ACTIVATION_LIMIT)), vmin(odd, splat(ACTIVATION_LIMIT))))


@inner
def pack(even: Any, odd: Any) -> Any:
    """Two int32 vectors of int16 values as one vector of pairs."""
    return (even & 0xFFFF) | (odd << 16)


@inner
def run_network(x: Any, net: Any, sizes: Any, sums: Any, hidden: Any) -> None:
    """All three layers; the outputs lie in `sums` int32[outputs * 16]. `x` packed inputs int32[pairs * 16]."""
    at = 0
    dense(x, net, at, sizes[0], sizes[1], sums)
    at += sizes[0] * sizes[1] * BLOCK + sizes[1] * BLOCK
    squash(sums, net, at, sizes[1] * (BLOCK // 2), hidden)
    at += sizes[1] * BLOCK
    dense(hidden, net, at, sizes[2], sizes[3], sums)
    at += sizes[2] * sizes[3] * BLOCK + sizes[3] * BLOCK
    squash(sums, net, at, sizes[3] * (BLOCK // 2), hidden)
    at += sizes[3] * BLOCK
    dense(hidden, net, at, sizes[4], sizes[5], sums)
