"""The network that gives a sample's law: its integers, and their arrangement for the wavefront kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # outputs that the kernel computes together
SUM_LIMIT = 1 << 24  # no sum of a layer may reach this
ACTIVATION_LIMIT = 1023  # of inputs and hidden values


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

    def fits(self) -> bool:
        """Whether no sum can reach 2^24, whatever the inputs; the kernel relies on it."""
        layers = ((self.w1, self.b1), (self.w2, self.b2), (self.w3, self.b3))
        most = [np.abs(w.astype(np.int64)).sum(1) * ACTIVATION_LIMIT + np.abs(b.astype(np.int64)) for w, b in layers]
        return max(int(line.max()) for line in most) < SUM_LIMIT

    @functools.cached_property
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
