"""The region network: whole numbers, exact sums, the lattice alone, pinned weights."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from stego import regionnet
from stego.lattice import lattice, reserved
from stego.regionnet import DamagedWeights, Layer, inputs, load, non_interest, pack, scores, unpack
from tests.unit.test_stego_region import phantom

RNG = np.random.default_rng(11)


def test_the_shipped_weights_are_small_and_pinned() -> None:
    data = files("stego").joinpath(regionnet.WEIGHTS).read_bytes()
    assert len(data) < 50_000 and hashlib.sha256(data).hexdigest() == regionnet.WEIGHTS_SHA256
    assert pack(load()) == data
    assert regionnet.WEIGHTS in (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_no_sum_can_leave_int32() -> None:
    for index, layer in enumerate(load()):
        largest = 128 if index == 0 else regionnet.TOP
        sums = np.abs(layer.weights.astype(np.int64)).sum((1, 2, 3)) * largest + np.abs(layer.bias.astype(np.int64))
        assert sums.max() < 2**31 - (1 << layer.shift)


def test_scores_equal_a_plain_convolution() -> None:
    planes = inputs(lattice(phantom(150, 130)))
    expected = planes.astype(np.int64)
    for layer in load():
        reach = layer.weights.shape[2] // 2 * layer.dilation
        padded = np.pad(expected, ((0, 0), (reach, reach), (reach, reach)))
        rows, columns = expected.shape[1:]
        sums = np.zeros((len(layer.bias), rows, columns), np.int64) + layer.bias[:, None, None]
        for ky in range(layer.weights.shape[2]):
            for kx in range(layer.weights.shape[3]):
                y, x = ky * layer.dilation, kx * layer.dilation
                part = padded[:, y : y + rows, x : x + columns]
                sums += np.einsum("oi,irc->orc", layer.weights[:, :, ky, kx].astype(np.int64), part)
        expected = np.clip((sums + (1 << layer.shift >> 1)) >> layer.shift, 0, regionnet.TOP)
    assert np.array_equal(scores(planes, load())[0], sums[0])


def test_only_the_lattice_counts_and_the_body_is_left_alone() -> None:
    values = phantom(256, 256)
    noise = RNG.integers(-40000, 40000, values.shape)
    changed = np.where(reserved((256, 256)), values, noise).astype(np.int32)
    mask = non_interest(values)
    assert np.array_equal(mask, non_interest(changed))
    y, x = np.mgrid[:256, :256]
    radius = ((y - 128) / (0.35 * 256)) ** 2 + ((x - 128) / (0.35 * 256)) ** 2
    assert mask[radius < 0.9].mean() < 0.05 and mask[radius > 1.4].mean() > 0.3


def test_the_mask_is_pinned() -> None:
    """Stego images of years ago are read with it: other weights need another name, not another result."""
    digest = hashlib.sha256(np.packbits(non_interest(phantom(256, 256))).tobytes()).hexdigest()
    assert digest[:16] == "27b4bb7f5b5c4834"


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (30, 31), (40, 200)])
def test_small_and_flat_frames_have_no_region(shape: tuple[int, int]) -> None:
    assert not non_interest(np.full(shape, 5, np.int32)).any()
    assert non_interest(RNG.integers(0, 100, shape).astype(np.int32)).shape == shape


def test_other_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(load())
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(DamagedWeights):
            unpack(wrong)
    load.cache_clear()
    monkeypatch.setattr(regionnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DamagedWeights, match="SHA-256"):
        non_interest(phantom())
    load.cache_clear()


def test_layers_survive_packing() -> None:
    layers = tuple(
        Layer(
            RNG.integers(-127, 128, (regionnet.CHANNELS[i + 1], regionnet.CHANNELS[i], side, side)).astype(np.int8),
            RNG.integers(-(2**20), 2**20, regionnet.CHANNELS[i + 1]).astype(np.int32), i, regionnet.DILATIONS[i],
        )
        for i, side in enumerate(regionnet.SIDES)
    )  # fmt: skip
    for before, after in zip(layers, unpack(pack(layers)), strict=True):
        assert np.array_equal(before.weights, after.weights) and np.array_equal(before.bias, after.bias)
        assert (before.shift, before.dilation) == (after.shift, after.dilation)
