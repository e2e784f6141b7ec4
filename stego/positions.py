"""Keyed positions: a uniform permutation from a ChaCha20 key stream (Fisher-Yates with rejection, no modulo bias)."""

from __future__ import annotations

import numba
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

_SPARE_DRAWS = 64
_INFO = b"palimpsest/pos/v1"


def permutation(n: int, *, stego_key: bytes, salt: bytes) -> NDArray[np.uint32]:
    """A permutation of 0..n-1, uint32, uniform for who does not hold `stego_key`.

    Key stream: ChaCha20 under HKDF-SHA256(stego_key, salt, 'palimpsest/pos/v1'), nonce and counter 0, read as
    little-endian uint32. For i = n-1 .. 1: draw r until r < 2^32 - 2^32 mod (i+1), swap items i and r mod (i+1).
    """
    if not 0 <= n < 2**31:
        raise ValueError("0 <= n < 2^31")
    key = HKDF(SHA256(), 32, salt, _INFO).derive(stego_key)
    draws = n + _SPARE_DRAWS
    while True:
        items = np.arange(n, dtype=np.uint32)
        if _shuffle(items, _stream(key, draws)):
            return items
        draws *= 2  # a rejection has probability below 2^-11 here; the longer stream starts with the same words


def _stream(key: bytes, words: int) -> NDArray[np.uint32]:
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * words))
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32)


@numba.njit(nogil=True, cache=True)
def _shuffle(items: NDArray[np.uint32], draws: NDArray[np.uint32]) -> bool:
    """Shuffle `items` in place; False when the draws ran out."""
    at = 0
    for i in range(items.size - 1, 0, -1):
        bound = np.uint64(i + 1)
        limit = np.uint64(4294967296) - np.uint64(4294967296) % bound
        while True:
            if at == draws.size:
                return False
            draw = np.uint64(draws[at])
            at += 1
            if draw < limit:
                break
        j = np.int64(draw % bound)
        items[i], items[j] = items[j], items[i]
    return True
