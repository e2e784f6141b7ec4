"""The key of one image in one pixel carrier, from the key ring's stego key and what both sides know of the image."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stego.seal import KEY_BYTES

_INFO = "palimpsest/pixel/v1/"


def image_key(ring_key: bytes, salt: bytes, mode: str) -> bytes:
    """HKDF-SHA256(ring_key, salt, 'palimpsest/pixel/v1/' + mode), 32 bytes (RFC 5869).

    salt: `stego.lattice.fingerprint` of the frame. mode: the carrier's word (ASCII). Raises ValueError for a key that
    is not 32 bytes long.
    """
    if len(ring_key) != KEY_BYTES:
        raise ValueError("a stego key has 32 bytes")
    return HKDF(SHA256(), KEY_BYTES, salt, (_INFO + mode).encode("ascii")).derive(ring_key)
