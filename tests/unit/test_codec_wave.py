"""The wavefront kernel of the learned local path: whatever goes in comes out, and broken words are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.dualformat import Predictors
from codec.learneddecode import Setting
from codec.network import Network
from codec.wave import count_tile, decode_tile, encode_tile, features_tile, survey_tile
from codec.wavetables import FIRST_PREVIOUS, FIRST_UPPER, OWN_INPUTS, PREVIOUS_INPUTS

ALL_INPUTS = FIRST_PREVIOUS + PREVIOUS_INPUTS
SHAPES = [(1, 1), (1, 40), (17, 3), (33, 200), (16, 71), (5, 72), (40, 130)]
RANGES = [(1, 1, 0), (4095, 12, 0), (65535, 16, 3), (1000, 6, 2), (255, 1, 1), (4095, 9, 0)]


def random_network(rng: np.random.Generator, inputs: int = ALL_INPUTS, components: int = 3) -> Network:
    """Small random weights: a bad law, but a law."""

    def draw(*shape: int) -> Any:
        return rng.integers(-40, 41, shape).astype(np.int32)

    return Network(
        draw(16, inputs), draw(16) * 100, draw(16) + 64, draw(8, 16), draw(8) * 100, draw(8) + 64,
        draw(3 * components, 24), draw(3 * components) * 100,
    )  # fmt: skip


def picture(rng: np.random.Generator, rows: int, columns: int, highest: int, smooth: bool) -> Any:
    """Noise, or a slope with a little noise (int32)."""
    if not smooth:
        return rng.integers(0, highest + 1, (rows, columns)).astype(np.int32)
    slope = np.arange(rows)[:, None] * 3 + np.arange(columns)[None, :] * 2 + rng.integers(0, 4, (rows, columns))
    return (slope % (highest + 1)).astype(np.int32)


def setting_of(rng: np.random.Generator, highest: int, k: int, raw: int, states: int, previous: bool) -> Setting:
    """Random taps and a random network."""
    classes, directions = int(rng.choice([0, 1, 2, 5])), int(rng.choice([1, 3]))
    sets = int(rng.integers(0, 2)) if classes == 0 else 1 + classes * directions
    taps = rng.integers(-200, 201, (sets, 44 if previous else 35)).astype(np.int32)
    predictors = Predictors(np.arange(max(0, classes - 1), dtype=np.int64) * 7 + 3, taps)
    inputs = int(rng.choice([24, OWN_INPUTS, FIRST_UPPER, FIRST_PREVIOUS, ALL_INPUTS]))
    network = random_network(rng, inputs, int(rng.integers(1, 5)))
    assert network.fits()
    return Setting(highest, k, raw, predictors, network, states, int(rng.choice([0, 7, 10, 14])))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("highest,k,raw", RANGES)
def test_round_trip(shape: tuple[int, int], smooth: bool, previous: bool, highest: int, k: int, raw: int) -> None:
    rng = np.random.default_rng([*shape, highest, k, smooth, previous])
    tile = picture(rng, *shape, highest, smooth)
    states = int(rng.choice([1, 2, 4, 8, 16]))
    setting = setting_of(rng, highest, k, raw, states, previous)
    before = None
    if previous:
        noisy = np.clip(tile + rng.integers(-3, 4, shape), 0, highest)
        before = np.pad(noisy, 1, mode="edge").astype(np.int32)
    known = (int(tile[0, 0]), tile >> k, before, setting)
    words = encode_tile(tile, *known)
    out = np.full_like(tile, -1)
    assert decode_tile(out, words, *known) is not None
    assert (out == tile).all()
    cost = count_tile(tile, *known)
    assert cost - 34 <= 32 * words.size - 32 * states <= 1.002 * cost + 32 * states + 32


@pytest.mark.parametrize("states", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("raw", [0, 2])
def test_broken_words(states: int, raw: int) -> None:
    rng = np.random.default_rng(states)
    tile = picture(rng, 20, 90, 4000, True)
    known = (5, None, None, setting_of(rng, 4000, 12, raw, states, False))
    words = encode_tile(tile, *known)
    out = np.empty_like(tile)
    assert decode_tile(out, words, *known) is not None
    assert (out == tile).all()
    hostile = [words[:0], words[: 2 * states], words[:-1], np.append(words, words[-1:]), rng.permutation(words)]
    hostile += [rng.integers(0, 1 << 31, words.size).astype(np.uint32) for _ in range(20)]
    for spoiled in hostile:
        assert decode_tile(out, spoiled, *known) is None
        assert out.min() >= 0 and out.max() <= 4000


def test_survey_agrees_with_the_count() -> None:
    rng = np.random.default_rng(4)
    tile = picture(rng, 40, 100, 4095, True)
    setting = setting_of(rng, 4095, 12, 0, 1, False)
    setting = replace(setting, network=random_network(rng, OWN_INPUTS))
    gains = survey_tile(tile, 9, None, setting)
    assert gains[32] == pytest.approx(count_tile(tile, 9, None, None, setting), rel=1e-4)
    assert gains[33] == pytest.approx(count_tile(tile, 9, None, None, replace(setting, raw=1)), rel=1e-2)
    saved = gains[32] - count_tile(tile, 9, tile >> 8, None, replace(setting, k=8))
    assert gains[8] == pytest.approx(saved, rel=1e-2)


def test_features() -> None:
    rng = np.random.default_rng(5)
    tile = picture(rng, 40, 100, 4095, True)
    setting = setting_of(rng, 4095, 8, 0, 1, False)
    inputs, facts = features_tile(tile, 9, tile >> 8, None, setting, ALL_INPUTS, 1)
    assert inputs.shape == (4000, ALL_INPUTS) and facts.shape == (4000, 5)
    assert np.array_equal(np.sort(facts[:, 0]), np.sort(tile.ravel()))
    assert (facts[:, 3] == facts[:, 0] >> 8 << 8).all()
    assert np.abs(inputs).max() <= 1023
    some, _ = features_tile(tile, 9, tile >> 8, None, setting, ALL_INPUTS, 7)
    assert 400 < some.shape[0] < 750


def test_kernels_are_cached_only_in_a_folder_named_for_their_sources() -> None:
    """Numba would take a compiled kernel from its disk cache although a constant in another file has changed."""
    code = "from codec.wave import run_tile; print(run_tile.stats.cache_path)"

    def folder(**more: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | more
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=240,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return done.stdout.strip()

    assert folder() == "None"
    named = os.environ["NUMBA_CACHE_DIR"]
    assert folder(NUMBA_CACHE_DIR=named).startswith(named)
