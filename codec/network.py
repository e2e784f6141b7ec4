"""The network that gives a sample's law: its integers, and their arrangement for the wavefront kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # outputs that the kernel computes together
OUTPUTS = 16  # room for outputs of the last layer
SUM_LIMIT, OUTPUT_LIMIT = 1 << 24, 1 << 30  # no sum of a hidden layer, no output may reach these
HEAD_HIGHEST = 2047  # the last layer's weights stay within +- this while they learn
ACTIVATION_LIMIT = 1023  # of inputs and hidden values


@dataclass(frozen=True)
class Network:
    """Weights w int32[outputs, inputs], biases b and gains g int32[outputs] of three layers; the third has no gains.

    Its inputs are the first hidden layer's values, then the second's.
    """

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
        """Whether no hidden sum can reach 2^24 and no output 2^30, whatever the inputs and whatever the head learns."""
        layers = ((self.w1, self.b1), (self.w2, self.b2))
        most = [np.abs(w.astype(np.int64)).sum(1) * ACTIVATION_LIMIT + np.abs(b.astype(np.int64)) for w, b in layers]
        head = int(np.abs(self.b3.astype(np.int64)).max()) + HEAD_HIGHEST * ACTIVATION_LIMIT * self.w3.shape[1]
        within = int(np.abs(self.w3.astype(np.int64)).max()) <= HEAD_HIGHEST
        return max(int(line.max()) for line in most) < SUM_LIMIT and within and head < OUTPUT_LIMIT

    @functools.cached_property
    def packed(self) -> Packed:
        """The kernel's arrangement."""
        parts: list[NDArray[np.int32]] = []
        blocks = self._blocks
        pairs = [(self.inputs + 1) // 2, blocks[0] * BLOCK // 2]
        for w, b, g, half, block in zip(
            (self.w1, self.w2), (self.b1, self.b2), (self.g1, self.g2), pairs, blocks, strict=True
        ):
            whole = np.zeros((block * BLOCK, half * 2), np.int64)
            whole[: w.shape[0], : w.shape[1]] = w
            both = ((whole[:, 0::2] & 0xFFFF) | (whole[:, 1::2] << 16)).astype(np.uint32)
            ordered = both.reshape(block, BLOCK, half).transpose(0, 2, 1)
            parts += [np.ascontiguousarray(ordered).view(np.int32).ravel()]
            parts += [_padded(line, block * BLOCK) for line in (b, g)]
        sizes = np.array([pairs[0], blocks[0], pairs[1], blocks[1], -(-self.w3.shape[0] // 4)], np.int32)
        return Packed(sizes, np.concatenate(parts), self.pack_head(self.w3 << 16), _padded(self.b3, OUTPUTS))

    def pack_head(self, head: NDArray[np.int32]) -> NDArray[np.int32]:
        """The kernel's arrangement (see Packed) of a last layer like w3, int32[outputs, hidden values], times 2^16."""
        first, blocks = self.w1.shape[0], self._blocks
        out = np.zeros((sum(blocks) * BLOCK, OUTPUTS), np.int32)
        out[:first, : len(head)] = head[:, :first].T
        out[blocks[0] * BLOCK :][: self.w2.shape[0], : len(head)] = head[:, first:].T
        return out.ravel()

    def unpack_head(self, packed: NDArray[np.int32]) -> NDArray[np.int32]:
        """Inverse of pack_head."""
        rows, blocks = packed.reshape(-1, OUTPUTS)[:, : self.w3.shape[0]], self._blocks
        second = rows[blocks[0] * BLOCK :][: self.w2.shape[0]]
        return np.ascontiguousarray(np.concatenate([rows[: self.w1.shape[0]], second]).T)

    @property
    def _blocks(self) -> list[int]:
        """Blocks of outputs of both hidden layers."""
        return [-(-w.shape[0] // BLOCK) for w in (self.w1, self.w2)]


@dataclass(frozen=True)
class Packed:
    """A network as the kernel holds it, int32. ValueError from numpy if it has more than 16 outputs.

    `sizes`: pairs of inputs and blocks of outputs of both hidden layers, blocks of four outputs of the last.
    `hidden`: of each hidden layer weights [block, pair, 8], an int32 being a pair of int16 for inputs 2j and 2j + 1,
    then biases and gains, padded with zeros to whole blocks. `head` [hidden values of both layers, so padded, 16]:
    the last layer's weights << 16; `biases` [16].
    """

    sizes: NDArray[np.int32]
    hidden: NDArray[np.int32]
    head: NDArray[np.int32]
    biases: NDArray[np.int32]


def _padded(line: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    return np.concatenate([line.astype(np.int32), np.zeros(length - line.size, np.int32)])
