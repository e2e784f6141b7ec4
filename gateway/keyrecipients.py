"""Public keys of recipients outside: read from the files that partners send, checked before they are trusted."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from gateway.errors import PolicyRefused
from gateway.keystate import Recipient

__all__ = ["RECIPIENT_KINDS", "check_recipient", "read_public"]

RECIPIENT_KINDS = ("x25519", "xwing", "rsa")
X25519_BYTES, XWING_BYTES = 32, 1216
MIN_RSA_BITS = 3072  # NIST SP 800-57 part 1: beyond 2030
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_MAX_FILE = 1 << 16


def check_recipient(recipient: Recipient) -> None:
    """Raise PolicyRefused 'bad-recipient' for a name or public key that could not be used."""
    if _NAME.fullmatch(recipient.name) is None:
        raise _bad("a recipient's name is 1 to 64 letters, digits or _.@-")
    if recipient.kind not in RECIPIENT_KINDS:
        raise _bad(f"kinds of recipients are {', '.join(RECIPIENT_KINDS)}")
    if recipient.kind == "rsa":
        key = _load(recipient.public, pem=False)
        if not isinstance(key, RSAPublicKey) or key.key_size < MIN_RSA_BITS:
            raise _bad(f"an RSA recipient needs a key of at least {MIN_RSA_BITS} bits")
    elif len(recipient.public) != (X25519_BYTES if recipient.kind == "x25519" else XWING_BYTES):
        raise _bad(f"this is no {recipient.kind} public key")


def read_public(path: Path) -> tuple[str, bytes]:
    """(kind, public key as Recipient holds it) from a file.

    RSA and X25519: PEM or DER SubjectPublicKeyInfo, or (RSA) a certificate; X25519 and X-Wing: raw bytes or their
    base64. A certificate's issuer and dates are not checked: whoever adds it vouches for it. Raises PolicyRefused.
    """
    try:
        data = path.read_bytes()[: _MAX_FILE + 1]
    except OSError:
        raise PolicyRefused("recipient-unreadable", f"{path} cannot be read") from None
    raw = _raw(data)
    if raw is not None:
        return ("x25519" if len(raw) == X25519_BYTES else "xwing"), raw
    key = _load(data, pem=data.lstrip().startswith(b"-----BEGIN"))
    if isinstance(key, X25519PublicKey):
        return "x25519", key.public_bytes_raw()
    if isinstance(key, RSAPublicKey):
        return "rsa", key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    raise _bad("the file holds no RSA, X25519 or X-Wing public key")


def _raw(data: bytes) -> bytes | None:
    """Raw key bytes, or those that base64 text stands for; None if it is neither."""
    if len(data) in (X25519_BYTES, XWING_BYTES):
        return data
    try:
        decoded = base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError:
        return None
    return decoded if len(decoded) in (X25519_BYTES, XWING_BYTES) else None


def _load(data: bytes, *, pem: bool) -> object:
    try:
        if b"BEGIN CERTIFICATE" in data:
            return x509.load_pem_x509_certificate(data).public_key()
        return load_pem_public_key(data) if pem else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        pass
    try:
        return x509.load_der_x509_certificate(data).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _bad("the file holds no public key that can be read") from None


def _bad(message: str) -> PolicyRefused:
    return PolicyRefused("bad-recipient", message)
