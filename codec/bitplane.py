"""Words, sample values, level indices and bit planes.

A *word* is what is stored (8 or 16 bits allocated), a *value* the sample in it (sign-extended), a *level index* the
rank of the value in the frame's table of levels. All coders work on level indices.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# "as" re-exports: stego imports this module of the codec only.
from codec.errors import CodecError as CodecError
from codec.errors import UnsupportedFrame
from codec.pixelformat import PixelFormat as PixelFormat

Words = NDArray[np.uint8] | NDArray[np.uint16]
Samples = TypeVar("Samples", NDArray[np.int32], NDArray[np.uint16])
DENSE_SHARE = 0.92  # design: rank the levels when fewer than 92 % of those in range occur
LOOKED_AT = 1 << 16  # samples looked at at once
ROUGH_SAMPLES = 1 << 15  # looked at to choose between the two kinds of level table
ESTIMATE_SAMPLES = 1 << 21  # estimates of larger frames are made on this many samples in the middle: bounded memory


def split_words(words: Words, fmt: PixelFormat) -> tuple[NDArray[np.int32], NDArray[np.uint16] | None]:
    """Split stored words into sample values (int32, same shape) and the unused bits in place (uint16; None if all 0).

    Raises UnsupportedFrame when shape or dtype differ from `fmt`.
    """
    if words.shape != fmt.shape or words.dtype != np.dtype(fmt.dtype):
        raise UnsupportedFrame(f"words are {words.dtype} {words.shape}, the format says {fmt.dtype} {fmt.shape}")
    unused: NDArray[np.uint16] | None = None
    if fmt.bits_stored < fmt.bits_allocated:
        outside = (words & words.dtype.type(~fmt.mask & (1 << fmt.bits_allocated) - 1)).astype(np.uint16, copy=False)
        unused = outside if outside.any() else None
    values = (words if unused is None else words & words.dtype.type(fmt.mask)).astype(np.int32)
    if fmt.shift:
        values >>= fmt.shift
    if fmt.signed:
        sign = np.int32(1 << (fmt.bits_stored - 1))
        values ^= sign
        values -= sign
    return values, unused


def join_words(values: NDArray[np.int32], unused: NDArray[np.uint16] | None, fmt: PixelFormat) -> Words:
    """Exact inverse of split_words: words of fmt.dtype and fmt.shape."""
    words = values.reshape(fmt.shape).astype(fmt.dtype)  # two's complement: what is cut off is no part of the sample
    words <<= fmt.shift
    words &= fmt.mask
    if unused is not None:
        words |= unused.reshape(fmt.shape).astype(fmt.dtype)
    return words


def sign_extension(values: NDArray[np.int32], fmt: PixelFormat) -> NDArray[np.uint16]:
    """The unused bits as they are when the sample's sign is repeated in every bit above it (and 0 below)."""
    above = ((1 << fmt.bits_allocated) - 1) & ~((1 << (fmt.high_bit + 1)) - 1)
    return np.where(values < 0, np.uint16(above), np.uint16(0)).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class LevelTable:
    """The sorted distinct values that a frame may use.

    Dense: the `count` values from `minimum` on (`table` is None). Explicit: `table`, int32, strictly increasing.
    """

    minimum: int
    count: int
    table: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 65536:
            raise UnsupportedFrame(f"{self.count} levels; 1..65536 can be coded")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LevelTable) or (self.minimum, self.count) != (other.minimum, other.count):
            return False
        return bool(np.array_equal(self.values(), other.values()))

    def __hash__(self) -> int:
        return hash((self.minimum, self.count))

    def values(self) -> NDArray[np.int32]:
        """All levels, int32, increasing."""
        if self.table is not None:
            return self.table
        return np.arange(self.minimum, self.minimum + self.count, dtype=np.int32)

    def rank(self, values: NDArray[np.int32]) -> NDArray[np.uint16]:
        """Level indices of `values` (same shape). Raises CodecError when a value is not among the levels."""
        if self.table is None:
            last = self.minimum + self.count - 1
            if values.size and (int(values.min()) < self.minimum or int(values.max()) > last):
                raise CodecError("a value lies outside the frame's levels")
            return (values - np.int32(self.minimum)).astype(np.uint16)
        ranks = np.full(int(self.table[-1]) - self.minimum + 1, -1, np.int32)  # a look-up is faster than a search
        ranks[self.table - self.minimum] = np.arange(self.count, dtype=np.int32)
        index, flat = np.empty(values.size, np.uint16), values.ravel()
        for first in range(0, flat.size, LOOKED_AT):  # in parts: what lies between fits the processor's cache
            wide = flat[first : first + LOOKED_AT] - np.int32(self.minimum)
            if int(wide.min()) < 0 or int(wide.max()) >= ranks.size:
                raise CodecError("a value is not among the frame's levels")
            found = ranks[wide]
            if int(found.min()) < 0:
                raise CodecError("a value is not among the frame's levels")
            index[first : first + LOOKED_AT] = found
        return index.reshape(values.shape)

    def value(self, index: NDArray[np.uint16]) -> NDArray[np.int32]:
        """Values of level indices (same shape). Raises CodecError when an index is not below `count`."""
        if index.size and int(index.max()) >= self.count:
            raise CodecError("a level index lies outside the frame's levels")
        if self.table is None:
            return index.astype(np.int32) + np.int32(self.minimum)
        return self.table[index]


