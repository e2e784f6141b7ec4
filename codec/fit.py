"""The encoder's fit of the least-squares predictors (floats; the decoder only sees the rounded coefficients)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from codec.dualformat import Predictors
from codec.prediction import class_of
from codec.rans import kernel
from codec.tables import PAD, TAPS, TOP

SAMPLES = 250_000  # enough for 9 x 35 unknowns; more costs time and gains nothing measurable
TAP_ROW = np.array([row for row, _ in TAPS], np.int64)
TAP_COLUMN = np.array([column for _, column in TAPS], np.int64)
UNKNOWNS = len(TAPS)
BLOCK = 128


NO_PREDICTORS = Predictors(np.zeros(0, np.int64), np.zeros((0, UNKNOWNS), np.int32))


@kernel
def activities(buf: Any, rows: int, columns: int, step: int) -> Any:
    """Activity of every sample of every `step`-th row, int64[n]."""
    out = np.zeros(((rows + step - 1) // step) * columns, np.int64)
    at = 0
    for row in range(0, rows, step):
        y = row + TOP
        for column in range(columns):
            p = column + PAD
            w, n, nw, ne = buf[y, p - 1], buf[y - 1, p], buf[y - 1, p - 1], buf[y - 1, p + 1]
            out[at] = abs(w - nw) + abs(n - nw) + abs(n - ne) + abs(w - buf[y, p - 2]) + abs(n - buf[y - 2, p])
            at += 1
    return out


@njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def add_block(block: Any, used: Any, out: Any) -> None:
    """Add the products of `used` weighted samples, float32[36, BLOCK], to the lower triangle of float64[36, 36]."""
    for i in range(block.shape[0]):
        left = block[i]
        for j in range(i + 1):
            right = block[j]
            total = np.float32(0)
            for n in range(used):
                total += left[n] * right[n]
            out[i, j] += total


@kernel
def normal_equations(buf: Any, rows: int, columns: int, step: int, thresholds: Any, activity: Any) -> Any:
    """Weighted normal equations of each class: float64[classes, 36, 36]; the last row and column is the sample."""
    size = UNKNOWNS + 1
    out = np.zeros((thresholds.size + 1, size, size), np.float64)
    blocks = np.zeros((thresholds.size + 1, size, BLOCK), np.float32)
    used = np.zeros(thresholds.size + 1, np.int64)
    at = 0
    for row in range(0, rows, step):
        y = row + TOP
        for column in range(columns):
            p = column + PAD
            own = class_of(activity[at], thresholds)
            block, n = blocks[own], used[own]
            base = np.float32(0.5) * (buf[y, p - 1] + buf[y - 1, p])
            mean = activity[at] / 5.0
            root = np.float32(1.0 / np.sqrt(4.0 + mean * mean))
            for j in range(UNKNOWNS):
                block[j, n] = (buf[y + TAP_ROW[j], p + TAP_COLUMN[j]] - base) * root
            block[UNKNOWNS, n] = (buf[y, p] - base) * root
            at += 1
            used[own] = n + 1
            if n + 1 == BLOCK:
                add_block(block, BLOCK, out[own])
                used[own] = 0
    for own in range(used.size):
        add_block(blocks[own], used[own], out[own])
        for i in range(size):
            for j in range(i):
                out[own, j, i] = out[own, i, j]
    return out


def fit_predictors(buf: NDArray[np.int32], rows: int, columns: int, classes: int, precision: int) -> Predictors:
    """Fit one predictor for the plane and one per activity class to a padded plane (see dual.padded).

    `classes` 0: none; 1: only the common one. Coefficients are rounded to 2^precision / 1024.
    """
    if classes == 0:
        return NO_PREDICTORS
    step = max(1, rows * columns // SAMPLES)
    activity = activities(buf, rows, columns, step)
    cuts = np.quantile(activity, np.arange(1, classes) / classes) if classes > 1 else np.zeros(0)
    thresholds = np.unique(cuts.astype(np.int64))
    parts = normal_equations(buf, rows, columns, step, thresholds, activity)
    whole = parts.sum(axis=0)
    systems = [whole] if classes == 1 else [whole, *parts]
    unit = 1 << precision
    taps = np.stack([np.rint(solve(system) * 1024 / unit) * unit for system in systems])
    return Predictors(thresholds, np.clip(taps, -32704, 32704).astype(np.int32))


def solve(system: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients (float64[n]) of one ridge-regularised system float64[n + 1, n + 1]; zeros when there are none."""
    unknowns = system.shape[0] - 1
    matrix = system[:unknowns, :unknowns]
    ridge = 1e-4 * np.trace(matrix) / unknowns + 0.5
    try:
        out: NDArray[np.float64] = np.linalg.solve(matrix + ridge * np.eye(unknowns), system[:unknowns, unknowns])
    except np.linalg.LinAlgError:
        return np.zeros(unknowns)
    return out if np.isfinite(out).all() else np.zeros(unknowns)
