"""The codes below the hidden carrier: syndrome-trellis code, sign layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stego import signlayer, stc


def embed(costs: NDArray[np.float32], rows: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random cover and message; checks that the message arrives, and returns the flips."""
    cover = rng.integers(0, 2, costs.shape).astype(np.uint8)
    message = rng.integers(0, 2, (rows, stc.LANES)).astype(np.uint8)
    flips = stc.cheapest_flips(costs, message ^ stc.syndrome(cover, rows))
    assert np.array_equal(stc.syndrome(cover ^ flips, rows), message)
    return flips


@given(rows=st.integers(0, 40), extra=st.integers(0, 300), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_message_arrives(rows: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = max(1, rows) + extra
    embed(rng.exponential(size=(steps, stc.LANES)).astype(np.float32), rows, rng)


def test_cuts_of_the_trellis_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = np.random.default_rng(1).exponential(size=(900, stc.LANES)).astype(np.float32)
    whole = embed(costs, 90, np.random.default_rng(2))
    monkeypatch.setattr(stc, "_SECTION_STEPS", 100)
    assert np.array_equal(embed(costs, 90, np.random.default_rng(2)), whole)


def test_the_flips_are_the_cheapest_there_are() -> None:
    """Against all 2^12 flip patterns of each lane."""
    rng = np.random.default_rng(3)
    costs = rng.random((12, stc.LANES)).astype(np.float32)
    target = rng.integers(0, 2, (3, stc.LANES)).astype(np.uint8)
    flips = stc.cheapest_flips(costs, target)
    patterns = ((np.arange(4096)[:, None] >> np.arange(12)) & 1).astype(np.uint8)
    for lane in range(stc.LANES):
        best = np.inf
        for start in range(0, 4096, stc.LANES):
            some = np.ascontiguousarray(patterns[start : start + stc.LANES].T)
            right = (stc.syndrome(some, 3) == target[:, lane : lane + 1]).all(axis=0)
            prices = costs[:, lane].astype(np.float64) @ some
            best = min([best, *prices[right]])
        assert float(costs[:, lane].astype(np.float64) @ flips[:, lane]) == pytest.approx(best, rel=1e-5)


def test_wet_samples_stay_dry_ones_do_the_work() -> None:
    rng = np.random.default_rng(4)
    costs = np.where(rng.random((4000, stc.LANES)) < 0.7, stc.WET, np.float32(1)).astype(np.float32)
    assert not embed(costs, 400, rng)[costs == stc.WET].any()


def test_with_many_samples_a_bit_the_cheapest_of_a_column_stands_for_it() -> None:
    rng = np.random.default_rng(5)
    costs = rng.exponential(size=(6000, stc.LANES)).astype(np.float32)
    flips = embed(costs, 12, rng)
    assert 0 < flips.sum() < 12 * stc.LANES and costs[flips].mean() < 0.05


def entropy(p: NDArray[np.float64]) -> float:
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)).sum())


@pytest.mark.parametrize("rate, most", [(0.4, 0.08), (0.1, 0.10), (0.05, 0.11)])
def test_coding_loss_against_the_payload_distortion_bound(rate: float, most: float) -> None:
    """Loss = 1 - message / bits that the bound carries at the distortion reached (Filler, Judas, Fridrich 2011)."""
    rng = np.random.default_rng(6)
    steps = 3000
    rows = int(rate * steps)
    costs = rng.random((steps, stc.LANES)).astype(np.float32)
    reached = float(costs[embed(costs, rows, rng)].sum())
    low, high = 1e-3, 1e4
    for _ in range(60):
        scale = (low * high) ** 0.5
        p = 1 / (1 + np.exp(np.minimum(scale * costs.astype(np.float64), 700)))
        low, high = (scale, high) if float((p * costs).sum()) > reached else (low, scale)
    assert 0 < 1 - rows * stc.LANES / entropy(p) < most


def test_streams_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError):
        stc.syndrome(np.zeros((10, 3), dtype=np.uint8), 2)
    with pytest.raises(ValueError):
        stc.cheapest_flips(np.zeros((3, stc.LANES), dtype=np.float32), np.zeros((4, stc.LANES), dtype=np.uint8))


def test_columns_are_fixed() -> None:
    """A change here makes every frame that was ever embedded unreadable."""
    assert stc.columns(20)[:6].tolist() == COLUMNS_20
    assert all(c & 1 and c >> (stc.HEIGHT - 1) for c in stc.columns(1000).tolist())
    assert len(set(stc.columns(1000).tolist())) == stc.MAX_COLUMNS


COLUMNS_20 = [971, 565, 935, 639, 651, 575]


@given(samples=st.integers(1, 2000), seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_directions_spell_the_bits(samples: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    second = rng.integers(0, 2, samples).astype(np.uint8)
    changed = np.flatnonzero(rng.random(samples) < share)
    bits = rng.integers(0, 2, max(0, changed.size - 30)).astype(np.uint8)
    chosen = signlayer.choose(second, changed, bits, rng.integers(0, 2, changed.size).astype(np.uint8))
    assert chosen is not None
    second[changed] ^= chosen
    assert np.array_equal(signlayer.read(second, bits.size), bits)


def test_more_bits_than_changes_have_no_solution() -> None:
    rng = np.random.default_rng(8)
    changed = np.arange(0, 400, 4)
    bits = rng.integers(0, 2, 130).astype(np.uint8)
    assert signlayer.choose(np.zeros(400, dtype=np.uint8), changed, bits, np.zeros(100, dtype=np.uint8)) is None


def test_what_the_message_leaves_open_follows_the_wish() -> None:
    rng = np.random.default_rng(9)
    wish = rng.integers(0, 2, 500).astype(np.uint8)
    chosen = signlayer.choose(np.zeros(5000, dtype=np.uint8), np.arange(0, 5000, 10), wish[:40].copy(), wish)
    assert chosen is not None and np.count_nonzero(chosen != wish) <= 40
    none = signlayer.choose(np.zeros(50, dtype=np.uint8), np.arange(5), np.zeros(0, dtype=np.uint8), wish[:5])
    assert none is not None and np.array_equal(none, wish[:5])
