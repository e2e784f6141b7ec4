"""What the learned coder learns within a tile, plainly: adaptive contexts and the network's last layer.

docs/bitstream.md, part 2, sections 4.4 and 4.7. Values are exact integers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.network import Network

FIRST_ERROR = [math.floor(math.pow(2.0, i / 2) * 4 / 3) + 1 for i in range(32)]
SCALE_LIMIT, BIAS_LIMIT = 64, 128
ERROR_CAP = 1 << 20
GRADIENT_CAP = 8191
HIGHEST_WEIGHT = 2047 << 16
MIDDLE = 18 * 32 * 256  # of the logistic table


class Law(Protocol):
    """The law of a sample; see reference2law.Mixture."""

    @property
    def weights(self) -> list[int]:
        """Of each logistic."""

    def places(self, edge: int) -> list[int]:
        """Where an edge (1/64 level) lies in the table of each logistic."""

    def masses(self, edge: int) -> list[int]:
        """2^26 times each logistic below an edge."""


@dataclass(frozen=True)
class Cells:
    """The contexts of a sample: three of scale, 0..1023, one of bias, 0..2047."""

    scales: tuple[int, int, int] = (0, 0, 0)
    bias: int = 0


@dataclass(frozen=True)
class Seen:
    """A coded sample: its contexts, its error of the blend and itself (1/64 level), its law and what the head saw."""

    cells: Cells
    error: int
    exact: int
    law: Law
    hidden: NDArray[np.int64]


@dataclass
class Contexts:
    """Cells of (sum, count): three tables of the blend's absolute error, one of its signed error."""

    scales: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    bias: dict[int, tuple[int, int]] = field(default_factory=dict)

    def scales_at(self, cells: Cells) -> list[tuple[int, int]]:
        """The three scale cells of a sample."""
        return [
            self.scales.get((table, place), (2 * FIRST_ERROR[place >> 5], 2))
            for table, place in enumerate(cells.scales)
        ]

    def bias_at(self, cells: Cells) -> tuple[int, int]:
        """The bias cell of a sample."""
        return self.bias.get(cells.bias, (0, 0))

    def learn(self, seen: Sequence[Seen]) -> None:
        """Add a step's samples to their cells, then halve the cells that are full."""
        for table in range(3):
            touched = defaultdict(list)
            for one in seen:
                touched[one.cells.scales[table]].append(min(abs(one.error), ERROR_CAP))
            for place, errors in touched.items():
                first = self.scales.get((table, place), (2 * FIRST_ERROR[place >> 5], 2))
                self.scales[table, place] = _grown(first, errors, SCALE_LIMIT)
        signed = defaultdict(list)
        for one in seen:
            signed[one.cells.bias].append(min(max(one.error, -ERROR_CAP), ERROR_CAP))
        for place, errors in signed.items():
            self.bias[place] = _grown(self.bias.get(place, (0, 0)), errors, BIAS_LIMIT)


def _grown(cell: tuple[int, int], errors: Iterable[int], limit: int) -> tuple[int, int]:
    total, count = cell
    for error in errors:
        total, count = total + error, count + 1
    return (total >> 1, count >> 1) if count >= limit else (total, count)


class Head:
    """The last layer, which learns with `rate` (0: not at all), from the network's on or from `master`, as it ended."""

    def __init__(self, network: Network, rate: int, master: NDArray[np.int32] | None = None) -> None:
        self.biases, self.rate = network.b3.astype(np.int64), rate
        self.master = network.w3.astype(np.int64) << 16 if master is None else master.astype(np.int64)

    def outputs(self, hidden: NDArray[np.int64]) -> list[int]:
        """b + sum of w h."""
        out: list[int] = (self.biases + (self.master >> 16) @ hidden).tolist()
        return out

    def learn(self, seen: Sequence[Seen]) -> None:
        """Move the weights by the gradient that a step's samples give."""
        if self.rate == 0:
            return
        change = np.zeros_like(self.master)
        for one in seen:
            change += np.outer(gradient(one.law, one.exact), one.hidden)
        self.master += (change + (1 << self.rate - 1)) >> self.rate
        np.clip(self.master, -HIGHEST_WEIGHT, HIGHEST_WEIGHT, out=self.master)


def gradient(law: Law, exact: int) -> list[int]:
    """Of the logarithm of a sample's probability by the outputs: weights, offsets, log scales; 1/4096."""
    above, below = law.masses(exact + 32), law.masses(exact - 32)
    slopes_above, slopes_below = ([f * ((1 << 26) - f) >> 30 for f in edge] for edge in (above, below))
    far_above, far_below = ([place - MIDDLE for place in law.places(exact + side)] for side in (32, -32))
    v = [(weight + 3) >> 2 for weight in law.weights]
    a = [one * ((high - low) >> 4) for one, high, low in zip(v, above, below, strict=True)]
    mass, whole = 1 + sum(a), sum(v)
    weights = [4096 * part // mass - 4096 * one // whole for part, one in zip(a, v, strict=True)]
    parts = range(len(v))
    offsets = [_bounded(4096 * v[k] * (slopes_below[k] - slopes_above[k]) // mass) for k in parts]
    widths = []
    for k in parts:
        stretch = (far_below[k] * slopes_below[k] - far_above[k] * slopes_above[k]) >> 13
        widths.append(_bounded(4096 * v[k] * stretch // mass))
    return weights + offsets + widths


def _bounded(number: int) -> int:
    return min(max(number, -GRADIENT_CAP), GRADIENT_CAP)
