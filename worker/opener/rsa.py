"""RSAES-OAEP (RFC 8017) with SHA-256, and the few structures of DER that a PKCS #8 private key is made of."""

from __future__ import annotations

from hashlib import sha256

from worker.opener.errors import Refused
from worker.opener.symmetric import xor


def private_key(der: bytes) -> tuple[int, int]:
    """(modulus, private exponent) of a PKCS #8 private key. Raises Refused."""
    try:
        algorithm_and_key = _children(_children(der)[0])
        inner = _children(_children(algorithm_and_key[2])[0])
    except IndexError:
        raise Refused("not an RSA private key (PKCS #8, DER)") from None
    numbers = [int.from_bytes(each, "big") for each in inner]
    if len(numbers) < 4 or numbers[1].bit_length() < 1024:
        raise Refused("not an RSA private key (PKCS #8, DER)")
    return numbers[1], numbers[3]


def _children(data: bytes) -> list[bytes]:
    """Contents of the DER values that stand one after another in `data`."""
    out, at = [], 0
    while at + 2 <= len(data):
        length, at = data[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + length > len(data):
            raise Refused("a key is cut off")
        out.append(data[at : at + length])
        at += length
    return out


def _mask(seed: bytes, count: int) -> bytes:
    blocks = (sha256(seed + number.to_bytes(4, "big")).digest() for number in range((count + 31) // 32))
    return b"".join(blocks)[:count]


def oaep_open(der: bytes, ciphertext: bytes, label: bytes) -> bytes:
    """The message. Raises Refused."""
    modulus, exponent = private_key(der)
    size = (modulus.bit_length() + 7) // 8
    number = int.from_bytes(ciphertext, "big")
    if len(ciphertext) != size or number >= modulus:
        raise Refused("a wrapped key does not open")
    plain = pow(number, exponent, modulus).to_bytes(size, "big")
    seed = xor(plain[1:33], _mask(plain[33:], 32))
    block = xor(plain[33:], _mask(seed, size - 33))
    rest = block[32:].lstrip(b"\0")
    if plain[0] or block[:32] != sha256(label).digest() or rest[:1] != b"\1":
        raise Refused("a wrapped key does not open")
    return rest[1:]
