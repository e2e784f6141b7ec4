"""The wavefront kernel of the learned local path: whatever goes in comes out, and broken words are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codec.errors import CorruptBitstream
from codec.net import Network
from codec.wave import count_tile, decode_tile, encode_tile
from codec.wavelaw import OWN_INPUTS


def random_network(rng: np.random.Generator, hidden: tuple[int, int] = (16, 8), components: int = 3) -> Network:
    """Small random weights: a bad law, but a law."""

    def draw(*shape: int) -> Any:
        return rng.integers(-40, 41, shape).astype(np.int32)

    first, second = hidden
    return Network(
        draw(first, OWN_INPUTS), draw(first) * 100, draw(first) + 64,
        draw(second, first), draw(second) * 100, draw(second) + 64,
        draw(3 * components, second), draw(3 * components) * 100,
    )  # fmt: skip


def picture(rng: np.random.Generator, rows: int, columns: int, highest: int, smooth: bool) -> Any:
    """Noise, or a slope with a little noise (int32)."""
    if not smooth:
        return rng.integers(0, highest + 1, (rows, columns)).astype(np.int32)
    slope = np.arange(rows)[:, None] * 3 + np.arange(columns)[None, :] * 2 + rng.integers(0, 4, (rows, columns))
    return (slope % (highest + 1)).astype(np.int32)


def laws(rng: np.random.Generator, sets: int) -> tuple[Any, Any]:
    """Thresholds and taps of so many sets."""
    taps = rng.integers(-200, 201, (sets, 35)).astype(np.int32)
    return np.arange(max(0, sets - 2), dtype=np.int32) * 7 + 3, taps


SHAPES = [(1, 1), (1, 40), (17, 3), (33, 200), (16, 71), (5, 72), (40, 130)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("highest,k,raw", [(1, 1, 0), (4095, 12, 0), (65535, 16, 3), (1000, 6, 2), (255, 1, 1)])
def test_round_trip(shape: tuple[int, int], smooth: bool, highest: int, k: int, raw: int) -> None:
    rng = np.random.default_rng([*shape, highest, k, smooth])
    samples = picture(rng, *shape, highest, smooth)
    bits = int(highest).bit_length()
    upper = samples >> k if k < bits else None
    thresholds, taps = laws(rng, int(rng.choice([0, 1, 2, 6, 15])))
    network = random_network(rng, components=int(rng.integers(1, 5)))
    states = int(rng.choice([1, 2, 4, 8, 16]))
    anchor = int(samples[0, 0])
    law = (highest, k, raw, thresholds, taps, network, states)
    words = encode_tile(samples, None, upper, anchor, *law)
    assert words.dtype == np.uint32
    assert (decode_tile(words, *shape, anchor, None, upper, *law) == samples).all()
    cost = count_tile(samples, None, upper, anchor, *law)
    assert cost - 34 <= 32 * words.size - 32 * states <= 1.002 * cost + 32 * states + 32


@pytest.mark.parametrize("states", [1, 2, 4, 8, 16])
def test_broken_words(states: int) -> None:
    rng = np.random.default_rng(states)
    samples = picture(rng, 20, 90, 4095, True)
    law = (4095, 12, 0, *laws(rng, 6), random_network(rng), states)
    words = encode_tile(samples, None, None, 5, *law)
    assert (decode_tile(words, 20, 90, 5, None, None, *law) == samples).all()
    hostile = [words[:0], words[: 2 * states], words[:-1], np.append(words, words[-1:]), rng.permutation(words)]
    hostile += [rng.integers(0, 1 << 31, words.size).astype(np.uint32) for _ in range(20)]
    for spoiled in hostile:
        with pytest.raises(CorruptBitstream):
            decode_tile(spoiled, 20, 90, 5, None, None, *law)
