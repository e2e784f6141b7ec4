"""sealwatch without torch, on more than eight bits: the same numbers as its own functions, and scores that see."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from worker import detectors
from worker.detectors import NoDetectors, cooccurrence4, load

RNG = np.random.default_rng(8)
BEGINNING = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_numbers_whatever_ran_before() -> None:
    RNG.bit_generator.state = BEGINNING


def cover(rows: int = 96, columns: int = 112, *, noise: float = 3.0, base: int = 1000) -> NDArray[np.int32]:
    slope = np.add.outer(np.arange(rows) * 0.7, np.arange(columns) * 0.4)
    return np.rint(base + slope + RNG.normal(0, noise, (rows, columns))).astype(np.int32)


def replaced(values: NDArray[np.int32], rate: float) -> NDArray[np.int32]:
    """Plain replacement of lowest bits by message bits, in a share of the samples."""
    chosen = RNG.random(values.shape) < rate
    return np.where(chosen, (values & ~1) | RNG.integers(0, 2, values.shape), values).astype(np.int32)


def test_counts_are_sealwatchs() -> None:
    load()
    theirs = importlib.import_module("sealwatch.srm.cooccurrence").cooccurrence4
    residual = np.clip(RNG.integers(-3, 4, (41, 57)), -2, 2).astype(np.float64)
    for kind in ("hor", "ver"):
        assert np.array_equal(cooccurrence4(residual, kind, 2), theirs(residual, kind, 2))


def test_eight_bit_features_are_sealwatchs_public_ones() -> None:
    found = load()
    values = np.clip(cover(noise=1.0, base=20), 0, 255)
    srm = importlib.import_module("sealwatch.srm")
    theirs = srm.extract(values.astype(np.uint8), qs=[[1]] * 5)
    ours = found.features["SRMQ1"](values)
    assert ours.shape == (12753,)
    assert np.allclose(ours, np.concatenate([np.ravel(theirs[name]) for name in sorted(theirs)]), atol=1e-7)
    assert found.features["SPAM"](values).shape == (686,)


@pytest.mark.parametrize("base", [40, 1000, 30000, -20000])
@pytest.mark.parametrize("name", detectors.SCORES)
def test_replacement_is_seen_at_every_depth(name: str, base: int) -> None:
    score = load().scores[name]
    values = cover(256, 256, base=base)
    assert score(replaced(values, 0.8)) > score(values) + 0.15


@pytest.mark.parametrize("name", detectors.SCORES)
def test_scores_are_numbers_even_where_there_is_nothing_to_see(name: str) -> None:
    for values in (np.zeros((32, 32), np.int32), (4 * RNG.integers(0, 900, (32, 32))).astype(np.int32)):
        assert np.isfinite(load().scores[name](values))


@pytest.mark.parametrize("name", detectors.FEATURES)
def test_features_do_not_hang_on_the_offset_and_see_changes_by_one(name: str) -> None:
    extract = load().features[name]
    values = cover(128, 128, noise=1.5)
    assert np.allclose(extract(values), extract(values + 20000), atol=1e-6)
    changed = values + RNG.integers(-1, 2, values.shape, dtype=np.int32)
    assert np.abs(extract(values) - extract(changed)).sum() > 0.05 * np.abs(extract(values)).sum()


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from worker.detectors import load; load(); assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_without_the_extra_the_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    load.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "sealwatch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoDetectors) as caught:
        load()
    assert caught.value.reason == "no-bench-extra" and "palimpsest[bench]" in caught.value.message
    load.cache_clear()
