"""The reversible 5-3 wavelet (F.3, F.3.8.2) and the reversible component transform (G.2), backwards, in place."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["reconstruct", "undo_component_transform"]

Ints = npt.NDArray[np.int32]
Row = npt.NDArray[np.int32]


@numba.njit(cache=True, nogil=True)
def _row(low: Row, high: Row, out: Row, odd: int) -> None:
    """1D_SR of one row (F.3.6): `odd` is the parity of the first sample's coordinate; high may be empty."""
    count = low.shape[0] + high.shape[0]
    if count == 1:
        out[0] = high[0] >> 1 if odd else low[0]
        return
    lows, highs = low.shape[0], high.shape[0]
    for n in range(lows):  # even samples (F-5); beyond either end the signal is mirrored
        left = n - 1 + odd
        right = left + 1
        a = high[left] if left >= 0 else high[0]
        b = high[right] if right < highs else high[highs - 1]
        out[2 * n + odd] = low[n] - ((a + b + 2) >> 2)
    for n in range(highs):  # odd samples (F-6)
        at = 2 * n + 1 - odd
        a = out[at - 1] if at >= 1 else out[1]
        b = out[at + 1] if at + 1 < count else out[count - 2]
        out[at] = high[n] + ((a + b) >> 1)


@numba.njit(cache=True, nogil=True)
def _lift(target: Ints, at: int, before: int, after: int, even: bool) -> None:
    """One lifting step of a whole row of rows: what _row does to a sample, for all columns at once."""
    a, b, out = target[before], target[after], target[at]
    if even:
        for x in range(out.shape[0]):
            out[x] -= (a[x] + b[x] + 2) >> 2
    else:
        for x in range(out.shape[0]):
            out[x] += (a[x] + b[x]) >> 1


@numba.njit(cache=True, nogil=True)
def _columns(target: Ints, odd: int) -> None:
    """VER_SR on interleaved rows (F.3.4)."""
    count = target.shape[0]
    if count == 1:
        if odd:
            for x in range(target.shape[1]):
                target[0, x] >>= 1
        return
    for y in range(odd, count, 2):
        _lift(target, y, y - 1 if y >= 1 else 1, y + 1 if y + 1 < count else count - 2, True)
    for y in range(1 - odd, count, 2):
        _lift(target, y, y - 1 if y >= 1 else 1, y + 1 if y + 1 < count else count - 2, False)


@numba.njit(cache=True, nogil=True)
def _level(pyramid: Ints, work: Ints, x0: int, y0: int, width: int, height: int) -> None:
    """2D_SR (F.3.2): rows first, then columns, as the forward transform did them the other way round."""
    lows_x = ((x0 + width + 1) >> 1) - ((x0 + 1) >> 1)
    lows_y = ((y0 + height + 1) >> 1) - ((y0 + 1) >> 1)
    odd = y0 & 1
    for y in range(height):
        source = (y >> 1) + (0 if (y & 1) == odd else lows_y)
        _row(pyramid[source, :lows_x], pyramid[source, lows_x:width], work[y, :width], x0 & 1)
    _columns(work[:height, :width], odd)
    pyramid[:height, :width] = work[:height, :width]


@numba.njit(cache=True, nogil=True)
def reconstruct(pyramid: Ints, rectangles: npt.NDArray[np.int64]) -> None:
    """IDWT (F.3.1) of one tile-component, in place.

    rectangles: (levels + 1, 4) x0, y0, x1, y1 per resolution, lowest first (B-14); pyramid as geometry.py lays it out.
    """
    work = np.empty_like(pyramid)
    for r in range(1, rectangles.shape[0]):
        x0, y0, x1, y1 = rectangles[r]
        if x0 < x1 and y0 < y1:
            _level(pyramid, work, x0, y0, x1 - x0, y1 - y0)


@numba.njit(cache=True, nogil=True)
def undo_component_transform(planes: Ints) -> None:
    """Inverse RCT (G.2.2) on the first three of (components, rows, columns), in place."""
    for y in range(planes.shape[1]):
        for x in range(planes.shape[2]):
            luma, blue, red = planes[0, y, x], planes[1, y, x], planes[2, y, x]
            green = luma - ((blue + red) >> 2)
            planes[0, y, x], planes[1, y, x], planes[2, y, x] = red + green, green, blue + green
