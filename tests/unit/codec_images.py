"""Generated frames for the codec's tests: integers only, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words, join_words
from codec.pixelformat import PixelFormat


def noise(count: int, seed: int) -> NDArray[np.int64]:
    """`count` numbers 0..65535 of a linear congruential generator."""
    out = np.empty(count, np.int64)
    state = seed * 2654435761 % (1 << 32)
    for place in range(count):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        out[place] = state >> 16
    return out


def picture(fmt: PixelFormat, seed: int, grain: int) -> NDArray[np.int32]:
    """Sample values: a bright blob with a slope and a sharp edge on a flat ground, and `grain` levels of noise."""
    y, x = np.mgrid[: fmt.rows, : fmt.columns].astype(np.int64)
    top = (1 << fmt.bits_stored) - 1
    dy, dx = 2 * y - fmt.rows, 2 * x - fmt.columns
    inside = dy * dy * 4 + dx * dx * 5 < fmt.rows * fmt.rows + 3 * fmt.columns * fmt.columns
    field = top // 5 + (x * top) // (3 * fmt.columns) + (y * top) // (4 * fmt.rows)
    levels = np.where(inside, field, top // 50)
    grains = noise(fmt.rows * fmt.columns, seed).reshape(levels.shape)
    levels = levels + np.where(inside, grains * (2 * grain + 1) // 65536 - grain, 0)
    if fmt.samples == 3:
        levels = np.stack([levels, levels * 3 // 4 + (grains & 1), levels // 2 + 3], axis=-1)
    levels = np.clip(levels, 0, top)
    return (levels - (1 << fmt.bits_stored >> 1) * fmt.signed).astype(np.int32)


def stored(values: NDArray[np.int32], fmt: PixelFormat, unused: NDArray[np.uint16] | None = None) -> Words:
    """The words of sample values; `unused` is masked to where it may lie."""
    spare = None if unused is None else (unused & np.uint16(((1 << fmt.bits_allocated) - 1) & ~fmt.mask))
    return join_words(values, spare, fmt)
