"""rANS with up to 16 states that share one array of words (numba kernels). Precision and words as in codec.rans.

Lane l of the wavefront uses state l mod n. The decoder reads words in coding order: by steps, then by lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codec.lanes import LANES
from codec.rans import LOWEST, PRECISION, TOTAL
from codec.wavetables import inner, outer

DECODE, ENCODE = 0, 1
WORD, SYMBOL, FAILED = 2, 3, 4  # fields of io (int64[5])


@inner
def take(io: Any, state: Any, which: Any, words: Any, start: Any, freq: Any) -> None:
    """Remove a symbol that owns [start, start + freq) from a state; a missing word sets FAILED."""
    old = state[which]
    new = np.int64(freq) * (old >> PRECISION) + (old & (TOTAL - 1)) - np.int64(start)
    if new < LOWEST:
        if io[WORD] < words.size:
            new = (new << 32) | np.int64(words[io[WORD]])
            io[WORD] += 1
        else:
            io[FAILED] = 1
            new = LOWEST
    state[which] = new


@inner
def record(io: Any, stream: Any, step: Any, live: Any, raw: Any) -> None:
    """Note the symbols of a step's live lanes; `step` int32: starts, frequencies and levels of 16 lanes."""
    starts, freqs, lanes = stream
    count = io[SYMBOL]
    for lane in range(LANES):
        if (live >> lane) & 1:
            starts[count], freqs[count], lanes[count] = step[lane], step[LANES + lane], lane
            count += 1
            if raw:
                rest = step[2 * LANES + lane] & ((1 << raw) - 1)
                starts[count], freqs[count] = rest << (PRECISION - raw), 1 << (PRECISION - raw)
                lanes[count] = lane
                count += 1
    io[SYMBOL] = count


@outer
def flush(starts: Any, freqs: Any, lanes: Any, count: Any, states: Any) -> Any:
    """Push the noted symbols in reverse order; the words in the order in which the decoder reads them (uint32)."""
    backwards = np.empty(count + 2 * states, np.uint32)
    used = 0
    state = np.empty(LANES, np.uint64)
    state[:] = LOWEST
    for place in range(count - 1, -1, -1):
        which = lanes[place] & (states - 1)
        freq = np.uint64(freqs[place])
        old = state[which]
        if old >= freq << np.uint64(63 - PRECISION):
            backwards[used] = np.uint32(old & np.uint64(0xFFFFFFFF))
            used += 1
            old >>= np.uint64(32)
        quotient = old // freq
        state[which] = (quotient << np.uint64(PRECISION)) + (old - quotient * freq) + np.uint64(starts[place])
    for which in range(states - 1, -1, -1):
        backwards[used] = np.uint32(state[which] & np.uint64(0xFFFFFFFF))
        backwards[used + 1] = np.uint32(state[which] >> np.uint64(32))
        used += 2
    return backwards[:used][::-1].copy()


@outer
def open_stream(io: Any, state: Any, words: Any, states: Any) -> None:
    """Read the first states (int64[16]) from the words; FAILED if there are none or they are out of bounds."""
    io[WORD], io[SYMBOL], io[FAILED] = 2 * states, 0, 0
    if words.size < 2 * states:
        io[FAILED] = 1
        return
    for which in range(states):
        high = np.int64(words[2 * which])
        state[which] = (high << 32) | np.int64(words[2 * which + 1])
        if (high >> 31) != 0 or state[which] < LOWEST:
            io[FAILED] = 1
            return
