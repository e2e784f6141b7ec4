"""The fast kernel and the plain reference give every sample of any tile the same law: byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec.dualformat import Predictors
from codec.errors import CorruptBitstream
from codec.learneddecode import Setting
from codec.reference2 import Streams, decode_tile
from codec.reference2law import Shape, Tile
from codec.wave import count_tile, survey_tile
from codec.wave import decode_tile as decode_fast
from codec.wave import encode_tile as encode_fast
from tests.unit.codec_networks import network

Plane = NDArray[np.int32]
SHAPES = [(1, 1), (1, 40), (40, 1), (17, 3), (3, 17), (33, 7), (18, 12), (5, 90)]


class Case:
    """A tile and all that it is coded with; `head`: what another tile's has become, or None."""

    def __init__(
        self, tile: Plane, anchor: int, previous: Plane | None, setting: Setting, head: Plane | None = None
    ) -> None:
        self.tile, self.anchor, self.previous, self.setting, self.head = tile, anchor, previous, setting, head

    def __repr__(self) -> str:
        one = self.setting
        sizes = f"highest {one.highest}, k {one.k}, raw {one.raw}, sets {one.predictors.taps.shape[0]}"
        given = f"previous {self.previous is not None}, head {self.head is not None}"
        return f"Case({self.tile.shape}, {sizes}, states {one.states}, {given})"

    @property
    def upper(self) -> Plane:
        return np.ascontiguousarray(self.tile >> self.setting.k)

    def words(self) -> NDArray[np.uint32]:
        return encode_fast(self.tile, self.anchor, self.upper, self.previous, self.setting, self.head)

    def fast(self, words: NDArray[np.uint32]) -> tuple[Plane, Plane] | None:
        """The samples and what the head has become."""
        out = np.empty_like(self.tile)
        head = decode_fast(out, words, self.anchor, self.upper, self.previous, self.setting, self.head)
        return None if head is None else (out, head)

    def plain(self, words: NDArray[np.uint32]) -> tuple[Plane, Plane] | None:
        """The same by the reference."""
        shape = Shape(*self.tile.shape, self.setting, self.upper.tolist(), self.previous, self.head)
        tile = Tile(shape, self.anchor)
        try:
            samples = np.array(decode_tile(tile, Streams(words, self.setting.states)), np.int32)
        except CorruptBitstream:
            return None
        return samples, tile.head.master.astype(np.int32)


def content(random: np.random.Generator, shape: tuple[int, int], highest: int) -> Plane:
    """Noise, a random walk, two levels, or a ramp."""
    kind = random.integers(4)
    if kind == 0:
        plane = random.integers(0, highest + 1, shape)
    elif kind == 1:
        plane = np.cumsum(random.integers(-3, 4, shape), axis=1) + highest // 2
    elif kind == 2:
        plane = np.where(random.random(shape) < 0.5, 0, highest)
    else:
        plane = np.broadcast_to(highest // 2 + random.integers(-9, 10) * np.arange(shape[1]), shape)
    return np.clip(plane, 0, highest).astype(np.int32)


def predictors(random: np.random.Generator, classes: int, directions: int, taps: int, highest: int) -> Predictors:
    """Any taps that the wire can hold, and increasing thresholds; 0 classes: no sets, -1: only the common one."""
    size = int(random.choice([50, 300, 32767]))
    thresholds = np.sort(random.choice(5 * highest + 20, max(0, classes - 1), replace=False))
    sets = 1 + classes * directions if classes > 0 else -classes
    return Predictors(thresholds.astype(np.int64), random.integers(-size, size + 1, (sets, taps)).astype(np.int32))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Everything that the wire can say, on a small tile."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape, bits = draw(st.sampled_from(SHAPES)), draw(st.sampled_from([1, 2, 5, 8, 12, 16, 17]))
    highest = int(random.integers(1 << (bits - 1), 1 << bits))
    tile = content(random, shape, highest)
    k = draw(st.one_of(st.just(bits), st.integers(1, bits)))
    raw = draw(st.sampled_from([0, 0, *range(1, min(k, 7) + 1)]))
    previous = None
    if draw(st.booleans()):
        grain = random.integers(-2, 3, (shape[0] + 2, shape[1] + 2)) if draw(st.booleans()) else 0
        previous = np.clip(np.pad(tile, 1, mode="edge") + grain, 0, highest).astype(np.int32)
    classes = draw(st.sampled_from([(0, 1), (-1, 1), (1, 1), (4, 1), (15, 1), (1, 3), (3, 3), (5, 3)]))
    fit = predictors(random, *classes, 35 if previous is None else 44, highest)
    inputs, parts = draw(st.sampled_from([16, 62, 68, 74, 90])), draw(st.integers(1, 5))
    net = network(draw(st.integers(0, 1 << 32)), inputs, (13, 6), parts, draw(st.sampled_from([2, 10, 60])))
    rate = draw(st.sampled_from([0, 7, 10, 14]))
    setting = Setting(highest, k, raw, fit, net, draw(st.sampled_from([1, 2, 4, 8, 16])), rate)
    head = None
    if draw(st.booleans()):
        far = draw(st.sampled_from([1 << 18, 2047 << 16]))
        head = random.integers(-far, far + 1, net.w3.shape).astype(np.int32)
    return Case(tile, int(random.integers(0, highest + 1)), previous, setting, head)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_kernel_and_reference_decode_what_the_kernel_encodes(case: Case) -> None:
    words = case.words()
    fast, plain = case.fast(words), case.plain(words)
    assert fast is not None and plain is not None
    assert np.array_equal(fast[0], case.tile) and np.array_equal(plain[0], case.tile)
    assert np.array_equal(fast[1], plain[1])
    bits = count_tile(case.tile, case.anchor, case.upper, case.previous, case.setting, case.head)
    assert 0 <= 32 * words.size - bits + 1 <= 64 * case.setting.states + 32


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_kernel_and_reference_take_damaged_words_alike(case: Case, data: st.DataObject) -> None:
    words = case.words().copy()
    words[data.draw(st.integers(0, words.size - 1))] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    if data.draw(st.booleans()):
        words = words[: data.draw(st.integers(0, words.size))]
    fast, plain = case.fast(words), case.plain(words)
    assert (fast is None) == (plain is None)
    if fast is not None and plain is not None:
        assert all(map(np.array_equal, fast, plain))


def test_survey_says_what_counting_says() -> None:
    random = np.random.default_rng(5)
    tile = content(random, (40, 30), 1000)
    setting = Setting(1000, 10, 0, predictors(random, 0, 1, 35, 1000), network(3, 62), 1)
    gains = survey_tile(tile, 500, None, setting)
    upper = np.zeros_like(tile)
    assert gains[32] == pytest.approx(count_tile(tile, 500, upper, None, setting), rel=1e-3)
    for k in (6, 8):  # a network of 62 inputs does not see G: only the truncation saves
        given_upper = count_tile(
            tile, 500, tile >> k, None, Setting(1000, k, 0, setting.predictors, setting.network, 1)
        )
        assert gains[32] - gains[k] == pytest.approx(given_upper, rel=1e-3)
