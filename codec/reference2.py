"""Plain decoder of the learned coder: NumPy and Python integers, no kernels, no speed. Part of the format.

It follows docs/bitstream.md, part 2, step by step and shares with the fast decoder only the layout of the bytes and
the logistic table. The fast decoder must give the same words for every stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream
from codec.learneddecode import Job, Plane
from codec.learnedformat import Words
from codec.memory import Head
from codec.reference1 import Stream, decode_global, read_taps
from codec.reference2law import Shape, Tile, coding_steps

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

    def slot(self, row: int) -> int:
        """The slot, 0..2^28 - 1, that the interval of the next symbol of a sample in `row` holds."""
        return self.states[row % 16 % len(self.states)] & (1 << 28) - 1

    def remove(self, row: int, start: int, freq: int) -> None:
        """Take the symbol [start, start + freq) off the row's state."""
        own = row % 16 % len(self.states)
        state = freq * (self.states[own] >> 28) + self.slot(row) - start
        if state < LOWEST:
            if self.next == len(self.words):
                raise CorruptBitstream("stream too short")
            state = state << 32 | self.words[self.next]
            self.next += 1
        self.states[own] = state

    def close(self) -> None:
        """Check that the stream ends here."""
        if self.next != len(self.words) or any(state != LOWEST for state in self.states):
            raise CorruptBitstream("stream does not end where it should")


class LearnedReference:
    """See codec.learneddecode.Engine."""

    def taps(self, words: Words, sets: int, radius: NDArray[np.int64]) -> Plane:
        """Coefficients of the least-squares predictors."""
        return read_taps(words, sets, radius)

    def plane(self, job: Job) -> tuple[Plane, tuple[Head, ...]]:
        """All tiles, one after another."""
        out, setting, heads = np.empty(job.shape, np.int32), job.setting, []
        for number, tile in enumerate(job.tiles):
            first = number * job.tile_rows
            rows = min(job.tile_rows, job.shape[0] - first)
            end = first + rows
            previous = None if job.previous is None else job.previous[first : end + 2]
            if job.upper is None:
                upper = self._upper(tile.upper, (rows, job.shape[1]), setting.highest >> setting.k)
            else:
                upper = job.upper[first:end].tolist()
            shape = Shape(rows, job.shape[1], setting, upper, previous, job.heads[number] if job.heads else None)
            coded = Tile(shape, tile.anchor)
            out[first:end] = decode_tile(coded, Streams(tile.words, setting.states))
            heads.append(coded.head.master.astype(np.int32))
        return out, tuple(heads)

    @staticmethod
    def _upper(words: Words, shape: tuple[int, int], highest: int) -> list[list[int]]:
        """G of a tile, from a stream of its own."""
        if highest == 0:
            return [[0] * shape[1]] * shape[0]
        stream = Stream(words)
        upper = decode_global(stream, shape[0], shape[1], highest)
        stream.close()
        return upper


def decode_tile(tile: Tile, streams: Streams) -> list[list[int]]:
    """The samples of a tile given G."""
    raw = tile.shape.setting.raw
    for step in coding_steps(tile.shape.rows, tile.shape.columns):
        for y, x in step:
            slots = tile.slots(y, x)
            sample = slots.find(streams.slot(y))
            streams.remove(y, slots.start(sample), slots.start(sample + 1) - slots.start(sample))
            if raw:
                low = streams.slot(y) >> 28 - raw
                streams.remove(y, low << 28 - raw, 1 << 28 - raw)
                sample = sample << raw | low
            if sample > tile.shape.setting.highest:
                raise CorruptBitstream("sample outside the plane's range")
            tile.keep(y, x, sample, slots.law)
        tile.end_step()
    streams.close()
    return tile.samples
