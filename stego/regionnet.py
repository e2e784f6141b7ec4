"""Regions of non-interest by a small trained segmentation network, in integers from end to end.

Sees the reserved lattice alone, like the classical mask (stego.region), and gives the same mask on every machine: its
inputs are ranks, its weights whole numbers, its sums int32 and exact. Five 3 x 3 convolutions with dilation 1, 2, 4, 8
and 16 (a cell sees 31 cells far, 124 samples) and a 1 x 1 one; 2,569 weights and biases, 8-bit weights.

It was taught (tests/acceptance/region_training.py) what the lattice does not show: body masks from full resolution and
from the header's Hounsfield scale and padding. Weights ship with the package; their SHA-256 stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stego.errors import StegoError
from stego.lattice import lattice
from stego.region import SMALLEST, SPECK, levels, upsample, without_specks

WEIGHTS = "region_weights.bin"
WEIGHTS_SHA256 = "67194547f72c62334f393d8ff4f4ae04f32c7ac5073534ed5c751e1c9b784425"
CHANNELS = (3, 8, 8, 8, 8, 8, 1)
DILATIONS = (1, 2, 4, 8, 16, 1)
SIDES = (3, 3, 3, 3, 3, 1)
TOP = 4095  # activations are clipped to 0..TOP: 12 bits, so that no sum leaves int32
_HALF = 128

kernel = numba.njit(nogil=True, cache=True)


class DamagedWeights(StegoError):
    """The weights in the package are not those that the masks are made with."""


@dataclass(frozen=True, slots=True)
class Layer:
    """weights int8 (out, in, side, side), bias int32 (out,), shift: bits taken off the sum (rounded)."""

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: int
    dilation: int


def non_interest(values: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Bool (rows, columns), True outside anatomy: a function of the lattice of `values` alone.

    All False for tiny or flat frames. Raises DamagedWeights.
    """
    return mask(values, load())


def mask(values: NDArray[np.int32], layers: tuple[Layer, ...]) -> NDArray[np.bool_]:
    """`non_interest` with other weights (training)."""
    cells = lattice(values)
    if min(cells.shape, default=0) < SMALLEST or int(cells.min()) == int(cells.max()):
        return np.zeros(values.shape, dtype=np.bool_)
    outside = scores(inputs(cells), layers)[0] > 0
    outside = without_specks(outside, SPECK) & ~without_specks(~outside, SPECK)
    return upsample(outside, (values.shape[0], values.shape[1]))


def inputs(cells: NDArray[np.int32]) -> NDArray[np.int32]:
    """int32 (3, rows, columns): level, rank of the level, rank of the local activity; each centred, -128..127."""
    level = levels(cells)
    return np.stack((level, _ranks(level), _ranks(_activity(cells)))).astype(np.int32) - _HALF


def _activity(cells: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sum of absolute differences to the four neighbours, edges repeated."""
    padded = np.pad(cells.astype(np.int64), 1, mode="edge")
    centre = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray(sum(np.abs(centre - near) for near in around), dtype=np.int64)


def _ranks(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Mean rank of each value (ties share it), scaled to 0..255."""
    order = np.sort(values, axis=None)
    below, upto = np.searchsorted(order, values, "left"), np.searchsorted(order, values, "right")
    return np.asarray((below + upto) * 255 // (2 * order.size))


def scores(planes: NDArray[np.int32], layers: tuple[Layer, ...]) -> NDArray[np.int32]:
    """The network's last sums, int32 (1, rows, columns): above 0 means non-interest."""
    for layer in layers[:-1]:
        sums = _convolve(planes, layer.weights.astype(np.int32), layer.bias, layer.dilation)
        planes = np.clip((sums + (1 << layer.shift >> 1)) >> layer.shift, 0, TOP)
    last = layers[-1]
    return np.asarray(_convolve(planes, last.weights.astype(np.int32), last.bias, last.dilation))


def pack(layers: tuple[Layer, ...]) -> bytes:
    """Weights, biases and shifts of all layers, little endian, without any header: the shapes stand above."""
    return b"".join(
        layer.weights.tobytes() + layer.bias.astype("<i4").tobytes() + bytes([layer.shift]) for layer in layers
    )


def unpack(data: bytes) -> tuple[Layer, ...]:
    """Inverse of `pack`. Raises DamagedWeights for another length."""
    layers, at = [], 0
    for index, (side, dilation) in enumerate(zip(SIDES, DILATIONS, strict=True)):
        shape = (CHANNELS[index + 1], CHANNELS[index], side, side)
        size = int(np.prod(shape))
        end = at + size + 4 * shape[0]
        if len(data) <= end:
            raise DamagedWeights("the weights are cut off")
        weights = np.frombuffer(data, np.int8, size, at).reshape(shape)
        layers.append(Layer(weights, np.frombuffer(data, "<i4", shape[0], at + size), data[end], dilation))
        at = end + 1
    if at != len(data):
        raise DamagedWeights("more than the weights")
    return tuple(layers)


@cache
def load() -> tuple[Layer, ...]:
    """The shipped weights. Raises DamagedWeights when their SHA-256 is another."""
    data = files("stego").joinpath(WEIGHTS).read_bytes()
    if sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise DamagedWeights("the weights' SHA-256 is another")
    return unpack(data)


@kernel
def _convolve(planes: Any, weights: Any, bias: Any, dilation: Any) -> Any:
    """Sums int32 (out, rows, columns) of a dilated convolution; zeros beyond the edges."""
    outs, ins, side = weights.shape[0], weights.shape[1], weights.shape[2]
    rows, columns = planes.shape[1], planes.shape[2]
    sums = np.empty((outs, rows, columns), np.int32)
    for o in range(outs):
        for r in range(rows):
            sums[o, r] = bias[o]
            for i in range(ins):
                for ky in range(side):
                    y = r + (ky - side // 2) * dilation
                    if y < 0 or y >= rows:
                        continue
                    for kx in range(side):
                        shift = (kx - side // 2) * dilation
                        first, last = max(0, -shift), min(columns, columns - shift)
                        if last > first:
                            _add(
                                sums[o, r, first:last],
                                planes[i, y, first + shift : last + shift],
                                weights[o, i, ky, kx],
                            )
    return sums


@kernel
def _add(target: Any, source: Any, weight: Any) -> None:
    for c in range(target.size):
        target[c] += np.int32(weight * source[c])
