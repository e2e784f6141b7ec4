"""Plain decoder of the learned coder: NumPy and Python integers, no kernels, no speed. Part of the format.

It follows docs/bitstream.md, part 2, step by step and shares with the fast decoder only the layout of the bytes and
the logistic table. The fast decoder must give the same words for every stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream
from codec.learnedformat import Job, Plane, Words
from codec.reference import Stream, decode_global
from codec.reference2law import Shape, Tile, coding_order

LOWEST = 1 << 31


class Streams:
    """Several rANS states that read from one sequence of words; v1's precision and limits."""

    def __init__(self, words: Words, states: int) -> None:
        self.words = [int(word) for word in words]
        if len(self.words) < 2 * states:
            raise CorruptBitstream("stream without its states")
        self.states = [self.words[2 * j] << 32 | self.words[2 * j + 1] for j in range(states)]
        self.next = 2 * states
        if any(not LOWEST <= state < 1 << 63 for state in self.states):
            raise CorruptBitstream("impossible state")

    def take(self, row: int, find: Callable[[int], tuple[int, int, int]]) -> int:
        """The next symbol of a sample in `row`; `find` gives (symbol, start, frequency) of the slot it is asked for."""
        own = row % 16 % len(self.states)
        state = self.states[own]
        slot = state & (1 << 28) - 1
        symbol, start, freq = find(slot)
        state = freq * (state >> 28) + slot - start
        if state < LOWEST:
            if self.next == len(self.words):
                raise CorruptBitstream("stream too short")
            state = state << 32 | self.words[self.next]
            self.next += 1
        self.states[own] = state
        return symbol

    def close(self) -> None:
        """Check that the stream ends here."""
        if self.next != len(self.words) or any(state != LOWEST for state in self.states):
            raise CorruptBitstream("stream does not end where it should")


class LearnedReference:
    """See codec.learnedformat.Engine."""

    def taps(self, words: Words, sets: int, radius: NDArray[np.int64]) -> Plane:
        """Coefficients of the least-squares predictors."""
        stream = Stream(words)
        out = np.zeros((sets, radius.size), np.int32)
        for row in range(sets):
            for tap in range(radius.size):
                name = ("tap", int(radius[tap]), row > 0)
                size = 8 * stream.number(name)
                low = 1
                for _ in range(3):
                    low = 2 * low + stream.bit((*name, "low", low))
                size += low - 8
                if size and stream.bit((*name, "sign")):
                    size = -size
                value = (int(out[0, tap]) if row else 0) + size
                out[row, tap] = min(max(value, -32767), 32767)
        stream.close()
        return out

    def plane(self, job: Job) -> Plane:
        """All tiles, one after another."""
        out = np.empty(job.shape, np.int32)
        for tile in job.tiles:
            end = tile.first + tile.rows
            previous = None if job.previous is None else job.previous[tile.first : end + 2]
            if job.upper is None:
                upper = self._upper(tile.upper, (tile.rows, job.shape[1]), job.highest >> job.plan.k)
            else:
                upper = job.upper[tile.first : end].tolist()
            shape = Shape(tile.rows, job.shape[1], job.highest, job.plan, job.network, previous)
            out[tile.first : end] = decode_tile(Tile(shape, tile.anchor), Streams(tile.words, job.states), upper)
        return out

    @staticmethod
    def _upper(words: Words, shape: tuple[int, int], highest: int) -> list[list[int]]:
        """G of a tile, from a stream of its own."""
        if highest == 0:
            return [[0] * shape[1]] * shape[0]
        stream = Stream(words)
        upper = decode_global(stream, shape[0], shape[1], highest)
        stream.close()
        return upper


def decode_tile(tile: Tile, streams: Streams, upper: list[list[int]]) -> list[list[int]]:
    """The samples of a tile given G."""
    raw = tile.shape.plan.raw
    for y, x in coding_order(tile.shape.rows, tile.shape.columns):
        slots = tile.slots(y, x, upper[y][x])
        symbol = upper[y][x] << tile.shape.plan.k >> raw
        if slots is not None:

            def find(slot: int) -> tuple[int, int, int]:
                low, high = slots.first, slots.last + 1
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if slots.start(middle) <= slot else (low, middle)
                return low, slots.start(low), slots.start(low + 1) - slots.start(low)

            symbol = streams.take(y, find)
        if raw:
            width = 28 - raw
            symbol = symbol << raw | streams.take(y, lambda slot: (slot >> width, slot >> width << width, 1 << width))
        tile.keep(y, x, symbol)
    streams.close()
    return tile.samples
