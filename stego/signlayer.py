"""The sign layer: the direction of each +-1 change carries message bits, too (ternary embedding in two layers).

After the first layer has fixed *which* samples change, x + 1 and x - 1 differ in the second-lowest bit, and the
encoder may choose. That is a wet paper channel (Fridrich, Goljan, Soukal, 2005) with the changed samples dry: a
random linear code over all samples' second bits, solved by elimination, carries one bit per change but a few.
The columns of its matrix are fixed pseudo-random words (splitmix64); secrecy comes from the keyed order of samples.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

#: changes beyond the bits of a block, so that a random system has a solution: fails once in 2^16
SPARE = 16

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def read(second_bits: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """The n bits (uint8 0/1) that a block spells. second_bits: uint8 0/1, one per sample of the block."""
    words = _sum_columns(second_bits, -(-n // 64))
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:n]


def choose(
    second_bits: NDArray[np.uint8], changed: NDArray[np.int64], bits: NDArray[np.uint8], free: NDArray[np.uint8]
) -> NDArray[np.uint8] | None:
    """Which of the changed samples must have their second bit flipped so that the block spells `bits`.

    second_bits: uint8 0/1 per sample, as they would be without any such flip. changed: int64 sample numbers that may
    flip. free: uint8 0/1 per changed sample, the choice wherever the message leaves one. Returns uint8 0/1 per
    changed sample, or None when the random system has no solution (never seen with SPARE changes to spare).
    """
    if bits.size == 0:
        return free.copy()
    words = -(-bits.size // 64)
    goal = np.packbits(bits, bitorder="little")
    goal = np.frombuffer(goal.tobytes().ljust(8 * words, b"\x00"), dtype="<u8").astype(np.uint64)
    missing = goal ^ _sum_columns(second_bits, words)
    mask = np.full(words, np.uint64(0xFFFFFFFFFFFFFFFF))
    if bits.size % 64:
        mask[-1] = np.uint64((1 << (bits.size % 64)) - 1)
    flips = free.copy()
    return flips if _solve(changed, missing & mask, bits.size, flips) else None


@numba.njit(nogil=True, cache=True)
def _word(sample: int, word: int) -> Any:
    """64 rows of a sample's column."""
    z = (np.uint64(sample) * np.uint64(1024) + np.uint64(word) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _sum_columns(second_bits: NDArray[np.uint8], words: int) -> NDArray[np.uint64]:
    out = np.zeros(words, dtype=np.uint64)
    for sample in range(second_bits.size):
        if second_bits[sample]:
            for word in range(words):
                out[word] ^= _word(sample, word)
    return out


@numba.njit(nogil=True, cache=True)
def _system(changed: NDArray[np.int64], missing: NDArray[np.uint64], rows: int) -> NDArray[np.uint64]:
    """Augmented matrix, rows packed to words: bit j of a row is unknown j, the bit after the last the right side."""
    matrix = np.zeros((rows, (changed.size >> 6) + 1), dtype=np.uint64)
    one = np.uint64(1)
    for j in range(changed.size):
        for row in range(rows):
            if (_word(changed[j], row >> 6) >> np.uint64(row & 63)) & one:
                matrix[row, j >> 6] |= one << np.uint64(j & 63)
    for row in range(rows):
        if (missing[row >> 6] >> np.uint64(row & 63)) & one:
            matrix[row, changed.size >> 6] |= one << np.uint64(changed.size & 63)
    return matrix


@numba.njit(nogil=True, cache=True)
def _bit(matrix: NDArray[np.uint64], row: int, j: int) -> Any:
    return (matrix[row, j >> 6] >> np.uint64(j & 63)) & np.uint64(1)


@numba.njit(nogil=True, cache=True)
def _eliminate(matrix: NDArray[np.uint64], unknowns: int, pivots: NDArray[np.int64]) -> int:
    """Gauss-Jordan over GF(2), in place; pivots int64 (rows). Returns the rank."""
    done = 0
    for j in range(unknowns):
        row = done
        while row < pivots.size and not _bit(matrix, row, j):
            row += 1
        if row == pivots.size:
            continue
        for word in range(matrix.shape[1]):
            matrix[row, word], matrix[done, word] = matrix[done, word], matrix[row, word]
        for other in range(pivots.size):
            if other != done and _bit(matrix, other, j):
                for word in range(j >> 6, matrix.shape[1]):
                    matrix[other, word] ^= matrix[done, word]
        pivots[done] = j
        done += 1
        if done == pivots.size:
            break
    return done


@numba.njit(nogil=True, cache=True)
def _solve(changed: NDArray[np.int64], missing: NDArray[np.uint64], rows: int, flips: NDArray[np.uint8]) -> bool:
    """Solve for `flips`, uint8 (unknowns), which holds the wish for every unknown that stays free. False: none."""
    matrix = _system(changed, missing, rows)
    pivots = np.empty(rows, dtype=np.int64)
    if _eliminate(matrix, changed.size, pivots) < rows:
        return False
    flips[pivots] = 0
    free = np.nonzero(flips)[0]  # after elimination a row holds its pivot and free unknowns only
    for row in range(rows):
        value = _bit(matrix, row, changed.size)
        for j in free:
            value ^= _bit(matrix, row, int(j))
        flips[pivots[row]] = np.uint8(value)
    return True
