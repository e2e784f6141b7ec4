"""The bits-back stack in plain Python integers: part of the format's reference, no kernels, no speed.

Same law, same state and words as codec.bitsback; docs/bitstream.md describes them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream
from codec.tables import INVERSE_SCALE, LOGISTIC, Z_LAST, Z_LIMIT, Z_STEPS
from codec.vae import Law

LOWEST, PRECISION = 1 << 31, 28


class _Slots:
    """The slots of one number's law."""

    def __init__(self, law: Law, place: int) -> None:
        self._parts = [
            (int(law.weight[part, place]), int(law.centre[part, place]), int(INVERSE_SCALE[law.scale[part, place]]))
            for part in range(law.weight.shape[0])
        ]
        self._highest = law.highest
        self._floor = 1 + (1 << 11) // (law.highest + 1)
        self._base = self._mass(0)
        self._factor = (1 << 61) // (self._mass(law.highest + 1) - self._base)

    def _mass(self, value: int) -> int:
        total = 0
        for weight, centre, inverse in self._parts:
            at = ((64 * value - 32 - centre) * inverse >> 13) + (Z_LIMIT * Z_STEPS << 8)
            entry = at >> 8
            if at > 0 and entry >= Z_LAST:
                total += weight * int(LOGISTIC[Z_LAST])
            elif at > 0:
                low, high = int(LOGISTIC[entry]), int(LOGISTIC[entry + 1])
                total += weight * (low + ((high - low) * (at & 255) >> 8))
        return (total >> 16) + value * self._floor

    def start(self, value: int) -> int:
        """First slot of a number; 2^28 for the one after the highest."""
        if value > self._highest:
            return 1 << PRECISION
        return (self._mass(value) - self._base) * self._factor >> 33

    def find(self, slot: int) -> int:
        """The number that owns a slot."""
        low, high = 0, self._highest + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.start(middle) <= slot else (low, middle)
        return low


class PlainStack:
    """See codec.vae.Stack and codec.groupstack.OpenStack."""

    def __init__(self, words: NDArray[np.uint32], state: int) -> None:
        self._words = [int(word) for word in words]
        self.state = state
        self.deepest = len(self._words)

    @property
    def words(self) -> NDArray[np.uint32]:
        """All words, the top last."""
        return np.array(self._words, np.uint32)

    def push(self, law: Law, values: NDArray[np.int32]) -> None:
        """See Stack."""
        for place in range(values.size - 1, -1, -1):
            slots, value = _Slots(law, place), int(values[place])
            start = slots.start(value)
            freq = slots.start(value + 1) - start
            if self.state >= freq << (63 - PRECISION):
                self._words.append(self.state & 0xFFFFFFFF)
                self.state >>= 32
            self.state = (self.state // freq << PRECISION) + self.state % freq + start

    def pop(self, law: Law) -> NDArray[np.int32]:
        """See Stack."""
        values = np.empty(law.centre.shape[1], np.int32)
        for place in range(values.size):
            slots, slot = _Slots(law, place), self.state & ((1 << PRECISION) - 1)
            value = slots.find(slot)
            start = slots.start(value)
            self.state = (slots.start(value + 1) - start) * (self.state >> PRECISION) + slot - start
            if self.state < LOWEST:
                if not self._words:
                    raise CorruptBitstream("the group's stack ran empty")
                self.state = self.state << 32 | self._words.pop()
                self.deepest = min(self.deepest, len(self._words))
            values[place] = value
        return values
