"""The capsule: what rides in the pixels of a viewable stego object: object id, one wrap, the sealed record, padding.

    inner   = object id (16) || u16 length || wrap || u16 length || sealed record || zeros       to a class less 32
    tag     = HMAC-SHA256(k_tag, inner)                                                           32 bytes
    capsule = tag || inner xor ChaCha20(k_stream)
    k_tag    = HKDF-SHA256(stego key, salt, "palimpsest/capsule/tag/v1")
    k_stream = HKDF-SHA256(stego key, salt, "palimpsest/capsule/whiten/v1" || tag)

The synthetic-IV construction (Rogaway, Shrimpton 2006): the stream key is a keyed hash of what it whitens, so the same
image may carry any number of capsules under one stego key, and no randomness is needed: a retry gives the same bytes.
The tag authenticates, and commits to the stego key and the salt, as HMAC-SHA256 resists collisions. No byte is
constant, there is no magic number, and the length tells a class. Wrap and record are sealed already: the stego key
finds them, it does not open them.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stego.errors import RecordTooLong, SealError
from stego.seal import KEY_BYTES, LENGTH_CLASSES

#: total sizes of a capsule, bytes: one for each length class of the sealed record, with room for one wrap
CAPSULE_CLASSES = (768, 1024, 1280, 2304)
TAG_BYTES = 32
ID_BYTES = 16
_LENGTH = struct.Struct(">H")
_FIXED = TAG_BYTES + ID_BYTES + 2 * _LENGTH.size
_TAG_INFO, _STREAM_INFO = b"palimpsest/capsule/tag/v1", b"palimpsest/capsule/whiten/v1"


@dataclass(frozen=True, slots=True)
class Capsule:
    """object_id: 16 bytes. wrap: the data key, wrapped. sealed_record: as `stego.seal.seal_record` gives it."""

    object_id: bytes
    wrap: bytes
    sealed_record: bytes


def capsule_class(sealed_record_bytes: int, wrap_bytes: int) -> int:
    """Total size of a capsule, bytes. Raises RecordTooLong when no class holds it."""
    for size in CAPSULE_CLASSES:
        if _FIXED + sealed_record_bytes + wrap_bytes <= size:
            return size
    raise RecordTooLong(f"a capsule of {sealed_record_bytes} and {wrap_bytes} bytes; at most {CAPSULE_CLASSES[-1]}")


def seal_capsule(sealed_record: bytes, *, object_id: bytes, wrap: bytes, stego_key: bytes, salt: bytes) -> bytes:
    """One of CAPSULE_CLASSES bytes that look uniform; the same arguments give the same bytes.

    stego_key: 32 bytes. salt: what both sides know of the image (`stego.lattice.fingerprint`).
    Raises RecordTooLong; ValueError for a key, an id or a record of wrong length.
    """
    if len(stego_key) != KEY_BYTES or len(object_id) != ID_BYTES or len(sealed_record) not in LENGTH_CLASSES:
        raise ValueError("a stego key has 32 bytes, an object id 16, a sealed record the length of a class")
    size = capsule_class(len(sealed_record), len(wrap))
    inner = b"".join((object_id, _LENGTH.pack(len(wrap)), wrap, _LENGTH.pack(len(sealed_record)), sealed_record))
    inner = inner.ljust(size - TAG_BYTES, b"\x00")
    tag = hmac.digest(_derive(stego_key, salt, _TAG_INFO), inner, "sha256")
    return tag + _whiten(inner, stego_key, salt, tag)


def open_capsule(data: bytes, *, stego_key: bytes, salt: bytes) -> Capsule:
    """Inverse of `seal_capsule`. Raises SealError, whatever is wrong; the tag is compared in constant time."""
    if len(data) not in CAPSULE_CLASSES or len(stego_key) != KEY_BYTES:
        raise SealError
    tag = bytes(data[:TAG_BYTES])
    inner = _whiten(bytes(data[TAG_BYTES:]), stego_key, salt, tag)
    # Nothing of `inner` is read before the tag was checked.
    if not hmac.compare_digest(hmac.digest(_derive(stego_key, salt, _TAG_INFO), inner, "sha256"), tag):
        raise SealError
    return _read(inner)


def _read(inner: bytes) -> Capsule:
    wrap, at = _take(inner, ID_BYTES)
    sealed_record, at = _take(inner, at)
    if len(sealed_record) not in LENGTH_CLASSES or any(inner[at:]):
        raise SealError
    return Capsule(inner[:ID_BYTES], wrap, sealed_record)


def _take(inner: bytes, at: int) -> tuple[bytes, int]:
    start = at + _LENGTH.size
    end = start + int.from_bytes(inner[at:start], "big")
    if not start <= end <= len(inner):
        raise SealError
    return inner[start:end], end


def _whiten(data: bytes, stego_key: bytes, salt: bytes, tag: bytes) -> bytes:
    # An involution. Counter and nonce may be zero: the key is a function of the data.
    key = _derive(stego_key, salt, _STREAM_INFO + tag)
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(data)


def _derive(stego_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(stego_key)
