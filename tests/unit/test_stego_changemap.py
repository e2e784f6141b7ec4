"""The way back from a hidden carrier: exact, short, and safe to read from a stranger."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stego import changemap
from stego.errors import CarrierError
from stego.lattice import reserved


def pair(shape: tuple[int, int], share: float, seed: int, spread: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    original = rng.integers(-spread, spread + 1, shape).astype(np.int32)
    change = np.where(rng.random(shape) < share, rng.choice([-1, 1], shape), 0)
    change[reserved(shape)] = 0
    return original, (original + change).astype(np.int32)


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0, 1, 5, 300, 40000]),
)
@settings(max_examples=120, deadline=None)
def test_the_original_comes_back(rows: int, columns: int, share: float, seed: int, spread: int) -> None:
    original, stego = pair((rows, columns), share, seed, spread)
    assert np.array_equal(changemap.apply(stego, changemap.encode(original, stego)), original)


def test_no_longer_than_the_entropy_of_the_changes() -> None:
    original, stego = pair((400, 400), 0.01, 1, 20)
    n, k = original.size * 15 / 16, np.count_nonzero(original != stego)
    p = k / n
    bound = n * -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) + k
    assert 8 * (len(changemap.encode(original, stego)) - 29) < 1.02 * bound + 200


def test_only_changes_of_one_off_the_lattice() -> None:
    zero = np.zeros((8, 8), dtype=np.int32)
    for at, step in (((0, 0), 2), ((2, 2), 1)):
        other = zero.copy()
        other[at] = step
        with pytest.raises(ValueError):
            changemap.encode(zero, other)
    with pytest.raises(ValueError):
        changemap.encode(zero, zero[:4])


@given(data=st.binary(max_size=400), known=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_strangers_bytes_are_refused(data: bytes, known: bool) -> None:
    original, stego = pair((20, 20), 0.1, 3, 9)
    right = changemap.encode(original, stego)
    hostile = right[:29] + data if known else data
    if hostile == right:
        return
    try:
        back = changemap.apply(stego, hostile)
    except CarrierError as refusal:
        assert refusal.reason == "changes"
    else:  # trailing bytes that the decoder never reads
        assert np.array_equal(back, original)


def test_a_flipped_bit_or_another_frame_is_refused() -> None:
    original, stego = pair((40, 40), 0.05, 4, 9)
    right = changemap.encode(original, stego)
    for at in range(8 * 29):
        wrong = bytearray(right)
        wrong[at // 8] ^= 1 << at % 8
        with pytest.raises(CarrierError):
            changemap.apply(stego, bytes(wrong))
    with pytest.raises(CarrierError):
        changemap.apply(pair((40, 40), 0.05, 5, 9)[1], right)
    with pytest.raises(CarrierError):
        changemap.apply(stego[:20], right)
    with pytest.raises(CarrierError):
        changemap.apply(np.full((40, 40), np.iinfo(np.int32).min, dtype=np.int32), right)
