"""Prediction of a sample from the 24 around it, and their activity: integers, for kernels that walk a frame.

A carrier that walks a frame in raster order, and back when it restores, has on both ways the changed values before a
sample and the original ones after it. So all of its neighbours may be used, not just a checkerboard's other set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego.carriers import kernel

MARGIN = 2
FEATURES = 7
UNIT = 256  # weights are whole multiples of 1 / UNIT
LIMIT = 255
CLASSES = 64
_COUNTS = np.array([2, 4, 2, 2, 4, 4, 4], np.int64)


@kernel
def features(flat: Any, i: Any, columns: Any, out: Any) -> Any:
    """Sum of the four nearest; `out` int64 (7,): 4 x each group's sum less its size x that sum, so 0 on a plane."""
    up, down = i - columns, i + columns
    up2, down2 = up - columns, down + columns
    across = np.int64(flat[i - 1]) + flat[i + 1]
    near = across + flat[up] + flat[down]
    out[0] = 4 * across - 2 * near
    out[1] = 4 * (np.int64(flat[up - 1]) + flat[up + 1] + flat[down - 1] + flat[down + 1] - near)
    out[2] = 4 * (np.int64(flat[i - 2]) + flat[i + 2]) - 2 * near
    out[3] = 4 * (np.int64(flat[up2]) + flat[down2]) - 2 * near
    out[4] = 4 * (np.int64(flat[up2 - 1]) + flat[up2 + 1] + flat[down2 - 1] + flat[down2 + 1] - near)
    out[5] = 4 * (np.int64(flat[up - 2]) + flat[up + 2] + flat[down - 2] + flat[down + 2] - near)
    out[6] = 4 * (np.int64(flat[up2 - 2]) + flat[up2 + 2] + flat[down2 - 2] + flat[down2 + 2] - near)
    return near


@kernel
def quarters(flat: Any, i: Any, columns: Any, weights: Any, out: Any) -> Any:
    """The prediction in quarter units: nearest whole multiple of 1/4. weights int64 (7,) in 1 / UNIT."""
    total = UNIT * features(flat, i, columns, out)
    for n in range(FEATURES):
        total += weights[n] * out[n]
    return (total + UNIT // 2) >> 8


@kernel
def _outer(flat: Any, at: Any, step: Any) -> Any:
    """Differences along a line of five through `at`, two steps away from the sample."""
    a, b, c = flat[at - 2 * step], flat[at - step], flat[at]
    d, e = flat[at + step], flat[at + 2 * step]
    return abs(a - b) + abs(b - c) + abs(c - d) + abs(d - e)


@kernel
def _inner(flat: Any, at: Any, step: Any) -> Any:
    """The same one step away, where the two in the middle count twice."""
    a, b, c = flat[at - 2 * step], flat[at - step], flat[at]
    d, e = flat[at + step], flat[at + 2 * step]
    return abs(a - b) + 2 * (abs(b - c) + abs(c - d)) + abs(d - e)


@kernel
def _through(flat: Any, i: Any, step: Any) -> Any:
    """The same through the sample, which is left out."""
    b, d = flat[i - step], flat[i + step]
    return abs(flat[i - 2 * step] - b) + 2 * abs(b - d) + abs(d - flat[i + 2 * step])


@kernel
def activity(flat: Any, i: Any, columns: Any) -> Any:
    """Weighted sum of differences between neighbours of sample i, in the 5 x 5 around it and without i itself."""
    total = _through(flat, i, 1) + _through(flat, i, columns)
    total += _inner(flat, i - columns, 1) + _inner(flat, i + columns, 1)
    total += _inner(flat, i - 1, columns) + _inner(flat, i + 1, columns)
    total += _outer(flat, i - 2 * columns, 1) + _outer(flat, i + 2 * columns, 1)
    return total + _outer(flat, i - 2, columns) + _outer(flat, i + 2, columns)


@kernel
def class_of(amount: Any) -> Any:
    """0 for none, 1 and 2 for as much; above, two classes an octave of activity, at most CLASSES - 1."""
    if amount <= 0:
        return 0
    octave = 0
    rest = amount
    while rest > 3:
        rest >>= 1
        octave += 1
    return min(CLASSES - 1, 2 * octave + rest - 1 if octave else rest)


@kernel
def _normal_equations(work: Any, mask: Any, step: Any, left: Any, right: Any) -> Any:
    rows, columns = work.shape
    flat = work.reshape(-1)
    out = np.empty(FEATURES, np.int64)
    for row in range(MARGIN, rows - MARGIN, step):
        for column in range(MARGIN, columns - MARGIN):
            if not mask[row, column]:
                continue
            i = row * columns + column
            weight = 1.0 / (1 + activity(flat, i, columns))
            near = features(flat, i, columns, out)
            error = (4 * np.int64(flat[i]) - near) * weight
            for n in range(FEATURES):
                right[n] += out[n] * weight * error
                for m in range(n + 1):
                    left[n, m] += out[n] * weight * out[m] * weight
    for n in range(FEATURES):
        for m in range(n):
            left[m, n] = left[n, m]


def fitted_weights(work: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Sender only: weights (int64 (7,), in 1 / UNIT, up to LIMIT) that predict the frame best where it is calm."""
    left, right = np.zeros((FEATURES, FEATURES)), np.zeros(FEATURES)
    step = 1 if work.size < 1 << 17 else 2 if work.size < 1 << 20 else 8
    _normal_equations(work, mask, step, left, right)
    left += np.eye(FEATURES) * (1e-9 + 1e-6 * np.trace(left) / FEATURES)
    weights = np.linalg.solve(left, right) * UNIT
    whole: NDArray[np.int64] = np.clip(np.rint(weights), -LIMIT, LIMIT).astype(np.int64)
    return whole
