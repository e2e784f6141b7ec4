"""Wraps of a data key to further recipients: HPKE (X25519, X-Wing) and RSA-OAEP, in one format with those of the ring.

The first byte of a wrap is its version: 1 is a key of the ring (`stego.seal.wrap_key`), and here

    2  HPKE base mode (RFC 9180), DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM             80 bytes
    3  the same with the X-Wing KEM (draft-connolly-cfrg-xwing-kem: ML-KEM-768 and X25519)      1,168 bytes
    4  RSAES-OAEP (RFC 8017) with SHA-256 and MGF1 of SHA-256, 3072 bits or more            384 bytes or more

then u8 length of the recipient's name, the name in ASCII, and the ciphertext of the 32-byte data key. What a wrap is
bound to (HPKE `info`, OAEP label) is its own head and the object's context: it opens in no other object and under no
other name. None of the three commits to the data key by itself; the commitments in front of everything the data key
seals do.
"""

from __future__ import annotations

import os
from hashlib import sha256, shake_256
from typing import Literal, get_args

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from stego.errors import SealError
from stego.seal import KEY_BYTES, WRAP_VERSION

Kind = Literal["x25519", "xwing", "rsa"]

KINDS: tuple[Kind, ...] = get_args(Kind)
#: least size of an RSA key, bits (NIST SP 800-57: 3072 for use beyond 2030)
RSA_BITS = 3072
NAME_BYTES = 64
_VERSIONS: dict[Kind, int] = {"x25519": 2, "xwing": 3, "rsa": 4}
_OF_VERSION: dict[int, Kind] = {version: kind for kind, version in _VERSIONS.items()}
_BODY_BYTES: dict[Kind, int] = {"x25519": 80, "xwing": 1168, "rsa": RSA_BITS // 8}
_MLKEM_PUBLIC, _X25519_BYTES, _SEED_BYTES = 1184, 32, 32
_INFO = b"palimpsest/wrap-to/v1\x00"
_X25519 = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_XWING = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def generate(kind: Kind) -> tuple[bytes, bytes]:
    """A fresh (private, public) pair in the forms that `unwrap_with` and `wrap_to` take.

    x25519: 32 raw bytes each. xwing: the 32-byte seed and the 1,216-byte public key of the draft. rsa: PKCS #8 and
    SubjectPublicKeyInfo, both DER, 3072 bits.
    """
    if kind == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return private, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    private = os.urandom(_SEED_BYTES)
    return private, public_of(kind, private)


def public_of(kind: Kind, private: bytes) -> bytes:
    """The public key of a private one, both as `generate` gives them. Raises ValueError."""
    if kind == "x25519":
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    if kind == "xwing":
        mlkem, curve = _xwing_parts(private)
        return mlkem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
    public = _rsa_private(private).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_public(kind: str, public: bytes) -> None:
    """Raise ValueError unless `public` is a usable public key of `kind`."""
    wrap_to(_kind(kind), public, "check", bytes(KEY_BYTES), b"")


def wrap_to(kind: Kind, public: bytes, name: str, data_key: bytes, context_aad: bytes) -> bytes:
    """Wrap a 32-byte data key to a recipient. `context_aad`: `Context.aad()` of the object.

    public: X25519 32 raw bytes; X-Wing 1,216 bytes (ML-KEM-768 1,184, then X25519 32); RSA DER SubjectPublicKeyInfo
    of at least 3072 bits. name: 1 to 64 ASCII characters, in clear in the wrap. Raises ValueError.
    """
    label = name.encode("ascii")
    if len(data_key) != KEY_BYTES or not 1 <= len(label) <= NAME_BYTES:
        raise ValueError("a data key has 32 bytes, a recipient's name 1 to 64 ASCII characters")
    head = bytes([_VERSIONS[_kind(kind)], len(label)]) + label
    info = _bound(head, context_aad)
    if kind == "x25519":
        return head + _X25519.encrypt(data_key, X25519PublicKey.from_public_bytes(public), info)
    if kind == "xwing":
        return head + _XWING.encrypt(data_key, _xwing_public(public), info)
    return head + _rsa_public(public).encrypt(data_key, _oaep(info))


def unwrap_with(wrap: bytes, private: bytes, context_aad: bytes) -> bytes:
    """Inverse of `wrap_to` with the private key as `generate` gives it: the 32-byte data key. Raises SealError."""
    kind, name = recipient_of(wrap)
    head, body = bytes(wrap[: 2 + len(name)]), bytes(wrap[2 + len(name) :])
    try:
        data_key = _open(kind, body, private, _bound(head, context_aad))
    except (InvalidTag, UnsupportedAlgorithm, ValueError, TypeError):
        data_key = b""
    if len(data_key) != KEY_BYTES:
        raise SealError
    return data_key


def recipient_of(wrap: bytes) -> tuple[Kind, str]:
    """Kind and name of the recipient that a wrap names, in clear. Raises SealError for any other bytes."""
    kind = _OF_VERSION.get(wrap[0]) if len(wrap) > 2 else None
    size = wrap[1] if kind else 0
    name = bytes(wrap[2 : 2 + size])
    if kind is None or not 1 <= size <= NAME_BYTES or not name.isascii() or not _fits(kind, len(wrap) - 2 - size):
        raise SealError
    return kind, name.decode("ascii")


def is_ring_wrap(wrap: bytes) -> bool:
    """Whether a wrap is for a key of the ring (version 1), not for a recipient."""
    return wrap[:1] == bytes([WRAP_VERSION])


# --- inside ---


def _kind(kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known
    raise ValueError(f"kinds of recipients are {', '.join(KINDS)}")


def _fits(kind: Kind, body: int) -> bool:
    return body >= _BODY_BYTES[kind] if kind == "rsa" else body == _BODY_BYTES[kind]


def _bound(head: bytes, context_aad: bytes) -> bytes:
    return _INFO + head + sha256(context_aad).digest()


def _open(kind: Kind, body: bytes, private: bytes, info: bytes) -> bytes:
    if kind == "x25519":
        return _X25519.decrypt(body, X25519PrivateKey.from_private_bytes(private), info)
    if kind == "xwing":
        return _XWING.decrypt(body, MLKEM768X25519PrivateKey(*_xwing_parts(private)), info)
    return _rsa_private(private).decrypt(body, _oaep(info))


def _xwing_parts(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    """The draft's expandDecapsulationKey: SHAKE256(seed, 96) is the ML-KEM seed (64) and the X25519 key (32)."""
    if len(seed) != _SEED_BYTES:
        raise ValueError("an X-Wing private key is a seed of 32 bytes")
    expanded = shake_256(seed).digest(96)
    return MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])


def _xwing_public(public: bytes) -> MLKEM768X25519PublicKey:
    if len(public) != _MLKEM_PUBLIC + _X25519_BYTES:
        raise ValueError("an X-Wing public key has 1,216 bytes")
    mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC])
    return MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]))


def _rsa_public(public: bytes) -> rsa.RSAPublicKey:
    try:
        key = load_der_public_key(public)
    except UnsupportedAlgorithm as error:
        raise ValueError("not a public key of a known kind") from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < RSA_BITS:
        raise ValueError(f"an RSA key of at least {RSA_BITS} bits, as DER SubjectPublicKeyInfo")
    return key


def _rsa_private(private: bytes) -> rsa.RSAPrivateKey:
    key = load_der_private_key(private, None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("an RSA private key as DER PKCS #8")
    return key


def _oaep(label: bytes) -> OAEP:
    return OAEP(MGF1(SHA256()), SHA256(), label)
