"""A rANS state on a stack of 32-bit words (numba kernels): what bits-back coding pushes to and draws from.

The state stays in [2^31, 2^63). Pushing and popping by the same law are exact inverses, in either order: a number
popped while encoding gives its bits back when the decoder pushes it again. A stack begins with *initial* bits;
what lies above the deepest point ever reached is what has to be stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream
from codec.mixture import logistic
from codec.rans import LOWEST, PRECISION, TOTAL, kernel
from codec.tables import INVERSE_SCALE
from codec.vae import Law

Words = NDArray[np.uint32]
STATE, LENGTH, DEEPEST = 0, 1, 2  # fields of the kernels' int64[3]
FLOOR = 1 << 11  # the uniform part of every law; at least 3 a number, so that no frequency is 0 under 7 full weights


@kernel
def below(value: Any, weight: Any, centre: Any, scale: Any, place: Any, floor: Any) -> Any:
    """Mass of a law below a number, before normalisation."""
    total = np.int64(0)
    for part in range(weight.shape[0]):
        offset = (np.int64(value) << 6) - 32 - centre[part, place]
        total += weight[part, place] * logistic(offset, INVERSE_SCALE[scale[part, place]])
    return (total >> 16) + value * floor


@kernel
def push_all(io: Any, words: Any, weight: Any, centre: Any, scale: Any, highest: Any, values: Any) -> None:
    """Push numbers, the last one first; `words` has room for one word a number."""
    floor = 1 + FLOOR // (highest + 1)
    for place in range(values.size - 1, -1, -1):
        base = below(0, weight, centre, scale, place, floor)
        factor = (np.int64(1) << (PRECISION + 33)) // (below(highest + 1, weight, centre, scale, place, floor) - base)
        value = np.int64(values[place])
        start = ((below(value, weight, centre, scale, place, floor) - base) * factor) >> 33
        end = np.int64(TOTAL)
        if value < highest:
            end = ((below(value + 1, weight, centre, scale, place, floor) - base) * factor) >> 33
        freq = end - start
        if io[STATE] >= freq << (63 - PRECISION):
            words[io[LENGTH]] = np.uint32(io[STATE] & 0xFFFFFFFF)
            io[LENGTH] += 1
            io[STATE] >>= 32
        quotient = io[STATE] // freq
        io[STATE] = (quotient << PRECISION) + (io[STATE] - quotient * freq) + start


@kernel
def pop_all(io: Any, words: Any, weight: Any, centre: Any, scale: Any, highest: Any, values: Any) -> Any:
    """Pop numbers, the first one first; False when the stack ran empty."""
    floor = 1 + FLOOR // (highest + 1)
    for place in range(values.size):
        base = below(0, weight, centre, scale, place, floor)
        factor = (np.int64(1) << (PRECISION + 33)) // (below(highest + 1, weight, centre, scale, place, floor) - base)
        target = io[STATE] & (TOTAL - 1)
        best = 0
        for part in range(1, weight.shape[0]):
            if weight[part, place] > weight[best, place]:
                best = part
        low, high, step = np.int64(0), np.int64(highest) + 1, np.int64(1)
        start, end = np.int64(0), np.int64(TOTAL)
        probe: Any = min(max((np.int64(centre[best, place]) + 32) >> 6, np.int64(1)), np.int64(highest))
        while high - low > 1:
            edge = ((below(probe, weight, centre, scale, place, floor) - base) * factor) >> 33
            if edge <= target:
                low, start = probe, edge
                probe += step
            else:
                high, end = probe, edge
                probe -= step
            step *= 2
            if probe <= low or probe >= high:
                probe = (low + high) >> 1
                step = max(np.int64(1), (high - low) >> 2)
        values[place] = low
        state = (end - start) * (io[STATE] >> PRECISION) + target - start
        if state < LOWEST:
            if io[LENGTH] == 0:
                return False
            io[LENGTH] -= 1
            state = (state << 32) | np.int64(words[io[LENGTH]])
            io[DEEPEST] = min(io[DEEPEST], io[LENGTH])
        io[STATE] = state
    return True


class BitsBack:
    """See codec.vae.Stack. `words` uint32, the top last; `state` in [2^31, 2^63)."""

    def __init__(self, words: Words, state: int) -> None:
        self._words = words.copy()
        self._io = np.array([state, words.size, words.size], np.int64)

    def push(self, law: Law, values: NDArray[np.int32]) -> None:
        """See Stack; at most one word more a number."""
        need = int(self._io[LENGTH]) + values.size
        if need > self._words.size:
            self._words = np.concatenate((self._words, np.zeros(need, np.uint32)))
        push_all(self._io, self._words, law.weight, law.centre, law.scale, law.highest, values)

    def pop(self, law: Law) -> NDArray[np.int32]:
        """See Stack."""
        values = np.empty(law.centre.shape[1], np.int32)
        if not pop_all(self._io, self._words, law.weight, law.centre, law.scale, law.highest, values):
            raise CorruptBitstream("the group's stack ran empty")
        return values

    @property
    def state(self) -> int:
        """The state."""
        return int(self._io[STATE])

    @property
    def words(self) -> Words:
        """All words on the stack, the top last."""
        return self._words[: self._io[LENGTH]].copy()

    @property
    def deepest(self) -> int:
        """The smallest number of words that it ever held."""
        return int(self._io[DEEPEST])
