"""Which samples of a frame a reversible pixel carrier may change, found alike in the cover and in the stego image.

Everything here follows from the reserved lattice (stego.lattice), the legal range and the shape, which embedding leaves
alone. A *segment* is a run of legal values between barred ones: a sample's value stays within its segment, so that no
barred value is changed or made, and a receiver finds the segment from the changed value. No location map is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stego.cover import Cover
from stego.errors import CarrierError
from stego.lattice import OFFSET, STEP, lattice, reserved

#: a least or greatest value of the lattice is air or saturation when it fills this share of the 2 x 2 lattice quads
_AIR_SHARE = 256
_AIR_QUADS = 4
MARGIN = 1

kernel = numba.njit(nogil=True, cache=True)
#: for kernels whose divisors are never zero: a test for zero keeps a loop from being vectorised
dividing = numba.njit(nogil=True, cache=True, error_model="numpy")


@dataclass(frozen=True, slots=True)
class Ground:
    """mask: bool (rows, columns), True where a sample may carry. bars: int64 (n, 2), inclusive intervals of values that
    may not be changed or made, ascending and disjoint; the first and the last close the legal range."""

    mask: NDArray[np.bool_]
    bars: NDArray[np.int64]


def ground(cover: Cover, region: NDArray[np.bool_] | None) -> Ground:
    """Samples that may carry: inside the margin, off the lattice, in `region`, not in a constant area.

    Raises CarrierError: 'wet' (a cover with samples that only the sender knows), 'region' (wrong shape or type).
    """
    if cover.wet is not None:
        raise CarrierError("wet")
    values = cover.values
    shape = (values.shape[0], values.shape[1])
    if region is not None and (region.shape != shape or region.dtype != np.bool_):
        raise CarrierError("region")
    mask = np.zeros(shape, dtype=np.bool_)
    mask[MARGIN : shape[0] - MARGIN, MARGIN : shape[1] - MARGIN] = True
    mask &= ~reserved(shape)
    if region is not None:
        mask &= region
    cells = lattice(values)
    mask &= ~_constant(cells, shape)
    return Ground(mask, _bars(cover, _air(cells)))


def _air(cells: NDArray[np.int32]) -> list[int]:
    """The least and the greatest lattice value, where they fill whole quads: air, padding, saturation."""
    if min(cells.shape) < 2:
        return []
    top = cells[:-1, :-1]
    same = (top == cells[1:, :-1]) & (top == cells[:-1, 1:]) & (top == cells[1:, 1:])
    enough = max(_AIR_QUADS, same.size // _AIR_SHARE)
    extremes = {int(cells.min()), int(cells.max())}
    return [value for value in sorted(extremes) if int(np.count_nonzero(same & (top == value))) >= enough]


def _constant(cells: NDArray[np.int32], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """True in the square around any 3 x 3 equal lattice samples: constant areas, whatever their value."""
    constant = np.zeros(shape, dtype=np.bool_)
    rows, columns = cells.shape
    if min(rows, columns) < 3:
        return constant
    first = cells[:-2, :-2]
    same = np.ones(first.shape, dtype=np.bool_)
    for dy in range(3):
        for dx in range(3):
            same &= cells[dy : dy + rows - 2, dx : dx + columns - 2] == first
    spread = np.zeros(cells.shape, dtype=np.bool_)
    for dy in range(3):
        for dx in range(3):
            spread[dy : dy + rows - 2, dx : dx + columns - 2] |= same
    grown = np.repeat(np.repeat(spread, STEP, 0), STEP, 1)[: shape[0], : shape[1]]
    constant[: grown.shape[0], : grown.shape[1]] = grown  # the cell of a lattice sample: 4 x 4 with it at OFFSET
    assert OFFSET < STEP
    return constant


def _bars(cover: Cover, air: list[int]) -> NDArray[np.int64]:
    """Barred values and the two ends as merged intervals."""
    inside = sorted({value for value in (*cover.barred, *air) if cover.low <= value <= cover.high})
    merged: list[list[int]] = [[cover.low - 1, cover.low - 1]]
    for value in (*inside, cover.high + 1):
        if value == merged[-1][1] + 1:
            merged[-1][1] = value
        else:
            merged.append([value, value])
    return np.array(merged, dtype=np.int64)


@kernel
def segment(value: Any, bars: Any) -> Any:
    """(first, last) legal value of the segment that holds `value`; first > last when the value is barred or illegal."""
    low, high = 0, bars.shape[0]
    while low < high:  # the last interval that begins at or below value
        middle = (low + high) // 2
        if bars[middle, 0] <= value:
            low = middle + 1
        else:
            high = middle
    if low == 0 or low == bars.shape[0] or bars[low - 1, 1] >= value:
        return 1, 0
    return bars[low - 1, 1] + 1, bars[low, 0] - 1


@kernel
def clips_at(least: Any, bars: Any) -> Any:
    """True where a segment begins with the legal range, where a scanner clips; after a barred value it does not."""
    return bars[0, 0] == bars[0, 1] and least == bars[0, 1] + 1
