"""AES-256-GCM (FIPS 197, SP 800-38D), ChaCha20 (RFC 8439) and HKDF-SHA256 (RFC 5869) with NumPy and hashlib.

Not in constant time: this opens archives on a machine that only its owner uses.
"""

from __future__ import annotations

import hmac
from functools import cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from worker.opener.errors import Refused

Bytes = NDArray[np.uint8]
TAG_BYTES = 16
STRIP = 1 << 16  # blocks at a time
_REDUCTION = 0xE1 << 120  # x^128 = x^7 + x^2 + x + 1 in GCM's order of bits


# --- AES ---


def _double(value: int) -> int:
    return (value << 1 ^ (0x11B if value & 0x80 else 0)) & 0xFF


@cache
def _sbox() -> Bytes:
    """Inverse in GF(2^8), then the affine map (FIPS 197, 5.1.1)."""
    powers = [1]
    for _ in range(254):
        powers.append(powers[-1] ^ _double(powers[-1]))  # powers of 3, a generator
    inverse = [0] * 256
    for place, value in enumerate(powers):
        inverse[value] = powers[-place % 255]
    out = []
    for value in inverse:
        rotated = [value << turn | value >> 8 - turn for turn in range(5)]
        out.append((rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63) & 0xFF)
    return np.array(out, np.uint8)


@cache
def _doubles() -> Bytes:
    return np.array([_double(value) for value in range(256)], np.uint8)


#: byte i of the new state is byte SHIFTED[i] of the old one; columns of four stand one after another
SHIFTED = np.array([0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11])


def _round_keys(key: bytes) -> Bytes:
    """The 15 round keys of AES-256, uint8[15, 16] (FIPS 197, 5.2)."""
    sbox, words, factor = _sbox(), [list(key[at : at + 4]) for at in range(0, 32, 4)], 1
    for place in range(8, 60):
        word = words[-1]
        if place % 8 == 0:
            word = [int(sbox[byte]) for byte in (*word[1:], word[0])]
            word[0] ^= factor
            factor = _double(factor)
        elif place % 8 == 4:
            word = [int(sbox[byte]) for byte in word]
        words.append([a ^ b for a, b in zip(words[-8], word, strict=True)])
    return np.array(words, np.uint8).reshape(15, 16)


def _encrypt(blocks: Bytes, keys: Bytes) -> Bytes:
    """AES-256 of uint8[n, 16]."""
    sbox, doubles = _sbox(), _doubles()
    state = blocks ^ keys[0]
    for key in keys[1:-1]:
        columns = sbox[state][:, SHIFTED].reshape(-1, 4, 4)
        total = columns[..., 0] ^ columns[..., 1] ^ columns[..., 2] ^ columns[..., 3]
        mixed = columns ^ total[..., None] ^ doubles[columns ^ np.roll(columns, -1, axis=2)]
        state = mixed.reshape(-1, 16) ^ key
    return sbox[state][:, SHIFTED] ^ keys[-1]


