"""The encoder's choices for one plane: predictors, split k, raw planes, tile height."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codec.dualformat import Plan, Predictors
from codec.fit import fit_predictors
from codec.globalpath import code_global
from codec.localpath import code_local
from codec.mixture import RAW_CHOICES, SPLIT_CHOICES
from codec.rans import COUNT, IO_FIELDS, MODE, SYMBOL
from codec.tables import PAD, TOP

TILE_SAMPLES = 1 << 18
SURVEY_SAMPLES = 24_000
SPLIT_LOSS = 0.0005  # share of the code length given up to have a global part at all
RAW_LOSS = 0.0005  # share of the code length that leaving planes unmodelled may cost
NO_WORDS = np.zeros(0, np.uint32)
# samples up to -> (numbers of classes to try, precision)
CLASS_CHOICES = (
    (1 << 12, (0, 1), 2),
    (1 << 14, (0, 1, 3), 2),
    (1 << 17, (1, 4), 1),
    (1 << 20, (6,), 0),
    (1 << 62, (8,), 0),
)


def padded(plane: NDArray[np.int32], anchor: int) -> NDArray[np.int32]:
    """The plane inside its padding: int32 (rows + TOP, columns + 2 PAD)."""
    rows, columns = plane.shape
    buf = np.full((rows + TOP, columns + 2 * PAD), anchor, np.int32)
    buf[TOP:, PAD : PAD + columns] = plane
    buf[TOP + 1 :, :PAD] = plane[:-1, :1]
    buf[TOP:, PAD + columns :] = plane[:, -1:]
    return buf


def make_plan(plane: NDArray[np.int32], highest: int, tile_samples: int) -> Plan:
    """Choose by estimated code length, surveyed on parts of the plane (int32, 0..highest, highest > 0)."""
    rows, columns = plane.shape
    tiles = max(1, round(plane.size / tile_samples))
    tile_rows = -(-rows // min(tiles, rows))
    whole = padded(plane, int(plane[0, 0]))
    parts = _survey_parts(plane)
    bits = highest.bit_length()
    choices, precision = next((c, p) for limit, c, p in CLASS_CHOICES if plane.size <= limit)
    predictors = _choose_predictors(whole, plane, parts, highest, choices, precision)
    gains = _survey(parts, highest, bits, predictors)
    k = _choose_split(parts, highest, bits, gains)
    costs = gains[32 : 32 + min(RAW_CHOICES, bits)]
    raw = max(r for r in range(len(costs)) if r <= k and costs[r] <= costs[0] * (1 + RAW_LOSS))
    return Plan(k, raw, tile_rows, precision, predictors)


def _choose_predictors(
    whole: NDArray[np.int32], plane: NDArray[np.int32], parts: list[NDArray[np.int32]], highest: int,
    choices: tuple[int, ...], precision: int,
) -> Predictors:  # fmt: skip
    """The number of activity classes with the least estimated code length, taps counted."""
    fits = [fit_predictors(whole, plane.shape[0], plane.shape[1], classes, precision) for classes in choices]
    if len(fits) == 1:
        return fits[0]
    share = plane.size / sum(part.size for part in parts)
    costs = [float(_survey(parts, highest, 0, fit)[32]) * share + fit.taps.size * (8.5 - precision) for fit in fits]
    return fits[int(np.argmin(costs))]


def _survey_parts(plane: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Up to two blocks of whole rows that stand for the plane."""
    rows, columns = plane.shape
    if plane.size <= SURVEY_SAMPLES:
        return [plane]
    height = max(1, SURVEY_SAMPLES // 2 // columns)
    starts = (max(0, rows // 3 - height // 2), max(0, 2 * rows // 3 - height // 2))
    return [np.ascontiguousarray(plane[start : start + height]) for start in starts]


def _survey(parts: list[NDArray[np.int32]], highest: int, bits: int, predictors: Predictors) -> NDArray[np.float64]:
    """Summed survey of the parts: [k] bits saved by knowing x >> k, [32 + r] cost with r raw planes."""
    gains = np.zeros(64, np.float64)
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    io[MODE] = COUNT
    for part in parts:
        code_local(
            io, NO_WORDS, NO_WORDS, NO_WORDS, cost, padded(part, int(part[0, 0])), np.zeros(part.shape, np.int32),
            highest, bits, 0, predictors.thresholds, predictors.taps, gains,
        )  # fmt: skip
    return gains


def count_global(plane: NDArray[np.int32], highest: int) -> tuple[float, int]:
    """Code length in bits and number of binary decisions of a plane of G."""
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    io[MODE] = COUNT
    code_global(io, NO_WORDS, NO_WORDS, NO_WORDS, cost, plane, highest)
    return float(cost[0]), int(io[SYMBOL])


def _choose_split(parts: list[NDArray[np.int32]], highest: int, bits: int, gains: NDArray[np.float64]) -> int:
    """The k with the least code length of G plus L given G; from the top down, until it is clearly worse.

    Of splits that cost the same within SPLIT_LOSS the one with the larger global part.
    """
    extra = {bits: 0.0}
    for k in range(bits - 1, max(1, bits - SPLIT_CHOICES) - 1, -1):
        extra[k] = sum(count_global(part >> k, highest >> k)[0] for part in parts) - float(gains[k])
        if extra[k] > min(extra.values()) + 0.02 * float(gains[32]):
            break
    allowed = min(extra.values()) + SPLIT_LOSS * float(gains[32])
    return min(k for k, cost in extra.items() if cost <= allowed)
