"""The encoder's fit of the learned coder's predictors (floats; a decoder only sees rounded coefficients)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.dualformat import Predictors
from codec.fit import solve
from codec.learneddecode import PREVIOUS_TAPS
from codec.plan import padded
from codec.tables import PAD, TAPS, TOP
from codec.wavefit import DIRECTIONS, REACH, normal_equations, places, survey_texture

FIT_SAMPLES = 1 << 16
HIGHEST = 32704
CAUSAL = len(TAPS)
NO_PREVIOUS = np.zeros((0, 0), np.int32)
WIDE = 64  # columns from which on the samples at the edges, whose neighbours are made up, are not missed


@dataclass(frozen=True)
class Fitting:
    """A plane's normal equations for classes of activity times three directions, from which predictors are solved."""

    thresholds: NDArray[np.int64]
    parts: NDArray[np.float64]

    @staticmethod
    def of(plane: NDArray[np.int32], previous: NDArray[np.int32] | None, classes: int) -> Fitting:
        """Gather from a plane int32[rows, columns]; `previous`: int32[rows + 2, columns + 2] of the frame before."""
        rows, columns = plane.shape
        top, left, right = TOP, PAD, columns - REACH
        above, before, buf = 0, 0, np.ascontiguousarray(plane)
        if rows <= 4 * TOP or columns < WIDE:
            above, before, right = TOP, PAD, columns + PAD
            buf = np.pad(padded(plane, int(plane[0, 0])), ((0, 1), (0, 0)))  # vectors reach into the row below
            top = TOP if rows <= 4 * TOP else 2 * TOP
        rows += above
        step = max(1, (rows - top) * columns // FIT_SAMPLES)
        activity, direction = survey_texture(buf[:rows], top, step, left, right)
        below = np.cumsum(np.bincount(activity, minlength=1))
        thresholds = np.unique(np.searchsorted(below, np.arange(1, classes) * activity.size // classes, side="right"))
        unknowns = CAUSAL + (0 if previous is None else len(PREVIOUS_TAPS))
        parts = normal_equations(
            buf.ravel(), (rows, buf.shape[1]), top, step, left, right, activity, direction, thresholds,
            NO_PREVIOUS if previous is None else np.ascontiguousarray(previous), above, before, places(unknowns),
        )  # fmt: skip
        return Fitting(thresholds, parts)

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
