"""The encoder's fit of the learned coder's predictors (floats; a decoder only sees rounded coefficients)."""

from __future__ import annotations

from dataclasses import dataclass
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
DIRECTIONS = 3
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
    buf: Any, rows: int, columns: int, step: int, activity: Any, direction: Any, thresholds: Any, previous: Any
) -> Any:
    """Weighted normal equations: float64[classes * 3 directions, n + 1, n + 1]; last row and column: the sample.

    `previous` int32[rows + 2, columns + 2] (n = 44) or empty (n = 35).
    """
    unknowns = CAUSAL + (PREVIOUS_ROW.size if previous.size else 0)
    size, classes = unknowns + 1, (thresholds.size + 1) * DIRECTIONS
    out = np.zeros((classes, size, size), np.float64)
    blocks = np.zeros((classes, size, BLOCK), np.float32)
    used = np.zeros(classes, np.int64)
    at = 0
    for row in range(0, rows, step):
        y = row + TOP
        for column in range(columns):
            p = column + PAD
            own = class_of(activity[at], thresholds) * DIRECTIONS + direction[at]
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


@dataclass(frozen=True)
class Fitting:
    """A plane's normal equations for classes of activity times three directions, from which predictors are solved."""

    thresholds: NDArray[np.int64]
    parts: NDArray[np.float64]

    @staticmethod
    def of(plane: NDArray[np.int32], previous: NDArray[np.int32] | None, classes: int) -> Fitting:
        """Gather from a plane int32[rows, columns]; `previous`: int32[rows + 2, columns + 2] of the frame before."""
        skip = TOP if plane.shape[0] > 4 * TOP else 0  # rows whose neighbours are made up teach nothing
        rows, columns = plane.shape[0] - skip, plane.shape[1]
        buf = padded(plane, int(plane[0, 0]))[skip:]
        before = NO_PREVIOUS if previous is None else np.ascontiguousarray(previous[skip:])
        step = max(1, rows * columns // FIT_SAMPLES)
        activity, direction = survey_texture(buf, rows, columns, step)
        cuts = np.quantile(activity, np.arange(1, classes) / classes) if classes > 1 else np.zeros(0)
        thresholds = np.unique(cuts.astype(np.int64))
        return Fitting(thresholds, normal_equations(buf, rows, columns, step, activity, direction, thresholds, before))

    def predictors(self, directions: int, precision: int) -> Predictors:
        """One for all samples and one for each class, or for each class and direction; multiples of 2^precision / 1024.

        With one class and one direction only the common one.
        """
        whole = self.parts.sum(axis=0)
        size = whole.shape[0]
        parts = self.parts if directions > 1 else self.parts.reshape(-1, DIRECTIONS, size, size).sum(axis=1)
        systems = [whole] if len(parts) == 1 else [whole, *parts]
        unit = 1 << precision
        taps = np.stack([np.rint(solve(system) * 1024 / unit) * unit for system in systems])
        return Predictors(self.thresholds, np.clip(taps, -HIGHEST, HIGHEST).astype(np.int32))


def fit_plane(
    plane: NDArray[np.int32], previous: NDArray[np.int32] | None, classes: int, directions: int, precision: int
) -> Predictors:
    """Predictors of a plane for `classes` of activity times `directions` (1 or 3); 0 classes: none. See Fitting."""
    if classes == 0:
        return no_predictors(previous is not None)
    return Fitting.of(plane, previous, classes).predictors(directions, precision)


def no_predictors(previous: bool) -> Predictors:
    """Predictors without a set."""
    taps = CAUSAL + (len(PREVIOUS_TAPS) if previous else 0)
    return Predictors(np.zeros(0, np.int64), np.zeros((0, taps), np.int32))
