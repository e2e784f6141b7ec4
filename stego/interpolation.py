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
PARTS = 5
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
def row_parts(work: Any, row: Any, weights: Any, parts: Any) -> Any:
    """What the samples of a row have from the rows around it, which do not change while a walk is in this one.

    parts int64 (5, columns), of which the columns with MARGIN on both sides are filled: activity, prediction in
    1 / (4 UNIT), and steepness (differences to the samples above and below, see `set_steepness`); two rows of scratch.
    """
    up2, up, here, down, down2 = work[row - 2], work[row - 1], work[row], work[row + 1], work[row + 2]
    calm, level, steep, first, second = parts[0], parts[1], parts[2], parts[3], parts[4]
    columns = here.size
    for c in range(columns - 1):  # differences along the rows next to this one, and two away
        first[c] = abs(np.int64(up[c]) - up[c + 1]) + abs(np.int64(down[c]) - down[c + 1])
        second[c] = abs(np.int64(up2[c]) - up2[c + 1]) + abs(np.int64(down2[c]) - down2[c + 1])
    for c in range(2, columns - 2):
        calm[c] = first[c - 2] + 2 * (first[c - 1] + first[c]) + first[c + 1]
    for c in range(2, columns - 2):
        calm[c] += second[c - 2] + second[c - 1] + second[c] + second[c + 1] + 2 * abs(np.int64(up[c]) - down[c])
    for c in range(columns):  # differences across them, without this row
        first[c] = abs(np.int64(up2[c]) - up[c]) + abs(np.int64(down[c]) - down2[c])
        steep[c] = abs(np.int64(up[c]) - here[c]) + abs(np.int64(here[c]) - down[c])
    for c in range(2, columns - 2):
        calm[c] += first[c - 2] + first[c - 1] + first[c] + first[c + 1] + first[c + 2]
    for c in range(columns):  # sums of the rows, for the prediction
        first[c] = np.int64(up[c]) + down[c]
        second[c] = np.int64(up2[c]) + down2[c]
    w1, w3, w4, w5, w6 = 4 * weights[1], 4 * weights[3], 4 * weights[4], 4 * weights[5], 4 * weights[6]
    w0 = _nearest(weights) - 2 * weights[0]
    for c in range(2, columns - 2):
        level[c] = w0 * first[c] + w1 * (first[c - 1] + first[c + 1]) + w5 * (first[c - 2] + first[c + 2])
    for c in range(2, columns - 2):
        level[c] += w3 * second[c] + w4 * (second[c - 1] + second[c + 1]) + w6 * (second[c - 2] + second[c + 2])


@kernel
def _nearest(weights: Any) -> Any:
    """Weight of each of the four nearest samples in 1 / (4 UNIT), but for the first feature."""
    return UNIT - 2 * (weights[2] + weights[3]) - 4 * (weights[1] + weights[4] + weights[5] + weights[6])


@kernel
def set_steepness(work: Any, row: Any, column: Any, parts: Any) -> Any:
    """Refresh the one thing in `parts` that a changed sample of the row itself alters."""
    value = np.int64(work[row, column])
    parts[2, column] = abs(work[row - 1, column] - value) + abs(value - work[row + 1, column])


@kernel
def activity(here: Any, c: Any, parts: Any) -> Any:
    """Weighted sum of differences between neighbours of sample c of the row `here`, in the 5 x 5 around it and without
    the sample itself: along each line of five, differences of neighbours, those in the middle of a line next to the
    sample twice, and for the lines through it the difference across it twice."""
    b, d = np.int64(here[c - 1]), np.int64(here[c + 1])
    steep = parts[2]
    beside = 2 * (steep[c - 1] + steep[c + 1]) + steep[c - 2] + steep[c + 2]
    return parts[0, c] + beside + abs(here[c - 2] - b) + 2 * abs(b - d) + abs(d - here[c + 2])


@kernel
def quarters(here: Any, c: Any, parts: Any, inner: Any, outer: Any) -> Any:
    """The prediction of sample c of the row in quarter units: nearest whole multiple of 1/4; `inner`, `outer` from
    `row_weights`."""
    beside = inner * (np.int64(here[c - 1]) + here[c + 1]) + outer * (np.int64(here[c - 2]) + here[c + 2])
    return (parts[1, c] + beside + UNIT // 2) >> 8


@kernel
def row_weights(weights: Any) -> Any:
    """(inner, outer): weights of a sample's neighbours in its own row, one and two away, in 1 / (4 UNIT)."""
    return _nearest(weights) + 2 * weights[0], 4 * weights[2]


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
    out, parts = np.zeros(FEATURES, np.int64), np.empty((PARTS, columns), np.int64)
    for row in range(MARGIN, rows - MARGIN, step):
        row_parts(work, row, out, parts)  # any weights: only the activity is wanted
        for column in range(MARGIN, columns - MARGIN):
            if not mask[row, column]:
                continue
            i = row * columns + column
            weight = 1.0 / (1 + activity(work[row], column, parts))
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
