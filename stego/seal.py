"""Sealing: data key per object, HKDF-SHA256 subkeys, committed AES-256-GCM, whitening, key wraps.

One 256-bit data key is drawn per object and used with one `Context`; every purpose has its own HKDF info, so each
AES key seals exactly one message and a constant nonce is safe (NIST SP 800-38D 8.2.1: never twice under one key).
GCM does not commit to its key (Grubbs, Lu, Ristenpart 2017): a 32-byte HKDF commitment stands in front and is
compared first. All openers raise the one `SealError`, without cause or context.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stego.compress import pack_side, side_pieces, unpack_side
from stego.errors import RecordTooLong, SealError

KEY_BYTES = 32
COMMIT_BYTES = 32
TAG_BYTES = 16
WRAP_SALT_BYTES = 16
OVERHEAD = COMMIT_BYTES + TAG_BYTES

#: total sizes of a sealed record, bytes; the only thing its length tells is the class
LENGTH_CLASSES = (512, 768, 1024, 2048)
#: longest record that can be sealed, bytes (2 bytes of inner length)
MAX_RECORD_BYTES = LENGTH_CLASSES[-1] - OVERHEAD - 2
#: bytes that a sealed bitmap is longer than the bitmap: seal, and the digest of the exact pixels inside
BITMAP_OVERHEAD = OVERHEAD + 32
#: bound on an opened side part unless the caller gives another, bytes
SIDE_LIMIT = 1 << 31

_CHUNK = 1 << 26
_PIECE = 1 << 20
_NONCE = bytes(12)
WRAP_VERSION = 1
_CONTEXT_PREFIX = b"palimpsest/context/v1\x00"
_CONTEXT_FIXED = struct.Struct(">16sIIBBI32sB")


@dataclass(frozen=True, slots=True)
class Context:
    """What a seal is bound to: only what the object itself carries, so a damaged DICOM header still opens.

    object_id: 16 random bytes, fresh with each data key. rows, columns, bits_stored, signed, frames: as decoded.
    mode: carrier word ('segmented', 'beside', ...). untouched: SHA-256 of everything embedding never alters.
    """

    object_id: bytes
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    frames: int
    mode: str
    untouched: bytes

    def __post_init__(self) -> None:
        if len(self.object_id) != 16 or len(self.untouched) != 32:
            raise ValueError("object_id has 16 bytes, untouched 32")
        if not all(0 <= n < 2**32 for n in (self.rows, self.columns, self.frames)):
            raise ValueError("rows, columns and frames are 32-bit counts")
        if not 0 <= self.bits_stored <= 255:
            raise ValueError("bits_stored is one byte")
        if not self.mode.isascii() or not 1 <= len(self.mode) <= 32:
            raise ValueError("mode is 1 to 32 ASCII characters")

    def aad(self) -> bytes:
        """Canonical bytes: associated data, HKDF salt input, and the clear CONTEXT part of an object."""
        shape = (self.rows, self.columns, self.bits_stored, self.signed, self.frames)
        fixed = _CONTEXT_FIXED.pack(self.object_id, *shape, self.untouched, len(self.mode))
        return _CONTEXT_PREFIX + fixed + self.mode.encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Context:
        """Inverse of `aad`. Raises SealError unless `data` is exactly what `aad` writes."""
        context = cls._read(bytes(data))
        if context is None or context.aad() != bytes(data):
            raise SealError
        return context

    @classmethod
    def _read(cls, data: bytes) -> Context | None:
        at = len(_CONTEXT_PREFIX)
        try:
            object_id, rows, columns, bits, signed, frames, untouched, size = _CONTEXT_FIXED.unpack_from(data, at)
            mode = data[at + _CONTEXT_FIXED.size :].decode("ascii")
            return cls(object_id, rows, columns, bits, bool(signed), frames, mode, untouched) if size else None
        except (struct.error, ValueError):
            return None


def derive(data_key: bytes, context: Context, info: str, n: int = 32) -> bytes:
    """HKDF-SHA256(data_key, salt = SHA-256(context.aad()), info = 'palimpsest/' + info), n bytes (RFC 5869)."""
    if len(data_key) != KEY_BYTES:
        raise ValueError("data key has 32 bytes")
    return _hkdf(data_key, sha256(context.aad()).digest(), f"palimpsest/{info}".encode("ascii"), n)


def length_class(record_bytes: int) -> int:
    """Total sealed size for a record of `record_bytes`. Raises RecordTooLong."""
    for size in LENGTH_CLASSES:
        if record_bytes + 2 + OVERHEAD <= size:
            return size
    raise RecordTooLong(f"record of {record_bytes} bytes; at most {MAX_RECORD_BYTES}")


# --- the record: whitened, padded to a length class; nothing in it is constant ---


def seal_record(record: bytes, *, data_key: bytes, context: Context) -> bytes:
    """Seal `record` to one of LENGTH_CLASSES bytes that look uniform. Raises RecordTooLong."""
    room = length_class(len(record)) - OVERHEAD
    plain = (struct.pack(">H", len(record)) + record).ljust(room, b"\x00")
    return _whiten(_seal(plain, data_key, context, "record/v1"), data_key, context)


def open_record(sealed: bytes, *, data_key: bytes, context: Context) -> bytes:
    """Inverse of `seal_record`. Raises SealError."""
    if len(sealed) not in LENGTH_CLASSES or len(data_key) != KEY_BYTES:
        raise SealError
    plain = _open(_whiten(bytes(sealed), data_key, context), data_key, context, "record/v1")
    size = int.from_bytes(plain[:2], "big")
    if size > len(plain) - 2 or any(plain[2 + size :]):
        raise SealError
    return plain[2 : 2 + size]


def _whiten(data: bytes, data_key: bytes, context: Context) -> bytes:
    # An involution. The counter and nonce may be zero: the key serves one message.
    key = derive(data_key, context, "whiten/v1")
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(data)


# --- side parts: compressed, sealed, beside the image ---


def seal_side(data: bytes | bytearray | memoryview, *, data_key: bytes, context: Context, label: str) -> bytes:
    """Compress and seal `data` under its own subkey; `label` (ASCII) must be used once per object."""
    return _seal(pack_side(data), data_key, context, f"side/v1/{label}")


def open_side(
    sealed: bytes | bytearray | memoryview, *, data_key: bytes, context: Context, label: str, limit: int = SIDE_LIMIT
) -> bytes:
    """Inverse of `seal_side`; at most `limit` bytes come out. Raises SealError."""
    if len(data_key) != KEY_BYTES:
        raise SealError
    return unpack_side(_open(sealed, data_key, context, f"side/v1/{label}"), limit)


def open_side_pieces(
    sealed: bytes | bytearray | memoryview, *, data_key: bytes, context: Context, label: str, limit: int = SIDE_LIMIT
) -> Iterator[bytes]:
    """`open_side` of what is too large to hold: authenticated as a whole before the first piece. Raises SealError."""
    view, info = memoryview(sealed), f"side/v1/{label}"
    if len(data_key) != KEY_BYTES or len(view) < OVERHEAD:
        raise SealError
    if not hmac.compare_digest(bytes(view[:COMMIT_BYTES]), derive(data_key, context, f"commit/v1/{info}")):
        raise SealError
    key, body = derive(data_key, context, info), view[COMMIT_BYTES : len(view) - TAG_BYTES]
    check = _Opening(key, body, context.aad())
    while check.read(_PIECE):
        pass
    check.finish(bytes(view[len(view) - TAG_BYTES :]))
    yield from side_pieces(_Opening(key, body, context.aad()), limit)


class _Opening:
    """The plaintext of a GCM message as it is read; genuine only if `finish` says so."""

    def __init__(self, key: bytes, body: memoryview, aad: bytes) -> None:
        self._body, self._at = body, 0
        self._decryptor = Cipher(algorithms.AES(key), modes.GCM(_NONCE)).decryptor()
        self._decryptor.authenticate_additional_data(aad)

    def read(self, size: int = -1, /) -> bytes:
        """See stego.compress.Source."""
        end = len(self._body) if size < 0 else min(len(self._body), self._at + size)
        piece, self._at = self._body[self._at : end], end
        return self._decryptor.update(piece)

    def finish(self, tag: bytes) -> None:
        """Raise SealError unless all of it was read and is genuine."""
        try:
            self._decryptor.finalize_with_tag(tag)
            genuine = True
        except (InvalidTag, ValueError):
            genuine = False
        if not genuine:
            raise SealError


# --- the bitmap of a segmented carrier, for who may see the exact pixels but not the identity ---


def bitmap_key(data_key: bytes, context: Context) -> bytes:
    """The 32-byte key that seals the bitmap: who has the data key has it too, and nothing leads back from it."""
    return derive(data_key, context, "bitmap-key/v1")


def seal_bitmap(bitmap: bytes, pixel_sha256: bytes, *, key: bytes, context: Context) -> bytes:
    """Seal the bitmap and the SHA-256 of the exact pixels (32 bytes) under `bitmap_key`; BITMAP_OVERHEAD longer."""
    if len(pixel_sha256) != 32:
        raise ValueError("a digest has 32 bytes")
    return _seal(pixel_sha256 + bitmap, key, context, "bitmap/v1")


def open_bitmap(sealed: bytes, *, key: bytes, context: Context) -> tuple[bytes, bytes]:
    """Inverse of `seal_bitmap`: (bitmap, SHA-256 of the exact pixels). Raises SealError."""
    if len(key) != KEY_BYTES or len(sealed) < BITMAP_OVERHEAD:
        raise SealError
    plain = _open(sealed, key, context, "bitmap/v1")
    return plain[32:], plain[:32]


# --- wraps: a data key or a bitmap key under a key of the ring ---


def wrap_key(data_key: bytes, *, kek: bytes, kek_id: str) -> bytes:
    """Wrap a 32-byte data key: version, key id, salt, commitment, ciphertext, tag (98 bytes and the id).

    The salt is a keyed hash of the data key: each data key gets an AES key of its own, so a KEK has no limit on the
    number of wraps, and wrapping needs no randomness.
    """
    name = kek_id.encode("ascii")
    if len(data_key) != KEY_BYTES or len(kek) != KEY_BYTES or not 1 <= len(name) <= 64:
        raise ValueError("keys have 32 bytes, a key id 1 to 64 ASCII characters")
    header = bytes([WRAP_VERSION, len(name)]) + name
    header += _hkdf(kek, sha256(header).digest(), b"palimpsest/wrap-salt/v1" + data_key, WRAP_SALT_BYTES)
    key, commitment = _wrap_subkeys(kek, header)
    return header + commitment + _gcm_seal(key, data_key, header)


def unwrap_key(wrap: bytes, *, find_kek: Callable[[str], bytes]) -> bytes:
    """Inverse of `wrap_key`. `find_kek` raises LookupError for an unknown id. Raises SealError."""
    name = wrap_kek_id(wrap)
    try:
        kek = find_kek(name)
    except LookupError:
        kek = b""
    if len(kek) != KEY_BYTES:
        raise SealError
    size = 2 + len(name) + WRAP_SALT_BYTES
    header, body = bytes(wrap[:size]), bytes(wrap[size:])
    key, commitment = _wrap_subkeys(kek, header)
    if not hmac.compare_digest(body[:COMMIT_BYTES], commitment):
        raise SealError
    return _gcm_open(key, body[COMMIT_BYTES:], header)


def wrap_kek_id(wrap: bytes) -> str:
    """The key id a wrap names, in clear. Raises SealError when it is no wrap of ours."""
    size = wrap[1] if len(wrap) > 2 and wrap[0] == WRAP_VERSION else 0
    name = bytes(wrap[2 : 2 + size])
    if not 1 <= size <= 64 or len(wrap) != 2 + size + WRAP_SALT_BYTES + OVERHEAD + KEY_BYTES or not name.isascii():
        raise SealError
    return name.decode("ascii")


def _wrap_subkeys(kek: bytes, header: bytes) -> tuple[bytes, bytes]:
    both = _hkdf(kek, sha256(header).digest(), b"palimpsest/wrap/v1", KEY_BYTES + COMMIT_BYTES)
    return both[:KEY_BYTES], both[KEY_BYTES:]


# --- committed AES-256-GCM ---


def _seal(plain: bytes | bytearray, data_key: bytes, context: Context, info: str) -> bytes:
    commitment = derive(data_key, context, f"commit/v1/{info}")
    return _gcm_seal(derive(data_key, context, info), plain, context.aad(), prefix=commitment)


def _open(sealed: bytes | bytearray | memoryview, data_key: bytes, context: Context, info: str) -> bytes:
    view = memoryview(sealed)
    if len(view) < OVERHEAD:
        raise SealError
    if not hmac.compare_digest(bytes(view[:COMMIT_BYTES]), derive(data_key, context, f"commit/v1/{info}")):
        raise SealError
    return _gcm_open(derive(data_key, context, info), view[COMMIT_BYTES:], context.aad())


def _gcm_seal(key: bytes, plain: bytes | bytearray, aad: bytes, prefix: bytes = b"") -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.GCM(_NONCE)).encryptor()
    encryptor.authenticate_additional_data(aad)
    view = memoryview(plain)
    parts = [encryptor.update(view[i : i + _CHUNK]) for i in range(0, len(view), _CHUNK)]
    return b"".join((prefix, *parts, encryptor.finalize(), encryptor.tag))


def _gcm_open(key: bytes, sealed: bytes | memoryview, aad: bytes) -> bytes:
    view = memoryview(sealed)
    body, tag = view[: len(view) - TAG_BYTES], bytes(view[len(view) - TAG_BYTES :])
    decryptor = Cipher(algorithms.AES(key), modes.GCM(_NONCE)).decryptor()
    decryptor.authenticate_additional_data(aad)
    # Nothing of `parts` leaves before the tag was checked.
    parts = [decryptor.update(body[i : i + _CHUNK]) for i in range(0, len(body), _CHUNK)]
    try:
        parts.append(decryptor.finalize_with_tag(tag))
        genuine = True
    except (InvalidTag, ValueError):
        genuine = False
    if not genuine:
        raise SealError
    return b"".join(parts)


def _hkdf(key: bytes, salt: bytes, info: bytes, n: int) -> bytes:
    return HKDF(SHA256(), n, salt, info).derive(key)