def _counter_mode(data: Bytes, keys: Bytes, nonce: bytes) -> Bytes:
    """Encrypt or decrypt from counter 2 on."""
    out = np.empty_like(data)
    for at in range(0, len(data), 16 * STRIP):
        part = data[at : at + 16 * STRIP]
        count = (len(part) + 15) // 16
        blocks = np.empty((count, 16), np.uint8)
        blocks[:, :12] = np.frombuffer(nonce, np.uint8)
        numbers = (np.arange(count, dtype=np.uint64) + np.uint64(2 + at // 16)).astype(">u4")
        blocks[:, 12:] = numbers.view(np.uint8).reshape(-1, 4)
        out[at : at + 16 * STRIP] = part ^ _encrypt(blocks, keys).reshape(-1)[: len(part)]
    return out


def _hash_tables(subkey: bytes) -> list[list[int]]:
    """For each of 16 byte positions and 256 values: that byte times the hash subkey."""
    power, powers = int.from_bytes(subkey, "big"), []
    for _ in range(128):
        powers.append(power)
        power = power >> 1 ^ (_REDUCTION if power & 1 else 0)
    tables = []
    for place in range(16):
        row = [0] * 256
        for value in range(1, 256):
            low = value & -value
            row[value] = row[value ^ low] ^ powers[8 * place + 8 - low.bit_length()]
        tables.append(row)
    return tables


def _ghash(tables: list[list[int]], aad: bytes, data: bytes) -> int:
    total = 0
    lengths = (8 * len(aad)).to_bytes(8, "big") + (8 * len(data)).to_bytes(8, "big")
    for part in (aad, data, lengths):
        for at in range(0, len(part), 16):
            total ^= int.from_bytes(part[at : at + 16].ljust(16, b"\0"), "big")
            mixed = 0
            for row, byte in zip(tables, total.to_bytes(16, "big"), strict=True):
                mixed ^= row[byte]
            total = mixed
    return total


def gcm_open(key: bytes, sealed: bytes, aad: bytes, nonce: bytes = bytes(12)) -> bytes:
    """The plaintext of AES-256-GCM with a 12-byte nonce; the tag is the last 16 bytes. Raises Refused."""
    if len(key) != 32 or len(nonce) != 12 or len(sealed) < TAG_BYTES:
        raise Refused("a sealed part is cut off")
    keys, body = _round_keys(key), sealed[:-TAG_BYTES]
    zero_and_first = np.zeros((2, 16), np.uint8)
    zero_and_first[1, :12] = np.frombuffer(nonce, np.uint8)
    zero_and_first[1, 15] = 1
    subkey, mask = _encrypt(zero_and_first, keys)
    found = _ghash(_hash_tables(subkey.tobytes()), aad, body) ^ int.from_bytes(mask.tobytes(), "big")
    if not hmac.compare_digest(found.to_bytes(16, "big"), sealed[-TAG_BYTES:]):
        raise Refused("a sealed part does not open: wrong key, or altered")
    return _counter_mode(np.frombuffer(body, np.uint8), keys, nonce).tobytes()


# --- ChaCha20 ---


def chacha20(key: bytes, count: int) -> bytes:
    """`count` bytes of the key stream with counter and nonce zero."""
    blocks = (count + 63) // 64
    start = np.zeros((16, blocks), np.uint32)
    start[:4] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    start[4:12] = np.frombuffer(key, "<u4")[:, None]
    start[12] = np.arange(blocks, dtype=np.uint64).astype(np.uint32)
    state = start.copy()
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter(state, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter(state, a, b, c, d)
    return (state + start).T.astype("<u4").tobytes()[:count]


def _quarter(state: NDArray[np.uint32], a: int, b: int, c: int, d: int) -> None:
    for target, source, other, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[target] += state[source]
        mixed = state[other] ^ state[target]
        state[other] = mixed << np.uint32(turn) | mixed >> np.uint32(32 - turn)


def xor(left: bytes, right: bytes) -> bytes:
    """Bytewise exclusive or of equally long bytes."""
    return (np.frombuffer(left, np.uint8) ^ np.frombuffer(right, np.uint8)).tobytes()


# --- HKDF ---


def extract(salt: bytes, key: bytes) -> bytes:
    """HKDF-Extract."""
    return hmac.digest(salt or bytes(32), key, "sha256")


def expand(prk: bytes, info: bytes, count: int) -> bytes:
    """HKDF-Expand."""
    out, block = b"", b""
    for number in range(1, (count + 31) // 32 + 1):
        block = hmac.digest(prk, block + info + bytes([number]), "sha256")
        out += block
    return out[:count]


def hkdf(key: bytes, salt: bytes, info: bytes, count: int = 32) -> bytes:
    """Both."""
    return expand(extract(salt, key), info, count)


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return sha256(data).digest()
