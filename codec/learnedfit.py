"""The encoder's fit of the learned coder's predictors (floats; a decoder only sees rounded coefficients)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.dualformat import Predictors
from codec.fit import BLOCK, TAP_COLUMN, TAP_ROW, add_block, solve
from codec.learneddecode import PREVIOUS_TAPS
from codec.plan import padded
from codec.prediction import class_of
from codec.rans import kernel
from codec.tables import PAD, TAPS, TOP

FIT_SAMPLES = 1 << 16
HIGHEST = 32704
CAUSAL = len(TAPS)
PREVIOUS_ROW = np.array([1 + row for row, _ in PREVIOUS_TAPS], np.int64)
PREVIOUS_COLUMN = np.array([1 + column for _, column in PREVIOUS_TAPS], np.int64)
NO_PREVIOUS = np.zeros((0, 0), np.int32)


@kernel
def survey_texture(buf: Any, rows: int, columns: int, step: int) -> Any:
    """Activity (int64[n]) and direction 0, 1, 2 (int64[n]) of every sample of every `step`-th row."""
    count = ((rows + step - 1) // step) * columns
    activity, direction = np.zeros(count, np.int64), np.zeros(count, np.int64)
    at = 0
    for row in range(0, rows, step):
        y = row + TOP
        for column in range(columns):
            p = column + PAD
            w, n, nw, ne = buf[y, p - 1], buf[y - 1, p], buf[y - 1, p - 1], buf[y - 1, p + 1]
            down = abs(w - nw) + abs(n - buf[y - 2, p])
            across = abs(n - nw) + abs(w - buf[y, p - 2])
            activity[at] = down + across + abs(n - ne)
            direction[at] = 0 if 2 * down < across else (1 if down <= 2 * across else 2)
            at += 1
    return activity, direction


@kernel
def normal_equations(
    buf: Any, rows: int, columns: int, step: int, activity: Any, direction: Any, thresholds: Any, directions: int,
    previous: Any,
) -> Any:  # fmt: skip
    """Weighted normal equations of each class: float64[classes, n + 1, n + 1]; the last row and column is the sample.

    `previous` int32[rows + 2, columns + 2] (n = 44) or empty (n = 35).
    """
    unknowns = CAUSAL + (PREVIOUS_ROW.size if previous.size else 0)
    size, classes = unknowns + 1, (thresholds.size + 1) * directions
    out = np.zeros((classes, size, size), np.float64)
    blocks = np.zeros((classes, size, BLOCK), np.float32)
    used = np.zeros(classes, np.int64)
    at = 0
    for row in range(0, rows, step):
        y = row + TOP
        for column in range(columns):
            p = column + PAD
            own = class_of(activity[at], thresholds) * directions + (direction[at] if directions > 1 else 0)
            block, n = blocks[own], used[own]
            base = np.float32(0.5) * (buf[y, p - 1] + buf[y - 1, p])
            mean = activity[at] / 5.0
            root = np.float32(1.0 / np.sqrt(4.0 + mean * mean))
            for j in range(CAUSAL):
                block[j, n] = (buf[y + TAP_ROW[j], p + TAP_COLUMN[j]] - base) * root
            for j in range(CAUSAL, unknowns):
                earlier = previous[row + PREVIOUS_ROW[j - CAUSAL], column + PREVIOUS_COLUMN[j - CAUSAL]]
                block[j, n] = (earlier - base) * root
            block[unknowns, n] = (buf[y, p] - base) * root
            at += 1
            used[own] = n + 1
            if n + 1 == BLOCK:
                add_block(block, BLOCK, out[own])
                used[own] = 0
    for own in range(classes):
        add_block(blocks[own], used[own], out[own])
        for i in range(size):
            for j in range(i):
                out[own, j, i] = out[own, i, j]
    return out


def fit_plane(
    plane: NDArray[np.int32], previous: NDArray[np.int32] | None, classes: int, directions: int, precision: int
) -> Predictors:
    """Predictors of a plane int32[rows, columns]: one for all samples and one for each class.

    `classes` of activity times `directions` (1 or 3); 0: no predictors; 1 and 1: only the common one. `previous`: the
    previous frame's plane, int32[rows + 2, columns + 2], for nine more coefficients. Coefficients are rounded to
    2^precision / 1024.
    """
    unknowns = CAUSAL + (0 if previous is None else len(PREVIOUS_TAPS))
    if classes == 0:
        return Predictors(np.zeros(0, np.int64), np.zeros((0, unknowns), np.int32))
    skip = TOP if plane.shape[0] > 4 * TOP else 0  # rows whose neighbours are made up teach nothing
    rows, columns = plane.shape[0] - skip, plane.shape[1]
    buf = padded(plane, int(plane[0, 0]))[skip:]
    before = NO_PREVIOUS if previous is None else np.ascontiguousarray(previous[skip:])
    step = max(1, rows * columns // FIT_SAMPLES)
    activity, direction = survey_texture(buf, rows, columns, step)
    cuts = np.quantile(activity, np.arange(1, classes) / classes) if classes > 1 else np.zeros(0)
    thresholds = np.unique(cuts.astype(np.int64))
    parts = normal_equations(buf, rows, columns, step, activity, direction, thresholds, directions, before)
    whole = parts.sum(axis=0)
    systems = [whole] if classes * directions == 1 else [whole, *parts]
    unit = 1 << precision
    taps = np.stack([np.rint(solve(system) * 1024 / unit) * unit for system in systems])
    return Predictors(thresholds, np.clip(taps, -HIGHEST, HIGHEST).astype(np.int32))
