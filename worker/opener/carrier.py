"""The segmented carrier (docs/payload-format.md, section 7): which lowest bits carry, in what order, and back."""

from __future__ import annotations

import struct
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words, join_words, split_words
from codec.blob import Frame
from codec.errors import CodecError
from worker.opener.errors import Damaged
from worker.opener.symmetric import chacha20, hkdf


class Segment:
    """The carrying samples of one decoded frame: `bits` lowest bits from `start` on."""

    def __init__(self, frame: Frame, start: int, bits: int) -> None:
        if frame.fmt.samples != 1:
            raise Damaged("a colour frame carries nothing")
        self._frame = frame
        try:
            values, self._unused = split_words(frame.words, frame.fmt)
            self._index = frame.levels.rank(values)
        except CodecError:
            raise Damaged("the frame does not fit its levels") from None
        places = np.flatnonzero(self._eligible())
        if bits < 1 or start + bits > places.size:
            raise Damaged("the carrier does not fit the frame")
        self._places, self._window = places[start : start + bits], (start, bits)

    def _eligible(self) -> NDArray[np.bool_]:
        pairs = self._index >> 1
        last = (self._frame.levels.count - 1) >> 1
        negative = int(np.searchsorted(self._frame.levels.values(), 0))
        fit = (pairs > 0) & (pairs < last)
        if negative & 1 and negative > 1:
            fit &= pairs != negative >> 1  # its two levels have different signs
        differs = np.zeros(pairs.shape, bool)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                here, there = _overlap(pairs, dy, dx), _overlap(pairs, -dy, -dx)
                _overlap(differs, dy, dx)[:] |= here != there
        return fit & differs

    def _with(self, flips: NDArray[np.uint16]) -> Words:
        changed = self._index.copy()
        changed.reshape(-1)[self._places] ^= flips
        return join_words(self._frame.levels.value(changed), self._unused, self._frame.fmt)

    def exact(self, bitmap: bytes) -> Words:
        """The words with the carrying bits flipped back."""
        bits = np.unpackbits(np.frombuffer(bitmap, np.uint8))
        if bits.size != (self._window[1] + 7) // 8 * 8 or bits[self._window[1] :].any():
            raise Damaged("the bitmap does not fit the carrier")
        return self._with(bits[: self._window[1]].astype(np.uint16))

    def message(self, stego_key: bytes, salt: bytes) -> bytes:
        """The bits read in keyed order."""
        bits = self._index.reshape(-1)[self._places] & 1
        return np.packbits(bits[_permutation(bits.size, stego_key, salt)].astype(np.uint8)).tobytes()

    def untouched(self) -> bytes:
        """Digest of what embedding leaves alone."""
        lower = self._with(self._index.reshape(-1)[self._places] & np.uint16(1))
        return frame_digest(self._frame, lower, *self._window)


def _overlap(plane: NDArray[np.generic], dy: int, dx: int) -> NDArray[np.generic]:
    """The samples that have a neighbour at (dy, dx) inside the frame."""
    rows, columns = plane.shape
    return plane[max(0, -dy) : rows - max(0, dy), max(0, -dx) : columns - max(0, dx)]


def frame_digest(frame: Frame, words: Words, start: int = 0, bits: int = 0) -> bytes:
    """SHA-256 over format, window and words."""
    fmt = frame.fmt
    shape = (fmt.rows, fmt.columns, fmt.samples, fmt.bits_allocated, fmt.bits_stored, fmt.high_bit, fmt.signed)
    head = b"palimpsest/untouched/v1\x00" + struct.pack(">IIBBBBBQQ", *shape, start, bits)
    return sha256(head + np.ascontiguousarray(words, words.dtype.newbyteorder("<")).tobytes()).digest()


def _permutation(count: int, stego_key: bytes, salt: bytes) -> NDArray[np.int64]:
    key = hkdf(stego_key, salt, b"palimpsest/pos/v1")
    stream = np.frombuffer(chacha20(key, 4 * (2 * count + 64)), "<u4").tolist()
    items, draws = list(range(count)), iter(stream)
    for i in range(count - 1, 0, -1):
        limit = 2**32 - 2**32 % (i + 1)
        draw = next(draws)
        while draw >= limit:
            draw = next(draws)
        j = draw % (i + 1)
        items[i], items[j] = items[j], items[i]
    return np.array(items, np.int64)
