"""The carrier plane of a frame: which lowest bits of the level indices may change, and how raw they are.

A *pair* is idx >> 1, what embedding never alters. Everything a reader needs is computed from pairs, in integers, so
stego image and exact image give the same answer. Floating point serves only the encoder's choice of a window.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from codec.bitplane import LevelTable

Index = NDArray[np.uint16]
Costs = NDArray[np.int64]
_ACTIVITIES = 32
_PLACES = 48
_UNIT = 1 << 16
_CONTEXTS = _ACTIVITIES * _PLACES


def eligible_positions(idx: Index, levels: LevelTable) -> NDArray[np.uint32]:
    """Raster positions whose lowest bit may carry, uint32, increasing. idx: (rows, columns) indices into `levels`.

    Eligible: 0 < pair < (count - 1) >> 1 (both values of the bit are levels, and neither is among the lowest or
    highest ones: padding and saturation stay); its two levels have one sign (a sign repeated in unused bits stays
    right); the pairs of the 3 x 3 neighbourhood inside the frame are not all equal (constant air, drawn areas stay).
    """
    negative = int(np.searchsorted(levels.values(), 0))
    two_signed = negative >> 1 if negative & 1 else 0  # pair 0 is barred anyway
    return np.flatnonzero(_mark(idx, levels.count, two_signed)).astype(np.uint32)


def bit_costs(idx: Index) -> Costs:
    """Estimates for each lowest bit in raster order, given its pair and causal neighbours; int64 of shape (samples, 2).

    In units of 2^-16 bit: [:, 0] the code length it has under the frame's statistics, [:, 1] its context's entropy.
    """
    contexts = _contexts(idx)
    costs: Costs = _cost_table(contexts)[contexts]
    return costs


def rawest_window(idx: Index, positions: NDArray[np.uint32], nbits: int) -> tuple[int, float]:
    """(start, rawness) of the rawest run of `nbits` of the `positions`; the first of equals.

    Rawness, bits per bit: the lesser of mean code length and mean context entropy. A window that only *surprises* the
    statistics of the frame has a great length and a small entropy; a better model would predict it, so it is not raw
    (measured on ultrasound: such windows grew the file by 1.4 to 2.1 times the record).
    """
    contexts = _contexts(idx)
    start, best = _rawest(contexts, positions, _cost_table(contexts), nbits)
    return int(start), float(best) / (nbits * _UNIT)


def _cost_table(contexts: NDArray[np.int32]) -> Costs:
    """Row per context and bit: code length and entropy in units of 2^-16 bit, integers so that sums are exact.

    Both are what a few counts show plus what they miss on average (Miller 1955): else small frames look modelled.
    """
    counts = np.bincount(contexts, minlength=2 * _CONTEXTS).reshape(-1, 2) + 0.5
    total = counts.sum(axis=1, keepdims=True)
    share = counts / total
    missed = 1 / (2 * np.log(2) * total)
    lengths = -np.log2(share) + missed
    entropies = np.minimum((share * lengths).sum(axis=1, keepdims=True), 1.0)
    both = np.stack((lengths.ravel(), np.broadcast_to(entropies, lengths.shape).ravel()), axis=1)
    table: Costs = np.rint(_UNIT * both).astype(np.int64)
    return table


@numba.njit(nogil=True, cache=True)
def _rawest(contexts: NDArray[np.int32], positions: NDArray[np.uint32], table: Costs, nbits: int) -> tuple[int, int]:
    start, best, length, entropy = 0, -1, 0, 0
    for at in range(positions.size):
        entered = contexts[positions[at]]
        length += table[entered, 0]
        entropy += table[entered, 1]
        if at >= nbits:
            left = contexts[positions[at - nbits]]
            length -= table[left, 0]
            entropy -= table[left, 1]
        if at >= nbits - 1 and min(length, entropy) > best:
            start, best = at - nbits + 1, min(length, entropy)
    return start, best


@numba.njit(nogil=True, cache=True)
def _mark(idx: Index, count: int, barred: int) -> NDArray[np.bool_]:
    rows, columns = idx.shape
    last = (count - 1) >> 1
    marks = np.zeros(rows * columns, dtype=np.bool_)
    for y in range(rows):
        for x in range(columns):
            pair = idx[y, x] >> 1
            if pair == 0 or pair >= last or pair == barred:
                continue
            for v in range(max(y - 1, 0), min(y + 2, rows)):
                for u in range(max(x - 1, 0), min(x + 2, columns)):
                    if idx[v, u] >> 1 != pair:
                        marks[y * columns + x] = True
    return marks


@numba.njit(nogil=True, cache=True)
def _contexts(idx: Index) -> NDArray[np.int32]:
    """Context of each lowest bit, times two, plus the bit; int32 in raster order.

    Context: where the prediction (W+N)/2 + (NE-NW)/4 lies against the pair, in eighths of a level, and the logarithm
    of the prediction errors at W, N, NW. Neighbours outside the frame repeat the nearest sample inside.
    """
    rows, columns = idx.shape
    out = np.empty(rows * columns, dtype=np.int32)
    before = np.zeros(columns + 1, dtype=np.int64)  # |error| of the row above, shifted by one: [x + 1] is N, [x] is NW
    for y in range(rows):
        west_error = np.int64(0)
        corner_error = np.int64(0)
        for x in range(columns):
            value = np.int64(idx[y, x])
            west = np.int64(idx[y, max(x - 1, 0)])
            north = np.int64(idx[max(y - 1, 0), x])
            north_east = np.int64(idx[max(y - 1, 0), min(x + 1, columns - 1)])
            north_west = np.int64(idx[max(y - 1, 0), max(x - 1, 0)])
            if y == 0:
                north, north_east, north_west = west, west, west
            if x == 0:
                west, north_west = north, north
            guess = 2 * (west + north) + north_east - north_west  # quarters of a level
            place = 16 + 2 * guess - 8 * (value & ~1)
            if place < 0:
                place = np.int64(0)
            elif place >= _PLACES:
                place = np.int64(_PLACES - 1)
            near = 1 + west_error + before[x + 1] + corner_error
            activity = 0
            while near > 1 and activity < _ACTIVITIES - 2:
                activity += 2
                if near < 4:
                    activity += near - 2
                near >>= 1
            activity = min(activity, _ACTIVITIES - 1)
            corner_error = before[x + 1]
            west_error = abs(4 * value - guess) >> 2
            before[x + 1] = west_error
            out[y * columns + x] = 2 * (place * _ACTIVITIES + activity) + (value & 1)
    return out
