"""Backups of a key ring: one passphrase-protected file, and the public keys as a file for others.

Backup file: JSON header line (format, version, scrypt n, r, p, salt, created), newline, then base64 of
commitment (32 bytes) and AES-256-GCM of the ring. scrypt (RFC 7914) gives 64 bytes: encryption key and commitment; the
commitment keeps one file from opening under two passphrases. The header is associated data.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.errors import PolicyRefused
from gateway.keystate import RingState, dump, parse

_FORMAT = "palimpsest-keyring-backup"
_VERSION = 1
#: scrypt cost: 2^17 with r = 8 takes 128 MiB and about half a second (OWASP's first choice)
SCRYPT_LOG2_N = 17
_MAX_LOG2_N = 18
_MIN_PASSPHRASE = 8
_MAX_FILE = 1 << 24


def check_passphrase(passphrase: str) -> None:
    """Refuse an empty or very short passphrase."""
    if len(passphrase) < _MIN_PASSPHRASE:
        raise PolicyRefused("passphrase-too-short", f"the passphrase needs at least {_MIN_PASSPHRASE} characters")


def seal_backup(state: RingState, passphrase: str, now: str, *, log2_n: int = SCRYPT_LOG2_N) -> bytes:
    """The bytes of a backup file."""
    head = {"format": _FORMAT, "version": _VERSION, "kdf": "scrypt", "log2_n": log2_n, "r": 8, "p": 1}
    header = json.dumps({**head, "salt": os.urandom(16).hex(), "created": now}, sort_keys=True).encode("ascii")
    key, commitment = _keys(json.loads(header), passphrase)
    return header + b"\n" + base64.b64encode(commitment + AESGCM(key).encrypt(bytes(12), dump(state), header)) + b"\n"


def open_backup(data: bytes, passphrase: str) -> RingState:
    """Inverse of `seal_backup`. Raises PolicyRefused 'backup-refused' for a wrong passphrase and for damage."""
    ring = _open(data, passphrase)
    if ring is None:
        raise PolicyRefused("backup-refused", "the backup does not open: wrong passphrase, or a damaged file")
    return parse(ring)


def read_backup(path: Path) -> bytes:
    """The file's bytes. Raises PolicyRefused when it cannot be read or is no backup by its size."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError:
        raise PolicyRefused("backup-unreadable", f"{path} cannot be read") from None
    if len(data) > _MAX_FILE:
        raise PolicyRefused("backup-refused", f"{path} is no key ring backup")
    return data


def public_document(state: RingState) -> bytes:
    """JSON of the public signing keys (id, created, raw base64, PEM): all that is needed to check signatures."""
    rows = []
    for key in (key for key in state.keys if key.kind == "sign"):
        public = Ed25519PublicKey.from_public_bytes(key.public)
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
        raw = base64.b64encode(key.public).decode("ascii")
        rows.append({"id": key.id, "algorithm": "Ed25519", "created": key.created, "public": raw, "pem": pem})
    return json.dumps({"format": "palimpsest-public-keys", "version": 1, "keys": rows}, indent=1).encode() + b"\n"


def _open(data: bytes, passphrase: str) -> bytes | None:
    try:
        header, body = data.split(b"\n", 1)
        facts = json.loads(header)
        if facts["format"] != _FORMAT or facts["version"] != _VERSION or facts["r"] != 8 or facts["p"] != 1:
            return None
        if not 10 <= int(facts["log2_n"]) <= _MAX_LOG2_N:  # a hostile file must not cost gigabytes
            return None
        sealed = base64.b64decode(body.strip(), validate=True)
        key, commitment = _keys(facts, passphrase)
        if not hmac.compare_digest(sealed[:32], commitment):
            return None
        return AESGCM(key).decrypt(bytes(12), sealed[32:], header)
    except (ValueError, KeyError, TypeError, InvalidTag):
        return None


def _keys(facts: dict[str, object], passphrase: str) -> tuple[bytes, bytes]:
    # A fresh salt per backup means a fresh key per backup, so the nonce may be constant.
    salt, log2_n = bytes.fromhex(str(facts["salt"])), int(str(facts["log2_n"]))
    both = Scrypt(salt=salt, length=64, n=1 << log2_n, r=8, p=1).derive(passphrase.encode("utf-8"))
    return both[:32], both[32:]
