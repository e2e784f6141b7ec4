"""Reversible colour transforms of level-index frames (integers, lifting)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import med_predictions

Channels = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def _same(a: NDArray[np.int32], b: NDArray[np.int32], c: NDArray[np.int32]) -> Channels:
    return a, b, c


def _minus_green(r: NDArray[np.int32], g: NDArray[np.int32], b: NDArray[np.int32]) -> Channels:
    return g, r - g, b - g


def _plus_green(g: NDArray[np.int32], u: NDArray[np.int32], v: NDArray[np.int32]) -> Channels:
    return u + g, g, v + g


def _to_ycocg(r: NDArray[np.int32], g: NDArray[np.int32], b: NDArray[np.int32]) -> Channels:
    orange = r - b
    middle = b + (orange >> 1)
    green = g - middle
    return middle + (green >> 1), orange, green


def _from_ycocg(y: NDArray[np.int32], orange: NDArray[np.int32], green: NDArray[np.int32]) -> Channels:
    middle = y - (green >> 1)
    b = middle - (orange >> 1)
    return b + orange, green + middle, b


def _to_rct(r: NDArray[np.int32], g: NDArray[np.int32], b: NDArray[np.int32]) -> Channels:
    return (r + 2 * g + b) >> 2, b - g, r - g


def _from_rct(y: NDArray[np.int32], u: NDArray[np.int32], v: NDArray[np.int32]) -> Channels:
    g = y - ((u + v) >> 2)
    return v + g, g, u + g


Step = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]], Channels]
# wire number -> (forward, inverse)
TRANSFORMS: tuple[tuple[Step, Step], ...] = (
    (_same, _same),
    (_minus_green, _plus_green),
    (_to_ycocg, _from_ycocg),
    (_to_rct, _from_rct),
)


def forward(index: NDArray[np.uint16], kind: int) -> Channels:
    """Three int32 planes (rows, columns) of a (rows, columns, 3) frame."""
    wide = index.astype(np.int32)
    return TRANSFORMS[kind][0](wide[..., 0], wide[..., 1], wide[..., 2])


def inverse(planes: Channels, kind: int) -> NDArray[np.int32]:
    """Exact inverse of forward: int32 (rows, columns, 3)."""
    return np.stack(TRANSFORMS[kind][1](*planes), axis=-1)


def choose_transform(index: NDArray[np.uint16]) -> int:
    """Wire number of the transform with the least estimated code length."""
    step = max(1, index.shape[0] // 256)
    sample = index[::step] if step == 1 else index[index.shape[0] // 3 : index.shape[0] // 3 + 256]
    costs = []
    for kind in range(len(TRANSFORMS)):
        planes = forward(sample, kind)
        costs.append(sum(float(np.log2(1 + 2 * np.abs(plane - med_predictions(plane))).sum()) for plane in planes))
    return int(np.argmin(costs))
