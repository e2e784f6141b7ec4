"""The flags of a sample and the context tables that they index (D.3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MINUS", "REFINED", "SIGNIFICANT", "SIGN_CONTEXTS", "VISITED", "ZERO_CONTEXTS"]

SIGN_FIRST = 9  # the first of the five sign contexts
# flags: significance of the neighbours (bits 0-7), signs of the nearest four (8-11), the sample itself
NW, NE, SE, SW, N, E, S, W = (1 << bit for bit in range(8))
N_MINUS, E_MINUS, S_MINUS, W_MINUS = (1 << bit for bit in range(8, 12))
SIGNIFICANT, VISITED, REFINED, MINUS = (1 << bit for bit in range(12, 16))


def _zero_contexts() -> npt.NDArray[np.uint8]:
    """Zero-coding context per orientation and neighbour byte (table D.1)."""
    table = np.zeros((4, 256), np.uint8)
    for orientation in range(4):
        for flags in range(256):
            h, v = bool(flags & W) + bool(flags & E), bool(flags & N) + bool(flags & S)
            d = sum(bool(flags & bit) for bit in (NW, NE, SE, SW))
            if orientation == 3:
                rows = ((0, 1, 2), (3, 4, 5), (6, 7, 7), (8, 8, 8))
                table[orientation, flags] = rows[min(d, 3)][min(h + v, 2)]
                continue
            if orientation == 1:
                h, v = v, h
            if h == 2:
                table[orientation, flags] = 8
            elif h == 1:
                table[orientation, flags] = 7 if v else 6 if d else 5
            else:
                table[orientation, flags] = (min(d, 2), 3, 4)[v]
    return table


def _sign_contexts() -> npt.NDArray[np.uint8]:
    """Sign context times two plus the XOR bit, per flags bits 4-11 (tables D.2 and D.3)."""
    table = np.zeros(256, np.uint8)
    for index in range(256):
        flags = index << 4
        h = sum((-1 if flags & minus else 1) for bit, minus in ((W, W_MINUS), (E, E_MINUS)) if flags & bit)
        v = sum((-1 if flags & minus else 1) for bit, minus in ((N, N_MINUS), (S, S_MINUS)) if flags & bit)
        h, v = max(-1, min(1, h)), max(-1, min(1, v))
        flip = h < 0 or (h == 0 and v < 0)
        if flip:
            h, v = -h, -v
        table[index] = (SIGN_FIRST + (3 + v if h else v)) * 2 + flip
    return table


ZERO_CONTEXTS = _zero_contexts()
SIGN_CONTEXTS = _sign_contexts()
