"""The mask of non-interest: from the lattice alone, in integers, the same on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stego.lattice import reserved
from stego.region import non_interest, non_interest_cells, otsu, upsample, without_specks


def phantom(rows: int = 200, columns: int = 240, *, noise: int = 20, seed: int = 3) -> NDArray[np.int32]:
    """Air with noise, a bright ellipse with a dark hole (a lung) and a speck in the air."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    values = 40 + rng.integers(0, noise, (rows, columns))
    body = ((y - rows / 2) / (0.35 * rows)) ** 2 + ((x - columns / 2) / (0.35 * columns)) ** 2 < 1
    lung = ((y - rows / 2) / (0.12 * rows)) ** 2 + ((x - columns / 2) / (0.12 * columns)) ** 2 < 1
    values[body] += 900
    values[lung] -= 900
    values[4:12, 4:12] += 900
    return values.astype(np.int32)


def test_air_is_non_interest_and_the_body_with_its_hole_is_not() -> None:
    mask = non_interest(phantom())
    assert mask[3, 120] and mask[196, 3] and mask[100, 3]
    assert not mask[100, 120], "air inside the body does not hang together with the border"
    assert not mask[100, 60]
    assert mask[8, 8], "a speck is no anatomy"
    assert 0.5 < mask.mean() < 0.65


def test_inverted_grey_scale_gives_the_same_mask() -> None:
    values = phantom()
    assert (non_interest(values) == non_interest(1000 - values)).mean() > 0.995


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_only_the_lattice_counts(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (phantom(90, 90)[:rows, :columns]).copy()
    changed = np.where(reserved((rows, columns)), values, rng.integers(-40000, 40000, (rows, columns))).astype(np.int32)
    mask = non_interest(values)
    assert mask.shape == (rows, columns) and mask.dtype == np.bool_
    assert np.array_equal(mask, non_interest(changed))


@pytest.mark.parametrize("values", [np.full((128, 128), 7, np.int32), np.arange(16, dtype=np.int32).reshape(4, 4)])
def test_nothing_to_tell_apart_means_no_region(values: NDArray[np.int32]) -> None:
    assert not non_interest(values).any()


def test_extreme_values_do_not_overflow() -> None:
    values = np.where(phantom() > 500, 2**31 - 1, -(2**31)).astype(np.int32)
    assert np.array_equal(non_interest(values), non_interest(np.where(phantom() > 500, 1, 0).astype(np.int32)))


def test_otsu_splits_two_heaps() -> None:
    assert otsu(np.array([[10] * 50 + [11] * 50 + [200] * 30])) == 11


def test_specks_go_and_parts_stay() -> None:
    marks = np.zeros((10, 10), np.bool_)
    marks[1, 1] = marks[5:8, 5:8] = True
    assert np.array_equal(np.argwhere(without_specks(marks, 9))[0], [5, 5])
    assert without_specks(marks, 9).sum() == 9 and without_specks(marks, 10).sum() == 0


def test_cells_cover_their_samples_and_the_rest_takes_the_nearest() -> None:
    cells = np.array([[True, False], [False, True]])
    mask = upsample(cells, (9, 10))
    assert mask[:4, :4].all() and not mask[:4, 4:].any() and mask[4:, 4:].all()


def test_the_mask_is_pinned() -> None:
    """A stego image of years ago names no version of this mask: a change needs a new name, not another result."""
    cells = phantom()[2::4, 2::4]
    digest = hashlib.sha256(np.packbits(non_interest_cells(cells)).tobytes()).hexdigest()
    assert digest[:16] == "5587288f5987bbce"
