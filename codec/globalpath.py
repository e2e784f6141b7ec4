"""The global path: a causal coder for G = x >> k with adaptive binary decisions (numba kernel)."""

from __future__ import annotations

from typing import Any

import numpy as np

from codec.rans import FAILED, NUMBER_CONTEXTS, code_bit, code_number, fresh_model, kernel

EQUAL_CONTEXTS = 128
SIGN_CONTEXTS = 27
SIGN_BASE = EQUAL_CONTEXTS
SIZE_BASE = EQUAL_CONTEXTS + SIGN_CONTEXTS
GLOBAL_CONTEXTS = SIZE_BASE + 3 * NUMBER_CONTEXTS


@kernel
def sign_of(number: int) -> Any:
    """0, 1, 2 for negative, zero, positive."""
    return 1 + (number > 0) - (number < 0)


@kernel
def code_global(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, plane: Any, highest: int) -> None:
    """Code a plane of G (int32, 0..highest) in raster order; while decoding, `plane` is written.

    Stops with io[FAILED] set as soon as the stream cannot be right.
    """
    model = fresh_model(GLOBAL_CONTEXTS)
    rows, columns = plane.shape
    for y in range(rows):
        for x in range(columns):
            north = plane[y - 1, x] if y else (plane[y, x - 1] if x else np.int32(0))
            west = plane[y, x - 1] if x else north
            corner = plane[y - 1, x - 1] if y and x else north
            east = plane[y - 1, x + 1] if y and x + 1 < columns else north
            west2 = plane[y, x - 2] if x > 1 else west
            north2 = plane[y - 2, x] if y > 1 else north
            low, high = min(west, north), max(west, north)
            guess = low if corner >= high else (high if corner <= low else west + north - corner)
            spread = high - low
            context = (west == north) | (north == corner) << 1 | (north == east) << 2 | (west == west2) << 3
            context |= (north == north2) << 4 | (east == guess) << 5 | (spread > 1) << 6
            wrong = code_bit(io, words, starts, freqs, cost, model, context, 1 if plane[y, x] != guess else 0)
            value = np.int64(guess)
            if wrong:
                up = 1 if guess == 0 else 0
                if 0 < guess < highest:
                    place = sign_of(east - guess) * 9 + sign_of(west - guess) * 3 + sign_of(north - guess)
                    bit = 1 if plane[y, x] > guess else 0
                    up = code_bit(io, words, starts, freqs, cost, model, SIGN_BASE + place, bit)
                base = SIZE_BASE + min(spread, 2) * NUMBER_CONTEXTS
                size = abs(np.int64(plane[y, x]) - guess) - 1
                size = 1 + code_number(io, words, starts, freqs, cost, model, base, size)
                value = guess + size if up else guess - size
            if value < 0 or value > highest:
                io[FAILED] = 1
            if io[FAILED]:
                return
            plane[y, x] = value
