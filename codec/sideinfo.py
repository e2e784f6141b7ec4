"""The coefficients of the least-squares predictors on the wire (numba kernel on adaptive decisions)."""

from __future__ import annotations

from typing import Any

from codec.rans import NUMBER_CONTEXTS, code_bit, code_number, fresh_model, kernel

COEFFICIENT_GROUPS = 6
HIGHEST_COEFFICIENT = 32767


@kernel
def code_coefficients(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, table: Any, radius: Any) -> None:
    """Code `table` (int32[sets, 35]): set 0 as it is, the others as differences from set 0.

    `radius` int64[35] gives each tap's group 0..2. Magnitudes are split into a number of 8ths and 3 low bits.
    """
    model = fresh_model(COEFFICIENT_GROUPS * (NUMBER_CONTEXTS + 2 + 8))
    for row in range(table.shape[0]):
        for tap in range(table.shape[1]):
            group = radius[tap] + (3 if row else 0)
            base = group * (NUMBER_CONTEXTS + 2 + 8)
            origin = table[0, tap] if row else 0
            delta = table[row, tap] - origin
            size = abs(delta)
            top = code_number(io, words, starts, freqs, cost, model, base, size >> 3)
            low = 1
            for step in range(3):
                bit = code_bit(
                    io, words, starts, freqs, cost, model, base + NUMBER_CONTEXTS + 2 + low, (size >> (2 - step)) & 1
                )
                low = 2 * low + bit
            size = 8 * top + low - 8
            if size:
                negative = code_bit(
                    io, words, starts, freqs, cost, model, base + NUMBER_CONTEXTS, 1 if delta < 0 else 0
                )
                size = -size if negative else size
            value = origin + size
            table[row, tap] = min(max(value, -HIGHEST_COEFFICIENT), HIGHEST_COEFFICIENT)
