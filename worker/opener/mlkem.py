"""ML-KEM-768 from its seed (FIPS 203): key generation and decapsulation, with NumPy and hashlib."""

from __future__ import annotations

import hmac
from hashlib import sha3_256, sha3_512, shake_128, shake_256

import numpy as np
from numpy.typing import NDArray

Poly = NDArray[np.int64]  # 256 coefficients modulo Q
Q, N, K, ETA, DU, DV = 3329, 256, 3, 2, 10, 4
CIPHERTEXT_BYTES = 32 * (DU * K + DV)


def _reversed7(number: int) -> int:
    return int(f"{number:07b}"[::-1], 2)


ZETAS = [pow(17, _reversed7(place), Q) for place in range(128)]
GAMMAS = np.array([pow(17, 2 * _reversed7(place) + 1, Q) for place in range(128)], np.int64)


def _ntt(poly: Poly) -> Poly:
    out, place, length = poly.copy(), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            low, high = out[start : start + length].copy(), out[start + length : start + 2 * length]
            turned = ZETAS[place] * high % Q
            out[start : start + length], out[start + length : start + 2 * length] = low + turned, low - turned
            place += 1
        out %= Q
        length //= 2
    return out


def _inverse_ntt(poly: Poly) -> Poly:
    out, place, length = poly.copy(), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            low, high = out[start : start + length].copy(), out[start + length : start + 2 * length].copy()
            out[start : start + length] = (low + high) % Q
            out[start + length : start + 2 * length] = ZETAS[place] * (high - low) % Q
            place -= 1
        length *= 2
    return out * 3303 % Q


def _product(a: Poly, b: Poly) -> Poly:
    """In the transformed domain."""
    out = np.empty(N, np.int64)
    out[0::2] = (a[0::2] * b[0::2] + a[1::2] * b[1::2] % Q * GAMMAS) % Q
    out[1::2] = (a[0::2] * b[1::2] + a[1::2] * b[0::2]) % Q
    return out


def _uniform(seed: bytes, row: int, column: int) -> Poly:
    """SampleNTT of the matrix entry [row][column]."""
    stream = np.frombuffer(shake_128(seed + bytes([column, row])).digest(3 * 1024), np.uint8).astype(np.int64)
    first, second, third = stream[0::3], stream[1::3], stream[2::3]
    both = np.stack((first + 256 * (second % 16), second // 16 + 16 * third), axis=1).ravel()
    return both[both < Q][:N]


def _noise(seed: bytes, number: int) -> Poly:
    """SamplePolyCBD with eta = 2."""
    stream = np.frombuffer(shake_256(seed + bytes([number])).digest(64 * ETA), np.uint8)
    bits = np.unpackbits(stream, bitorder="little").reshape(N, 2, ETA).astype(np.int64).sum(axis=2)
    return (bits[:, 0] - bits[:, 1]) % Q


def _pack(poly: Poly, width: int) -> bytes:
    bits = (poly[:, None] >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


def _unpack(data: bytes, width: int) -> Poly:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(N, width).astype(np.int64)
    return (bits << np.arange(width)).sum(axis=1)


def _compress(poly: Poly, width: int) -> Poly:
    return ((poly << width) + Q // 2) // Q % (1 << width)


def _decompress(poly: Poly, width: int) -> Poly:
    return (poly * Q + (1 << width >> 1)) >> width


class PrivateKey:
    """An ML-KEM-768 key made from its 64-byte seed d || z."""

    def __init__(self, seed: bytes) -> None:
        expanded = sha3_512(seed[:32] + bytes([K])).digest()
        self._rho, sigma, self._z = expanded[:32], expanded[32:], seed[32:]
        self._matrix = [[_uniform(self._rho, row, column) for column in range(K)] for row in range(K)]
        self._secret = [_ntt(_noise(sigma, number)) for number in range(K)]
        errors = [_ntt(_noise(sigma, K + number)) for number in range(K)]
        self._t = [
            (sum(_product(a, s) for a, s in zip(line, self._secret, strict=True)) + error) % Q
            for line, error in zip(self._matrix, errors, strict=True)
        ]
        self.public = b"".join(_pack(poly, 12) for poly in self._t) + self._rho

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 bytes; for a wrong ciphertext another one (implicit rejection)."""
        u = [_decompress(_unpack(ciphertext[320 * at : 320 * at + 320], DU), DU) for at in range(K)]
        v = _decompress(_unpack(ciphertext[320 * K :], DV), DV)
        product = sum(_product(s, _ntt(poly)) for s, poly in zip(self._secret, u, strict=True)) % Q
        message = _pack(_compress((v - _inverse_ntt(product)) % Q, 1), 1)
        expanded = sha3_512(message + sha3_256(self.public).digest()).digest()
        if hmac.compare_digest(self._encrypt(message, expanded[32:]), ciphertext):
            return expanded[:32]
        return shake_256(self._z + ciphertext).digest(32)

    def _encrypt(self, message: bytes, coins: bytes) -> bytes:
        y = [_ntt(_noise(coins, number)) for number in range(K)]
        parts = []
        for column in range(K):
            total = sum(_product(self._matrix[row][column], y[row]) for row in range(K)) % Q
            parts.append(_pack(_compress((_inverse_ntt(total) + _noise(coins, K + column)) % Q, DU), DU))
        total = sum(_product(t, each) for t, each in zip(self._t, y, strict=True)) % Q
        masked = _inverse_ntt(total) + _noise(coins, 2 * K) + _decompress(_unpack(message, 1), 1)
        return b"".join(parts) + _pack(_compress(masked % Q, DV), DV)
