"""The integer tables of the dual coder. docs/bitstream.md gives the formulas; a test pins their CRCs.

Every entry is a real number rounded to the nearest integer; none lies close to a half, so that any platform's double
precision gives the same integers (the test checks the margin).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FRACTION = 6  # predictions are in 1/64 of a level
Z_LIMIT = 18  # the logistic law is cut off at 18 scales
Z_STEPS = 32  # table entries per scale
Z_LAST = 2 * Z_LIMIT * Z_STEPS
SCALE_COUNT = 192  # scales 2^(q/8) / 64 levels, q = 0..191
SCALE_LOWEST, SCALE_HIGHEST = 16, 160  # bounds of the estimated q, so that q + offset stays in the table
SCALE_OFFSETS = np.array([-14, -6, 1, 9, 20], np.int64)  # the five components' widths against the estimate, in q
FIRST_SHARES = np.array([1300, 5000, 11600, 3300, 500], np.int64)  # first weights of the five, of each centre

# The 35 causal neighbours of the least-squares predictors: row by row, (row offset, first column, last column).
TAP_ROWS = ((0, -5, -1), (-1, -4, 4), (-2, -4, 4), (-3, -3, 3), (-4, -2, 2))
TAPS = tuple((row, column) for row, first, last in TAP_ROWS for column in range(first, last + 1))
PAD = 8  # columns of padding on each side of a tile
TOP = 4  # rows of padding above a tile


def real_log2(number: int) -> float:
    """16 log2(n), and 0 for n = 0."""
    return 16.0 * math.log2(number) if number else 0.0


def real_weight(distance: int) -> float:
    """Blend weight at `distance` sixteenths of an octave above the least error: 65536 / ratio^4."""
    return 65536.0 * math.pow(2.0, -distance / 4)


def real_logistic(place: int) -> float:
    """2^26 times the logistic function at (place / 32 - 18)."""
    return float(1 << 26) / (1.0 + math.exp(-(place / Z_STEPS - Z_LIMIT)))


def real_inverse_scale(q: int) -> float:
    """2^20 over the scale 2^(q/8) / 64."""
    return float(1 << 26) / math.pow(2.0, q / 8)


def real_first_error(half_octave: int) -> float:
    """First mean error (1/512 level) of a context whose neighbours' summed error is 2^(i/2) (1/16 level)."""
    return math.pow(2.0, half_octave / 2) * 16.0 / 3.0 + 1.0


def _round(values: list[float]) -> NDArray[np.int64]:
    return np.array([math.floor(value + 0.5) for value in values], np.int64)


LOG2 = _round([real_log2(number) for number in range(4096)])
WEIGHT = np.append(_round([real_weight(distance) for distance in range(65)]), 0)
LOGISTIC = _round([real_logistic(place) for place in range(Z_LAST + 2)])
INVERSE_SCALE = _round([real_inverse_scale(q) for q in range(SCALE_COUNT)])
FIRST_ERROR = _round([real_first_error(half_octave) for half_octave in range(32)])
