"""Least-significant-bit replacement and matching: the baselines that the benchmarks compare with, and no more.

Replacement overwrites the lowest bit; matching adds or subtracts one at random where the bit is wrong. Both are
detectable (Fridrich, Goljan, Du 2001; Ker 2005), which is why no policy offers them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from stego.cover import Cover
from stego.errors import CarrierError
from stego.lattice import reserved
from stego.positions import permutation

Method = Literal["replacement", "matching"]
_INFO_SIGNS = b"palimpsest/matching-signs/v1"


def capacity(cover: Cover) -> int:
    """Bits: one for every sample that is not reserved."""
    return int(np.count_nonzero(~reserved(cover.values.shape)))


def embed(
    cover: Cover, message: bytes, *, stego_key: bytes, salt: bytes, method: Method = "replacement"
) -> NDArray[np.int32]:
    """The stego frame, int32. Samples at an end of the range turn inwards; wet and barred samples are not spared.

    Raises CarrierError('capacity').
    """
    at = _positions(cover.values.shape, 8 * len(message), stego_key, salt)
    bits = np.unpackbits(np.frombuffer(message, dtype=np.uint8))
    values = cover.values.copy()
    old = values.reshape(-1)[at]
    if method == "replacement":
        values.reshape(-1)[at] = (old & ~1) | bits
        return values
    steps = np.where(_signs(bits.size, stego_key, salt), 1, -1)
    steps = np.where(old >= cover.high, -1, np.where(old <= cover.low, 1, steps))
    values.reshape(-1)[at] = old + np.where((old & 1) != bits, steps, 0)
    return values


def extract(values: NDArray[np.int32], nbytes: int, *, stego_key: bytes, salt: bytes) -> bytes:
    """The `nbytes` bytes under this key, by either method. Raises CarrierError('capacity')."""
    at = _positions(values.shape, 8 * nbytes, stego_key, salt)
    return np.packbits((values.ravel()[at] & 1).astype(np.uint8)).tobytes()


def _positions(shape: tuple[int, ...], bits: int, stego_key: bytes, salt: bytes) -> NDArray[np.int64]:
    rows, columns = shape
    free = np.flatnonzero(~reserved((rows, columns)))
    if bits > free.size:
        raise CarrierError("capacity")
    return free[permutation(free.size, stego_key=stego_key, salt=salt)[:bits]]


def _signs(n: int, stego_key: bytes, salt: bytes) -> NDArray[np.bool_]:
    key = HKDF(SHA256(), 32, salt, _INFO_SIGNS).derive(stego_key)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(-(-n // 8)))
    return np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[:n].astype(np.bool_)