def pack_levels(levels: LevelTable) -> bytes:
    """The gaps of an explicit table (first level left out), the shorter of deflated gaps and deflated bitmap.

    Empty for a dense table. First byte 0: gaps - 1 as little-endian uint16; 1: bitmap of minimum+1 .. maximum.
    """
    if levels.table is None:
        return b""
    gaps = np.diff(levels.table)
    narrow = zlib.compress((gaps - 1).astype("<u2").tobytes(), 9)
    present = np.zeros(int(gaps.sum()), np.uint8)
    present[np.cumsum(gaps) - 1] = 1
    bitmap = zlib.compress(np.packbits(present).tobytes(), 9)
    return b"\x00" + narrow if len(narrow) < len(bitmap) else b"\x01" + bitmap


def choose_levels(values: NDArray[np.int32]) -> LevelTable:
    """The level table for a frame: dense, or explicit when that is shorter by estimate.

    Explicit when fewer than 92 % of the levels in range occur, and the table's own bytes are paid for by the estimated
    code length. Deterministic in `values`.
    """
    lowest, highest = int(values.min()), int(values.max())
    dense = LevelTable(lowest, highest - lowest + 1)
    seen, flat, used = np.zeros(dense.count, np.bool_), values.ravel(), 0
    for first in range(0, flat.size, LOOKED_AT):
        seen |= np.bincount(flat[first : first + LOOKED_AT] - np.int32(lowest), minlength=dense.count) > 0
        used = int(np.count_nonzero(seen))
        if used >= DENSE_SHARE * dense.count:
            return dense
    explicit = LevelTable(lowest, used, (np.flatnonzero(seen) + lowest).astype(np.int32))
    table_bits = 8 * len(pack_levels(explicit))
    part = _middle(values, ROUGH_SAMPLES)
    gain = (_rough_bits(part, dense) - _rough_bits(part, explicit)) * values.size / part.size
    return explicit if gain > table_bits else dense


def _rough_bits(part: NDArray[np.int32], levels: LevelTable) -> float:
    """Estimated code length in bits of values under a table of levels, from the errors of the MED predictor."""
    plane = levels.rank(part).reshape(part.shape[0], part.shape[1], -1).astype(np.int32)
    errors = np.abs(plane - med_predictions(plane)).astype(np.float32)
    near = np.ones_like(errors)
    near[1:] += errors[:-1]
    near[:, 1:] += errors[:, :-1]
    near[1:, 1:] += errors[:-1, :-1]
    scale = near / np.float32(3.0) + np.float32(0.3)
    modelled = float((np.log2(scale) + np.float32(0.7) * errors / scale).sum(dtype=np.float64))
    modelled += float(errors.shape[0] * errors.shape[1])
    return min(modelled, float(part.size * math.log2(levels.count)))


def _middle(index: Samples, samples: int) -> Samples:
    """Whole rows from the middle of a frame, about `samples` samples at most."""
    height = max(2, samples // (index.size // index.shape[0]))
    first = max(0, (index.shape[0] - height) // 2)
    return index[first : first + height]


def med_predictions(plane: NDArray[np.int32]) -> NDArray[np.int32]:
    """MED (LOCO-I) predictions of every sample from W, N, NW; int32, same shape; 0 before the first sample."""
    west = np.zeros_like(plane)
    west[:, 1:] = plane[:, :-1]
    north = np.zeros_like(plane)
    north[1:] = plane[:-1]
    corner = np.zeros_like(plane)
    corner[1:, 1:] = plane[:-1, :-1]
    north[0], corner[0] = west[0], west[0]
    west[1:, 0], corner[1:, 0] = north[1:, 0], north[1:, 0]
    low, high = np.minimum(west, north), np.maximum(west, north)
    predictions: NDArray[np.int32] = np.minimum(np.maximum(west + north - corner, low), high)
    return predictions


def plane_entropies(index: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Estimated conditional entropy of each bit plane of a level-index image, in bits per sample; [0] is the lowest.

    Each plane is conditioned on all planes above it and on the causal neighbourhood, through a causal prediction and
    the local activity. As many entries as the highest index has bits (at least one). Large images: of their middle.
    """
    part = _middle(index, ESTIMATE_SAMPLES)
    plane = part.reshape(part.shape[0], -1).astype(np.int32)
    bits = max(1, int(index.max()).bit_length())
    guess = _smooth_predictions(plane)
    errors = np.abs(plane - guess)
    near = np.zeros_like(errors)
    near[1:] += errors[:-1]
    near[:, 1:] += errors[:, :-1]
    near[1:, 1:] += errors[:-1, :-1]
    activity = np.minimum(np.log2(1 + near).astype(np.int32), 15)
    out = np.zeros(bits, np.float64)
    for bit in range(bits):
        base = (plane >> (bit + 1)) << (bit + 1)
        place = np.clip(((guess - base) * 16) >> (bit + 1), -16, 31) + 16
        context = place * 16 + activity
        ones = (plane >> bit) & 1
        counts = np.bincount((context * 2 + ones).ravel(), minlength=48 * 16 * 2).reshape(-1, 2).astype(np.float64)
        out[bit] = _count_entropy(counts) / plane.size
    return out


def _smooth_predictions(plane: NDArray[np.int32]) -> NDArray[np.int32]:
    """(W+N)/2 + (NE-NW)/4, the plain predictor for noisy images; int32, same shape."""
    padded = np.pad(plane, ((1, 0), (1, 1)), mode="edge")
    west, north = padded[1:, :-2], padded[:-1, 1:-1]
    return (2 * (west + north) + padded[:-1, 2:] - padded[:-1, :-2] + 2) >> 2


def _count_entropy(counts: NDArray[np.float64]) -> float:
    """Adaptive (Krichevsky-Trofimov) code length in bits of the binary counts of each context (rows of two)."""
    total = counts.sum(axis=1)
    share = np.clip((counts + 0.5) / (total[:, None] + 1.0), 1e-12, 1.0)
    used = total > 0
    return float(-(counts * np.log2(share))[used].sum() + 0.5 * np.log2(total[used] + 1.0).sum())
