"""rANS with a 63-bit state and 32-bit words, and adaptive binary decisions on top (numba kernels).

One code path serves encoder and decoder: `io` says which. While encoding, symbols are recorded in coding order and
pushed in reverse by `flush`; while decoding they are popped in coding order; while counting only the cost is summed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

kernel: Any = njit(nogil=True, cache=True, error_model="numpy")

PRECISION = 28  # frequencies sum to 2^28
TOTAL = 1 << PRECISION
LOWEST = 1 << 31  # the state stays in [2^31, 2^63)
DECODE, ENCODE, COUNT = 0, 1, 2
MODE, STATE, WORD, SYMBOL, FAILED = 0, 1, 2, 3, 4  # fields of io (int64[5])
IO_FIELDS = 5
SLOW_LIMIT = 126


@kernel
def transfer(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, start: int, freq: int) -> None:
    """Pass one symbol [start, start + freq): record it, count it, or remove it from the decoder's state."""
    if io[MODE] == DECODE:
        state = freq * (io[STATE] >> PRECISION) + (io[STATE] & (TOTAL - 1)) - start
        if state < LOWEST:
            if io[WORD] < words.size:
                state = (state << 32) | np.int64(words[io[WORD]])
                io[WORD] += 1
            else:
                io[FAILED] = 1
                state = LOWEST
        io[STATE] = state
    else:
        if io[MODE] == ENCODE:
            starts[io[SYMBOL]] = start
            freqs[io[SYMBOL]] = freq
        else:
            cost[0] += PRECISION - math.log2(freq)
        io[SYMBOL] += 1


@kernel
def code_bit(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, model: Any, context: int, bit: int) -> Any:
    """One adaptive binary decision. `model` int64[n, 3]: fast estimate, slow estimate (of 65536), count."""
    fast = model[context, 0]
    slow = model[context, 1]
    one = min(max((fast + slow) >> 1, 32), 65504) << (PRECISION - 16)
    if io[MODE] == DECODE:
        bit = 1 if (io[STATE] & (TOTAL - 1)) < one else 0
    if bit:
        transfer(io, words, starts, freqs, cost, 0, one)
    else:
        transfer(io, words, starts, freqs, cost, one, TOTAL - one)
    target = 65535 * bit
    model[context, 0] = fast + ((target - fast) >> 4)
    model[context, 1] = slow + (target - slow) // (model[context, 2] + 2)
    model[context, 2] = min(model[context, 2] + 1, SLOW_LIMIT)
    return bit


NUMBER_UNARY = 12
NUMBER_CONTEXTS = NUMBER_UNARY + 40  # contexts that code_number uses from its base on


@kernel
def code_number(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, model: Any, base: int, number: int) -> Any:
    """A number >= 0: up to 12 unary decisions, then Elias gamma of the rest + 1 (at most 20 bits, else failure)."""
    for step in range(NUMBER_UNARY):
        if not code_bit(io, words, starts, freqs, cost, model, base + step, 1 if number > step else 0):
            return step
    rest = number - NUMBER_UNARY + 1
    width = 0
    while code_bit(io, words, starts, freqs, cost, model, base + NUMBER_UNARY + width, 1 if (rest >> width) > 1 else 0):
        width += 1
        if width == 20:
            io[FAILED] = 1
            return 0
    out = 1
    for step in range(width):
        context = base + NUMBER_UNARY + 20 + width - 1 - step
        bit = code_bit(io, words, starts, freqs, cost, model, context, (rest >> (width - 1 - step)) & 1)
        out = 2 * out + bit
    return out + NUMBER_UNARY - 1


@kernel
def fresh_model(contexts: int) -> Any:
    """Adaptive decisions that know nothing yet."""
    model = np.zeros((contexts, 3), np.int64)
    model[:, 0] = 32768
    model[:, 1] = 32768
    return model


@kernel
def flush(starts: Any, freqs: Any, count: int) -> Any:
    """Push the recorded symbols in reverse order; the words in the order in which the decoder reads them (uint32)."""
    backwards = np.empty(count + 2, np.uint32)
    used = 0
    state = np.int64(LOWEST)
    for place in range(count - 1, -1, -1):
        freq = np.int64(freqs[place])
        if state >= freq << (63 - PRECISION):
            backwards[used] = np.uint32(state & 0xFFFFFFFF)
            used += 1
            state >>= 32
        quotient = state // freq
        state = (quotient << PRECISION) + (state - quotient * freq) + np.int64(starts[place])
    backwards[used] = np.uint32(state & 0xFFFFFFFF)
    backwards[used + 1] = np.uint32(state >> 32)
    return backwards[: used + 2][::-1].copy()


@kernel
def open_stream(io: Any, words: Any) -> None:
    """Set `io` up to decode `words` (uint32): the first two are the state, high half first."""
    io[MODE] = DECODE
    io[WORD] = 2
    io[SYMBOL] = 0
    io[FAILED] = 0
    io[STATE] = LOWEST
    if words.size < 2 or (words[0] >> 31) != 0:
        io[FAILED] = 1
        return
    io[STATE] = (np.int64(words[0]) << 32) | np.int64(words[1])
    if io[STATE] < LOWEST:
        io[FAILED] = 1
        io[STATE] = LOWEST


def closed(io: NDArray[np.int64], words: NDArray[np.uint32]) -> bool:
    """Whether decoding ended exactly where encoding began: no failure, no word left, the first state."""
    return int(io[FAILED]) == 0 and int(io[WORD]) == words.size and int(io[STATE]) == LOWEST
