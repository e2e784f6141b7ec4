"""Regions of non-interest: where a pixel carrier may write without touching what a reader looks at.

A mask is computed from the reserved lattice alone (stego.lattice), which embedding never alters, so the receiver finds
the same mask in the stego image; and in integers alone, so that every machine finds the same.

The classical segmentation: the lattice is smoothed (3 x 3 sums) and split in two by Otsu's threshold (N. Otsu, IEEE
Trans. SMC 9(1), 1979). The side that the image's border mostly belongs to is background, and the part of it that hangs
together with the border is non-interest: air inside the body, which does not, stays interesting. Specks of foreground
of less than `SPECK` cells are not anatomy; a margin of one cell around anatomy is. A cell is the 4 x 4 samples around a
lattice sample.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stego.lattice import STEP, lattice

LEVELS = 256
SPECK = 16
MARGIN = 1
SMALLEST = 8  # lattice cells a side below which nothing is segmented

kernel = numba.njit(nogil=True, cache=True)


def non_interest(values: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Bool (rows, columns), True outside anatomy: a function of the lattice of `values` (int32, rows x columns) alone.

    All False where there is no background to tell from anatomy: flat or tiny frames, or anatomy from edge to edge.
    The lattice's own samples are marked as their cells are; carriers leave them alone in any case.
    """
    cells = lattice(values)
    if min(cells.shape) < SMALLEST:
        return np.zeros(values.shape, dtype=np.bool_)
    return upsample(non_interest_cells(cells), (values.shape[0], values.shape[1]))


def upsample(cells: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Each cell's mark for its 4 x 4 samples; rows and columns past the last cell take the nearest one's."""
    rows = np.minimum(np.arange(shape[0]) // STEP, cells.shape[0] - 1)
    columns = np.minimum(np.arange(shape[1]) // STEP, cells.shape[1] - 1)
    return np.ascontiguousarray(cells[rows][:, columns])


def levels(cells: NDArray[np.int32]) -> NDArray[np.int64]:
    """3 x 3 sums of the lattice, in 0..255 between their 1st and 99th percentile (by rank, no interpolation)."""
    padded = np.pad(cells.astype(np.int64), 1, mode="edge")
    rows, columns = cells.shape
    sums = sum(padded[dy : dy + rows, dx : dx + columns] for dy in range(3) for dx in range(3))
    assert not isinstance(sums, int)
    order = np.sort(sums, axis=None)
    low, high = int(order[order.size // 100]), int(order[order.size - 1 - order.size // 100])
    return (np.clip(sums, low, high) - low) * (LEVELS - 1) // max(1, high - low)


def otsu(marks: NDArray[np.int64]) -> int:
    """The level t (0..254) for which "<= t" and "> t" have the largest variance between them; the first such."""
    histogram = [int(n) for n in np.bincount(marks.ravel(), minlength=LEVELS)]
    total, mass = sum(histogram), sum(level * n for level, n in enumerate(histogram))
    below, moment, best, best_top, best_bottom = 0, 0, 0, 0, 1
    for level, n in enumerate(histogram[:-1]):
        below, moment = below + n, moment + level * n
        bottom = below * (total - below)
        top = (mass * below - moment * total) ** 2
        if bottom and top * best_bottom > best_top * bottom:  # top / bottom, compared as fractions: no rounding
            best, best_top, best_bottom = level, top, bottom
    return best


def non_interest_cells(cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The mask on the lattice itself."""
    marks = levels(cells)
    if int(marks.max()) == int(marks.min()):
        return np.zeros(cells.shape, dtype=np.bool_)
    bright = marks > otsu(marks)
    border = np.concatenate((bright[0], bright[-1], bright[1:-1, 0], bright[1:-1, -1]))
    foreground = ~bright if 2 * int(np.count_nonzero(border)) > border.size else bright
    anatomy = without_specks(np.ascontiguousarray(foreground), SPECK)
    for _ in range(MARGIN):
        anatomy = _dilated(anatomy)
    return np.asarray(_from_border(~anatomy))


def without_specks(marks: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """`marks` less its 4-connected parts of fewer than `smallest` cells."""
    return np.asarray(_keep_parts(marks, smallest))


def _dilated(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = marks.copy()
    grown[1:] |= marks[:-1]
    grown[:-1] |= marks[1:]
    grown[:, 1:] |= marks[:, :-1]
    grown[:, :-1] |= marks[:, 1:]
    return grown


@kernel
def _flood(marks: Any, seen: Any, stack: Any, start: Any) -> Any:
    """Mark in `seen` the 4-connected part of `marks` around flat index `start`; its cells are stack[:count]."""
    rows, columns = marks.shape
    seen[start // columns, start % columns] = True
    stack[0] = start
    count, done = 1, 0
    while done < count:
        row, column = stack[done] // columns, stack[done] % columns
        done += 1
        for step in range(4):
            r = row + (step == 0) - (step == 1)
            c = column + (step == 2) - (step == 3)
            if 0 <= r < rows and 0 <= c < columns and marks[r, c] and not seen[r, c]:
                seen[r, c] = True
                stack[count] = r * columns + c
                count += 1
    return count


@kernel
def _keep_parts(marks: Any, smallest: Any) -> Any:
    rows, columns = marks.shape
    seen = np.zeros((rows, columns), np.bool_)
    kept = np.zeros((rows, columns), np.bool_)
    stack = np.empty(rows * columns, np.int64)
    for start in range(rows * columns):
        if marks[start // columns, start % columns] and not seen[start // columns, start % columns]:
            count = _flood(marks, seen, stack, start)
            if count >= smallest:
                for i in range(count):
                    kept[stack[i] // columns, stack[i] % columns] = True
    return kept


@kernel
def _from_border(marks: Any) -> Any:
    rows, columns = marks.shape
    seen = np.zeros((rows, columns), np.bool_)
    stack = np.empty(rows * columns, np.int64)
    for start in range(rows * columns):
        r, c = start // columns, start % columns
        edge = r == 0 or c == 0 or r == rows - 1 or c == columns - 1
        if edge and marks[r, c] and not seen[r, c]:
            _flood(marks, seen, stack, start)
    return seen
