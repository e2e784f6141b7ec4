"""Normal equations of the least-squares predictors, 16 products at once (numba kernels). For the encoder only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.lanes import load, multiply_add, splat, splat_at, store, to_float, widened
from codec.tables import TAP_ROWS
from codec.wavetables import bare, outer

DIRECTIONS = 3
BLOCK = 64  # samples of a class whose products are added up in float32
STRIDE = 64  # room for a sample's numbers and for what whole vectors write behind them
CAUSAL = 35
REACH = 10  # columns that the vector read from the sample's row reaches beyond the sample

# A sample's numbers: its neighbours from the topmost row down, itself, then the nine of the previous frame.
ROWS = np.array([row for row, _, _ in reversed(TAP_ROWS)], np.int64)
FIRSTS = np.array([first for _, first, _ in reversed(TAP_ROWS)], np.int64)
WIDTHS = np.array([last - first + 1 for _, first, last in reversed(TAP_ROWS)], np.int64)


def places(unknowns: int) -> NDArray[np.int64]:
    """Where a sample's taps, in the order of codec.tables.TAPS and then of the previous frame, and itself stand."""
    ends = np.cumsum(WIDTHS)
    taps = [np.arange(end - width, end) for end, width in zip(ends[::-1], WIDTHS[::-1], strict=True)]
    return np.concatenate([*taps, np.arange(CAUSAL + 1, unknowns + 1), [CAUSAL]])


@outer
def survey_texture(plane: Any, first: Any, step: Any, left: Any, right: Any) -> Any:
    """Activity and direction (0, 1, 2) of samples, int32[n] each: every `step`-th row from `first`, [left, right)."""
    rows = max(0, (plane.shape[0] - first + step - 1) // step)
    activity, direction = np.zeros(rows * (right - left), np.int32), np.zeros(rows * (right - left), np.int32)
    at = 0
    for y in range(first, plane.shape[0], step):
        for p in range(left, right):
            w, n, nw, ne = plane[y, p - 1], plane[y - 1, p], plane[y - 1, p - 1], plane[y - 1, p + 1]
            down = abs(w - nw) + abs(n - plane[y - 2, p])
            across = abs(n - nw) + abs(w - plane[y, p - 2])
            activity[at] = down + across + abs(n - ne)
            direction[at] = 0 if 2 * down < across else (1 if down <= 2 * across else 2)
            at += 1
    return activity, direction


@bare
def add_products(block: Any, first: Any, used: Any, size: Any, out: Any, base: Any) -> None:
    """Add products of `used` samples' numbers, `block` float32[.. * STRIDE] from `first` on, to `out` from `base` on.

    `out` float64[.. * STRIDE]: a row of products for each of `size` numbers; only those at or before the diagonal are
    all there.
    """
    zero = to_float(splat(0))
    for i in range(0, size, 8):
        for c in range(0, i + 8, 16):
            s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
            p = first
            for _ in range(used):
                a, q = load(block, p + c), p + i
                s0, s1 = multiply_add(a, splat_at(block, q), s0), multiply_add(a, splat_at(block, q + 1), s1)
                s2, s3 = multiply_add(a, splat_at(block, q + 2), s2), multiply_add(a, splat_at(block, q + 3), s3)
                s4, s5 = multiply_add(a, splat_at(block, q + 4), s4), multiply_add(a, splat_at(block, q + 5), s5)
                s6, s7 = multiply_add(a, splat_at(block, q + 6), s6), multiply_add(a, splat_at(block, q + 7), s7)
                p += STRIDE
            r = base + i * STRIDE + c
            store(out, r, load(out, r) + widened(s0))
            store(out, r + STRIDE, load(out, r + STRIDE) + widened(s1))
            store(out, r + 2 * STRIDE, load(out, r + 2 * STRIDE) + widened(s2))
            store(out, r + 3 * STRIDE, load(out, r + 3 * STRIDE) + widened(s3))
            store(out, r + 4 * STRIDE, load(out, r + 4 * STRIDE) + widened(s4))
            store(out, r + 5 * STRIDE, load(out, r + 5 * STRIDE) + widened(s5))
            store(out, r + 6 * STRIDE, load(out, r + 6 * STRIDE) + widened(s6))
            store(out, r + 7 * STRIDE, load(out, r + 7 * STRIDE) + widened(s7))


@bare
def gather(flat: Any, place: Any, columns: Any, root: Any, block: Any, at: Any) -> None:
    """The numbers of the sample at flat[place] less half of W + N, times `root`, to block[at..]."""
    base = np.float32(0.5) * np.float32(flat[place - 1] + flat[place - columns])
    for row in range(ROWS.size):
        far = to_float(load(flat, place + ROWS[row] * columns + FIRSTS[row])) - base
        store(block, at, far * root)
        at += WIDTHS[row]


@outer
def normal_equations(flat: Any, shape: Any, first: Any, step: Any, left: Any, right: Any, activity: Any, direction: Any,
                     thresholds: Any, previous: Any, above: Any, before: Any, order: Any) -> Any:  # fmt: skip
    """Weighted normal equations: float64[classes * 3 directions, n, n], in the `order` of `places`.

    `flat` int32[rows * columns] of `shape`, the samples those of `survey_texture`; `previous` int32[., .], where the
    sample at (y, p) has its co-located one at (y - above + 1, p - before + 1), or empty.
    """
    rows, columns = shape
    size = CAUSAL + 1 + (9 if previous.size else 0)
    classes = (thresholds.size + 1) * DIRECTIONS
    out = np.zeros(classes * STRIDE * STRIDE, np.float64)
    block = np.zeros(classes * BLOCK * STRIDE + STRIDE, np.float32)
    used = np.zeros(classes, np.int64)
    seen = 0
    for y in range(first, rows, step):
        for p in range(left, right):
            own = int(direction[seen])
            for threshold in thresholds:
                own += DIRECTIONS if activity[seen] > threshold else 0
            mean = np.float32(activity[seen]) * np.float32(0.2)
            root = np.float32(1.0) / np.sqrt(np.float32(4.0) + mean * mean)
            at = (own * BLOCK + used[own]) * STRIDE
            gather(flat, y * columns + p, columns, root, block, at)
            if previous.size:
                base = np.float32(0.5) * np.float32(flat[y * columns + p - 1] + flat[(y - 1) * columns + p])
                for j in range(9):
                    far = np.float32(previous[y - above + j // 3, p - before + j % 3]) - base
                    block[at + CAUSAL + 1 + j] = far * root
            seen += 1
            used[own] += 1
            if used[own] == BLOCK:
                add_products(block, own * BLOCK * STRIDE, BLOCK, size, out, own * STRIDE * STRIDE)
                used[own] = 0
    for own in range(classes):
        add_products(block, own * BLOCK * STRIDE, used[own], size, out, own * STRIDE * STRIDE)
    whole = np.empty((classes, size, size), np.float64)
    for own in range(classes):
        for i in range(size):
            for j in range(size):
                a, b = max(order[i], order[j]), min(order[i], order[j])
                whole[own, i, j] = out[(own * STRIDE + a) * STRIDE + b]
    return whole
