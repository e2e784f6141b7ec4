"""The reserved lattice: samples that no pixel carrier ever alters, so that both sides can compute from them.

A carrier that changes samples by one may change every bit plane of a sample (a carry), so "the upper bits" are not
invariant. One sample in sixteen is therefore left alone; salt, region mask and associated data come from these.
"""

from __future__ import annotations

import struct
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

STEP = 4
OFFSET = 2
_PREFIX = b"palimpsest/lattice/v1\x00"


def lattice(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """The reserved samples of a frame: int32 view of shape (ceil((rows - 2) / 4), ceil((columns - 2) / 4))."""
    return values[OFFSET::STEP, OFFSET::STEP]


def reserved(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """True where a sample of a frame of `shape` (rows, columns) belongs to the lattice."""
    mask = np.zeros(shape, dtype=np.bool_)
    mask[OFFSET::STEP, OFFSET::STEP] = True
    return mask


def fingerprint(values: NDArray[np.int32], bits_stored: int, signed: bool, mode: str) -> bytes:
    """SHA-256 (32 bytes) over shape, depth, sign, carrier mode and the lattice: equal for cover and stego image."""
    rows, columns = values.shape
    head = struct.pack(">IIBBB", rows, columns, bits_stored, signed, len(mode)) + mode.encode("ascii")
    return sha256(_PREFIX + head + np.ascontiguousarray(lattice(values), dtype="<i4").tobytes()).digest()
