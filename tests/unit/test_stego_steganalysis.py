"""Detector statistics: by hand, by known distributions, and never across a patient."""

from __future__ import annotations

import numpy as np
import pytest

from stego.steganalysis import auc, cross_validated, deal, detection, error_rate, interval

RNG = np.random.default_rng(5)
BEGINNING = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_numbers_whatever_ran_before() -> None:
    RNG.bit_generator.state = BEGINNING


def test_auc_by_hand_with_ties() -> None:
    assert auc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert auc(np.zeros(5), np.zeros(7)) == 0.5


def test_auc_of_shifted_normals_is_the_known_one() -> None:
    found = auc(RNG.normal(0, 1, 4000), RNG.normal(1, 1, 4000))
    assert found == pytest.approx(0.7602, abs=0.015)  # Phi(1 / sqrt 2)


def test_error_rate() -> None:
    assert error_rate(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 0.0
    assert error_rate(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 0.5
    assert error_rate(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == 0.25


def test_interval_resamples_patients_not_tiles() -> None:
    covers, stegos = RNG.normal(0, 1, 200), RNG.normal(0.5, 1, 200)
    tiles = interval(covers, stegos, np.arange(200))
    patients = interval(covers, stegos, np.repeat(np.arange(4), 50))
    assert tiles is not None and patients is not None
    assert tiles[0] < auc(covers, stegos) < tiles[1]
    assert interval(covers, stegos, np.zeros(200, np.int64)) is None
    alike = np.repeat(RNG.normal(0, 1, 4), 50)  # all tiles of a patient alike: only patients tell how sure we are
    found = interval(alike, alike + 0.1, np.repeat(np.arange(4), 50))
    assert found is not None and found[1] - found[0] > 2 * (tiles[1] - tiles[0]) / 3


def test_patients_are_dealt_whole_and_once() -> None:
    groups = RNG.integers(0, 11, 300)
    parts = deal(groups, 4, 0)
    assert len(parts) == 4 and sorted(np.concatenate(parts).tolist()) == sorted(set(groups.tolist()))
    loads = [int(np.isin(groups, part).sum()) for part in parts]
    assert max(loads) - min(loads) < 60


def test_a_mark_that_every_patient_shares_is_found() -> None:
    groups = np.repeat(np.arange(10), 8)
    covers = RNG.normal(0, 1, (80, 300)) + RNG.normal(0, 1, (10, 300))[groups]
    stegos = covers + 1.2 * (np.arange(300) < 30)
    found = detection(*cross_validated(covers, stegos, groups), groups)
    assert found.auc > 0.9 and found.error < 0.2 and found.patients == 10 and found.tiles == 80
    assert found.low is not None and found.high is not None and found.low <= found.auc <= found.high


def test_a_mark_of_one_patient_alone_does_not_count() -> None:
    """Each patient's mark points elsewhere: who splits tiles sees it, who splits patients does not."""
    groups = np.repeat(np.arange(10), 8)
    covers = RNG.normal(0, 1, (80, 300))
    stegos = covers + 2.0 * RNG.choice([-1, 1], (10, 300))[groups]
    by_patient = auc(*cross_validated(covers, stegos, groups))
    by_tile = auc(*cross_validated(covers, stegos, np.arange(80)))
    assert by_tile > 0.9 and by_patient < 0.7


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two patients"):
        cross_validated(np.zeros((4, 2)), np.ones((4, 2)), np.zeros(4, np.int64))
