"""A few keyed header bits in single lowest bits of a frame, by syndrome coding (Hamming, "matrix embedding").

The receiver must read them before it knows anything else. A block of 2^p - 1 samples at keyed positions carries p bits:
the xor of the (1-based) indices of its odd samples. At most one sample a block is changed (three where that one may not
be), by flipping its lowest bit. The block's first syndrome travels in the message, so the receiver undoes the flip.

Crandall, "Some notes on steganography", 1998; Westfeld, "F5", IH 2001.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from stego.carriers import Ground, kernel, segment
from stego.errors import CarrierError
from stego.positions import permutation

MAX_BITS = 512
MAX_SAMPLES = 1 << 28  # the methods' fields for a place in the frame have 28 bits
_MAX_ORDER = 7
_SHARE = 4  # blocks take at most this part of the samples


class Places:
    """Blocks of header samples. `order` p; `blocks` int64 (blocks, 2^p - 1), flat indices into the frame."""

    def __init__(self, ground: Ground, *, stego_key: bytes, salt: bytes) -> None:
        """Raises CarrierError ("capacity") where the frame is too small for any header, or too large for its fields."""
        if ground.mask.size >= MAX_SAMPLES:
            raise CarrierError("capacity")
        eligible = np.flatnonzero(ground.mask)
        fitting = [p for p in range(_MAX_ORDER, 0, -1) if _SHARE * _samples(MAX_BITS, p) <= eligible.size]
        if not fitting:
            raise CarrierError("capacity")
        self.order = fitting[0]
        self.bars = ground.bars
        count = -(-MAX_BITS // self.order)
        chosen = eligible[permutation(eligible.size, stego_key=stego_key, salt=salt)[: _samples(MAX_BITS, self.order)]]
        self.blocks = chosen.reshape(count, (1 << self.order) - 1).astype(np.int64)

    def used(self, nbits: int) -> int:
        """Number of blocks that `nbits` take."""
        return -(-nbits // self.order)

    def syndromes(self, values: NDArray[np.int32], first: int, last: int) -> NDArray[np.uint8]:
        """uint8 (last - first,): syndromes of blocks first..last-1."""
        return np.asarray(_syndromes(values.reshape(-1), self.blocks[first:last]))

    def clear(self, values: NDArray[np.int32], count: int) -> None:
        """Clear the lowest bit of what may be flipped in the first `count` blocks, in place: equal on both sides."""
        _clear(values.reshape(-1), self.blocks[:count], self.bars)

    def turn(self, values: NDArray[np.int32], wanted: NDArray[np.uint8]) -> None:
        """Flip lowest bits, in place, so that the first blocks have the `wanted` syndromes; its own inverse with the
        first ones. Raises CarrierError ("capacity") where a block has no samples that may be flipped."""
        if not _turn(values.reshape(-1), self.blocks[: wanted.size], wanted, self.bars):
            raise CarrierError("capacity")


def _samples(nbits: int, order: int) -> int:
    return -(-nbits // order) * ((1 << order) - 1)


def to_bits(syndromes: NDArray[np.uint8], order: int) -> NDArray[np.uint8]:
    """Bits of syndromes, highest first: uint8 (order x blocks,) of 0 and 1."""
    shifts = np.arange(order - 1, -1, -1, dtype=np.uint8)
    return ((syndromes[:, None] >> shifts) & 1).reshape(-1).astype(np.uint8)


def from_bits(bits: NDArray[np.uint8], order: int) -> NDArray[np.uint8]:
    """Inverse of `to_bits`; missing last bits are zero."""
    count = -(-bits.size // order)
    padded = np.zeros(count * order, np.uint8)
    padded[: bits.size] = bits
    weights = 1 << np.arange(order - 1, -1, -1)
    return (padded.reshape(count, order) @ weights).astype(np.uint8)


def keystream(key: bytes, nbytes: int) -> bytes:
    """ChaCha20 under a key that is used for this alone."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(nbytes))


class BitWriter:
    """Numbers as bits, highest first."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def put(self, value: int, width: int) -> None:
        if not 0 <= value < 1 << width:
            raise ValueError("value does not fit its field")
        self.bits.extend((value >> i) & 1 for i in range(width - 1, -1, -1))


class BitReader:
    """Inverse of BitWriter; past the end it reads zeros, and `ended` tells whether all was read and no more."""

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits = bits.tolist()
        self._at = 0

    def get(self, width: int) -> int:
        value = 0
        for _ in range(width):
            bit = self._bits[self._at] if self._at < len(self._bits) else 0
            value, self._at = value << 1 | bit, self._at + 1
        return value

    def ended(self) -> bool:
        """True when exactly all bits were read: a field of another length is of another format."""
        return self._at == len(self._bits)


@kernel
def _may_flip(value: Any, bars: Any) -> Any:
    first, last = segment(value, bars)
    return first <= (value & ~1) and (value | 1) <= last


@kernel
def _syndromes(flat: Any, blocks: Any) -> Any:
    out = np.zeros(blocks.shape[0], np.uint8)
    for b in range(blocks.shape[0]):
        syndrome = 0
        for j in range(blocks.shape[1]):
            if flat[blocks[b, j]] & 1:
                syndrome ^= j + 1
        out[b] = syndrome
    return out


@kernel
def _clear(flat: Any, blocks: Any, bars: Any) -> Any:
    for b in range(blocks.shape[0]):
        for j in range(blocks.shape[1]):
            value = flat[blocks[b, j]]
            if _may_flip(value, bars):
                flat[blocks[b, j]] = value & ~1


@kernel
def _turn(flat: Any, blocks: Any, wanted: Any, bars: Any) -> Any:
    """Flip one sample a block, or the first two or three that do where that one may not be flipped: which, follows from
    the difference of syndromes and from what may be flipped, both of which are the same on the way back."""
    width = blocks.shape[1]
    free = np.zeros(width + 1, np.bool_)  # by 1-based index; the code words are small, so no sample is number 0
    for b in range(blocks.shape[0]):
        change = np.int64(wanted[b])
        for j in range(width):
            value = flat[blocks[b, j]]
            free[j + 1] = _may_flip(value, bars)
            if value & 1:
                change ^= j + 1
        if change == 0:
            continue
        first, second, third = _flips(free, change)
        if first == 0:
            return False
        for j in (first, second, third):
            if j:
                flat[blocks[b, j - 1]] ^= 1
    return True


@kernel
def _flips(free: Any, change: Any) -> Any:
    """Indices (from 1) whose xor is `change` of the fewest samples to flip, 0 for none; all 0 where three do not do."""
    if free[change]:
        return change, 0, 0
    for j in range(1, free.size):
        other = j ^ change
        if j < other and free[j] and free[other]:
            return j, other, 0
    for j in range(1, free.size):
        for k in range(j + 1, free.size):
            other = j ^ k ^ change
            if other > k and free[j] and free[k] and free[other]:
                return j, k, other
    return 0, 0, 0
