"""The restoration record of the hidden carrier: which samples were changed by +1 or -1, in few bytes.

Layout (version 1, big-endian): u8 version, u32 rows, u32 columns, u32 changes, 16 bytes of SHA-256 over the original
samples (int32 little-endian), then an adaptive binary arithmetic code over the samples that are not reserved, row by
row: changed or not, in a context of the stego image's local activity (integers only), and for a change its sign.
The code stops after the last change. It is as long as the message, and it is sealed by who stores it.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stego.errors import CarrierError

_HEADER = struct.Struct(">BIII16s")
_VERSION = 1
_CONTEXTS = 64
_TOP = np.uint64(1 << 24)
_LIMIT = (1 << 31) - 2


def encode(original: NDArray[np.int32], stego: NDArray[np.int32]) -> bytes:
    """The change map from `stego` back to `original`, both int32 (rows, columns).

    Raises ValueError when a sample differs by more than one or a reserved sample differs.
    """
    if original.shape != stego.shape or original.ndim != 2:
        raise ValueError("two frames of one shape")
    difference = stego.astype(np.int64) - original
    if (np.abs(difference) > 1).any() or difference[2::4, 2::4].any():
        raise ValueError("only changes of one, off the reserved lattice")
    changes = int(np.count_nonzero(difference))
    body: bytes = _encode(np.ascontiguousarray(stego), difference.astype(np.int8), changes, _fresh_counts()).tobytes()
    rows, columns = stego.shape
    return _HEADER.pack(_VERSION, rows, columns, changes, _digest(original)) + body


def apply(stego: NDArray[np.int32], changes: bytes) -> NDArray[np.int32]:
    """The original frame. Raises CarrierError('changes') unless `changes` is what `encode` wrote for this frame."""
    if len(changes) < _HEADER.size or stego.ndim != 2:
        raise CarrierError("changes")
    version, rows, columns, count, digest = _HEADER.unpack_from(changes)
    if version != _VERSION or (rows, columns) != stego.shape or count > stego.size:
        raise CarrierError("changes")
    body = np.frombuffer(changes, dtype=np.uint8, offset=_HEADER.size)
    difference = np.zeros(stego.shape, dtype=np.int8)
    if _decode(np.ascontiguousarray(stego), body, difference, count, _fresh_counts()):
        raise CarrierError("changes")
    original = stego.astype(np.int64) - difference
    if (np.abs(original) > _LIMIT).any() or _digest(original.astype(np.int32)) != digest:
        raise CarrierError("changes")
    return original.astype(np.int32)


def _digest(values: NDArray[np.int32]) -> bytes:
    return sha256(np.ascontiguousarray(values, dtype="<i4").tobytes()).digest()[:16]


def _fresh_counts() -> NDArray[np.int64]:
    """Counts (half units) of [unchanged, changed] per context, and of [-1, +1] in the last row."""
    counts = np.ones((_CONTEXTS + 1, 2), dtype=np.int64)
    counts[:_CONTEXTS, 0] = 128
    return counts


@numba.njit(nogil=True, cache=True)
def _activity(stego: NDArray[np.int32], r: int, c: int) -> Any:
    """Context 0.._CONTEXTS-1: twice the binary logarithm of second differences along rows and columns, 3 x 3."""
    rows, columns = stego.shape
    total = np.int64(0)
    for y in range(max(r - 1, 1), min(r + 2, rows - 1)):
        for x in range(max(c - 1, 1), min(c + 2, columns - 1)):
            centre = 2 * np.int64(stego[y, x])
            across = abs(np.int64(stego[y, x - 1]) + stego[y, x + 1] - centre)
            along = abs(np.int64(stego[y - 1, x]) + stego[y + 1, x] - centre)
            total += min(across, along)
    if total < 2:
        return total
    bits = 0
    rest = total
    while rest > 1:
        rest >>= 1
        bits += 1
    return min(2 * bits + ((total >> (bits - 1)) & 1), np.int64(_CONTEXTS - 1))


@numba.njit(nogil=True, cache=True)
def _share(counts: NDArray[np.int64], context: int) -> Any:
    """Probability of a 1 in 1/65536, from 1 to 65535."""
    zeros, ones = counts[context, 0], counts[context, 1]
    return min(max((ones << 16) // (zeros + ones), np.int64(1)), np.int64(65535))


@numba.njit(nogil=True, cache=True)
def _put(state: NDArray[np.uint64], out: NDArray[np.uint8], bit: int, share: int) -> None:
    """One binary decision; state is [low, range, bytes written] (uint64), carries run back into `out`."""
    cut = (state[1] >> np.uint64(16)) * np.uint64(share)
    if bit:
        state[1] = cut
    else:
        state[0] += cut
        state[1] -= cut
    if state[0] >> np.uint64(32):
        state[0] &= np.uint64(0xFFFFFFFF)
        at = np.int64(state[2]) - 1
        while out[at] == 255:
            out[at] = 0
            at -= 1
        out[at] += 1
    while state[1] < _TOP:
        out[np.int64(state[2])] = np.uint8(state[0] >> np.uint64(24))
        state[2] += np.uint64(1)
        state[0] = (state[0] << np.uint64(8)) & np.uint64(0xFFFFFFFF)
        state[1] <<= np.uint64(8)


@numba.njit(nogil=True, cache=True)
def _get(state: NDArray[np.uint64], data: NDArray[np.uint8], share: int) -> int:
    """Inverse of `_put`; state is [code, range, bytes read]. Beyond the end of `data` come zeros."""
    cut = (state[1] >> np.uint64(16)) * np.uint64(share)
    bit = 1 if state[0] < cut else 0
    if bit:
        state[1] = cut
    else:
        state[0] -= cut
        state[1] -= cut
    while state[1] < _TOP:
        at = np.int64(state[2])
        state[0] = (state[0] << np.uint64(8)) | np.uint64(data[at] if at < data.size else 0)
        state[2] += np.uint64(1)
        state[1] <<= np.uint64(8)
    return bit


@numba.njit(nogil=True, cache=True)
def _encode(
    stego: NDArray[np.int32], difference: NDArray[np.int8], changes: int, counts: NDArray[np.int64]
) -> NDArray[np.uint8]:
    rows, columns = stego.shape
    out = np.zeros(rows * columns * 4 // 5 * 3 + 64, dtype=np.uint8)  # at most 17 bits a decision, two a sample
    state = np.array([0, 0xFFFFFFFF, 0], dtype=np.uint64)
    for r in range(rows):
        for c in range(columns):
            if changes == 0:
                break
            if r & 3 == 2 and c & 3 == 2:
                continue
            context = _activity(stego, r, c)
            bit = 1 if difference[r, c] else 0
            _put(state, out, bit, _share(counts, context))
            counts[context, bit] += 2
            if bit:
                sign = 1 if difference[r, c] > 0 else 0
                _put(state, out, sign, _share(counts, _CONTEXTS))
                counts[_CONTEXTS, sign] += 2
                changes -= 1
    return _flush(state, out)


@numba.njit(nogil=True, cache=True)
def _flush(state: NDArray[np.uint64], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The shortest tail: four bytes of low, rounded up inside the range, without zeros at the end."""
    top = state[0] + state[1] - np.uint64(1)
    value = top & ~np.uint64(0xFFFFFF)
    if value < state[0]:
        value = top
    if value >> np.uint64(32):
        at = np.int64(state[2]) - 1
        while out[at] == 255:
            out[at] = 0
            at -= 1
        out[at] += 1
    n = np.int64(state[2])
    for shift in (24, 16, 8, 0):
        out[n] = np.uint8((value >> np.uint64(shift)) & np.uint64(255))
        n += 1
    while n > 0 and out[n - 1] == 0:
        n -= 1
    return out[:n].copy()


@numba.njit(nogil=True, cache=True)
def _decode(
    stego: NDArray[np.int32],
    data: NDArray[np.uint8],
    difference: NDArray[np.int8],
    changes: int,
    counts: NDArray[np.int64],
) -> int:
    """Fill `difference`; returns how many of `changes` were not found."""
    rows, columns = stego.shape
    state = np.array([0, 0xFFFFFFFF, 4], dtype=np.uint64)
    for at in range(4):
        state[0] = (state[0] << np.uint64(8)) | np.uint64(data[at] if at < data.size else 0)
    for r in range(rows):
        for c in range(columns):
            if changes == 0:
                return 0
            if r & 3 == 2 and c & 3 == 2:
                continue
            context = _activity(stego, r, c)
            bit = _get(state, data, _share(counts, context))
            counts[context, bit] += 2
            if bit:
                sign = _get(state, data, _share(counts, _CONTEXTS))
                counts[_CONTEXTS, sign] += 2
                difference[r, c] = 1 if sign else -1
                changes -= 1
    return changes
