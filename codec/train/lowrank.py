"""Low-rank deltas while they are learned: as float32, rounded where they are used, as codec.adapter adds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from codec.adapter import DELTA_SHIFT, MATRICES, WEIGHT_LIMIT, Factors
from codec.train.gradient import Floats, Layers

FIRST: Final = 16.0  # deviation of first factors; their partners are 0


class Adam:
    """Adam on arrays of numbers in the integers' units, kept within -127..127."""

    def __init__(self, values: list[Floats], rate: float) -> None:
        self.values, self._rate, self._turn = values, rate, 0
        self._first = [np.zeros_like(value) for value in values]
        self._second = [np.zeros_like(value) for value in values]

    def whole(self) -> list[Floats]:
        """The values, rounded."""
        return [np.rint(value) for value in self.values]

    def step(self, gradients: Sequence[Floats], share: float) -> None:
        """One step in place; `share` of the steps are done."""
        self._turn += 1
        rate = self._rate * min(1.0, self._turn / 8) * (1 - 0.95 * share)
        rate *= np.sqrt(1 - 0.99**self._turn) / (1 - 0.9**self._turn)
        for value, gradient, one, two in zip(self.values, gradients, self._first, self._second, strict=True):
            one += np.float32(0.1) * (gradient - one)
            two += np.float32(0.01) * (gradient * gradient - two)
            value -= np.float32(rate) * one / (np.sqrt(two) + np.float32(1e-12))
            np.clip(value, -127, 127, out=value)


def first_factors(layers: Layers, rank: int, rng: np.random.Generator) -> list[Floats]:
    """Factors of w1, w2, w3 that add nothing yet: for each [outputs, rank] and [rank, inputs]."""
    found: list[Floats] = []
    for part in MATRICES:
        outputs, inputs = getattr(layers, part).shape
        found.append((rng.standard_normal((outputs, rank)) * FIRST).astype(np.float32))
        found.append(np.zeros((rank, inputs), np.float32))
    return found


def added(layers: Layers, factors: Sequence[Floats]) -> Layers:
    """The layers with deltas of whole factors, as `adapter.materialise` adds them."""
    changed = {}
    for place, part in enumerate(MATRICES):
        product = factors[2 * place] @ factors[2 * place + 1]
        delta = np.floor((product + (1 << (DELTA_SHIFT - 1))) / (1 << DELTA_SHIFT))
        changed[part] = np.clip(getattr(layers, part) + delta, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.float32)
    return replace(layers, **changed)


def by_factors(gradient: Mapping[str, Floats], factors: Sequence[Floats]) -> list[Floats]:
    """Gradients by the factors out of those by the matrices."""
    found: list[Floats] = []
    for place, part in enumerate(MATRICES):
        scaled = gradient[part] * np.float32(1 / (1 << DELTA_SHIFT))
        found += [scaled @ factors[2 * place + 1].T, factors[2 * place].T @ scaled]
    return found


def packed(factors: Sequence[Floats]) -> tuple[Factors, ...]:
    """Whole factors as an adapter holds them."""
    small = [factor.astype(np.int8) for factor in factors]
    return tuple(zip(small[::2], small[1::2], strict=True))
