"""What opens an object: a recipient's private key, or a backup of the key ring; and the data key inside a wrap.

docs/payload-format.md, section 6. Forms of a private key: X25519 and X-Wing 32 bytes, raw or base64; RSA PKCS #8, DER
or PEM. A backup is the file that `palimpsest keys backup` writes, with its passphrase.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.opener import mlkem
from worker.opener.curves import ed25519_public, x25519
from worker.opener.errors import Refused
from worker.opener.rsa import oaep_open
from worker.opener.symmetric import digest, expand, extract, gcm_open, hkdf

RING, X25519, XWING, RSA = 1, 2, 3, 4  # versions of a wrap
_INFO = b"palimpsest/wrap-to/v1\x00"
_XWING_LABEL = b"\\.//^\\"


@dataclass(frozen=True)
class Keys:
    """All that is at hand. secrets: keys of a ring by id; private: recipients' private keys; signers: public keys."""

    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    private: tuple[bytes, ...] = field(default=(), repr=False)
    signers: dict[str, bytes] = field(default_factory=dict)

    def unwrap(self, wraps: Sequence[bytes], context: bytes) -> list[bytes]:
        """The 32-byte keys that open, in order. context: the bytes of section CONTEXT."""
        found = []
        for wrap in wraps:
            for attempt in self._attempts(wrap, context):
                if len(attempt) == 32:
                    found.append(attempt)
        return found

    def _attempts(self, wrap: bytes, context: bytes) -> list[bytes]:
        name = wrap[2 : 2 + wrap[1]].decode("ascii", "replace") if len(wrap) > 2 else ""
        if wrap[:1] == bytes([RING]):
            return [_tried(_open_ring, wrap, self.secrets[name])] if name in self.secrets else []
        return [_tried(_open_recipient, wrap, private, context) for private in self.private]


def _tried(function: Any, *arguments: Any) -> bytes:
    try:
        return bytes(function(*arguments))
    except Refused:
        return b""


# --- reading keys ---


def read_private(data: bytes) -> bytes:
    """A recipient's private key as `unwrap` takes it, from any of its forms. Raises Refused."""
    if len(data) == 32:
        return data
    if data.lstrip().startswith(b"-----BEGIN"):
        data = b"".join(line for line in data.splitlines() if line and not line.startswith(b"-----"))
    if data[:1] == b"\x30" and len(data) > 300:
        return data
    try:
        return base64.b64decode(data.strip(), validate=True)
    except binascii.Error:
        raise Refused("no private key in a known form") from None


def read_backup(data: bytes, passphrase: str) -> Keys:
    """The keys of a ring's backup. Raises Refused."""
    try:
        header, body = data.split(b"\n", 1)
        facts = json.loads(header)
        if facts["format"] != "palimpsest-keyring-backup" or not 10 <= int(facts["log2_n"]) <= 18:
            raise Refused("no backup of a key ring")
        sealed = base64.b64decode(body.strip(), validate=True)
        salt, cost = bytes.fromhex(facts["salt"]), 1 << int(facts["log2_n"])
        both = hashlib.scrypt(passphrase.encode(), salt=salt, n=cost, r=8, p=1, maxmem=1 << 29, dklen=64)
        if not hmac.compare_digest(sealed[:32], both[32:]):
            raise Refused("the backup does not open: wrong passphrase, or a damaged file")
        document = json.loads(gcm_open(both[:32], sealed[32:], header))
        ring = document if "keys" in document else json.loads(document["ring"])
        keys = [*ring["keys"], *document.get("patients", ())]
        secrets = {each["id"]: base64.b64decode(each["secret"]) for each in keys}
        signers = {each["id"]: ed25519_public(secrets[each["id"]]) for each in keys if each.get("kind") == "sign"}
    except (ValueError, KeyError, TypeError):
        raise Refused("no backup of a key ring") from None
    return Keys(secrets, signers=signers)


def read_public(data: bytes) -> dict[str, bytes]:
    """Public keys of signed records by id, from the file of `palimpsest keys export-public`. Raises Refused."""
    try:
        rows = [each for each in json.loads(data)["keys"] if each.get("use", "sign") == "sign"]
        return {each["id"]: base64.b64decode(each["public"]) for each in rows}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused("no file of public keys") from None


# --- wraps ---


def _open_ring(wrap: bytes, key: bytes) -> bytes:
    size = 18 + wrap[1]
    header, commitment, sealed = wrap[:size], wrap[size : size + 32], wrap[size + 32 :]
    both = hkdf(key, digest(header), b"palimpsest/wrap/v1", 64)
    if not hmac.compare_digest(commitment, both[32:]):
        raise Refused("a wrapped key does not open")
    return gcm_open(both[:32], sealed, header)


def _open_recipient(wrap: bytes, private: bytes, context: bytes) -> bytes:
    size = 2 + wrap[1]
    head, body = wrap[:size], wrap[size:]
    info = _INFO + head + digest(context)
    if head[0] == RSA:
        return oaep_open(private, body, info)
    if len(private) != 32 or head[0] not in (X25519, XWING) or len(body) != (80 if head[0] == X25519 else 1168):
        raise Refused("a wrapped key does not open")
    secret, kem = _decapsulate_x25519(private, body[:32]) if head[0] == X25519 else _decapsulate_xwing(private, body)
    return _hpke_open(secret, kem, info, body[-48:])


def _decapsulate_x25519(private: bytes, enc: bytes) -> tuple[bytes, int]:
    """DHKEM(X25519, HKDF-SHA256) (RFC 9180, 4.1)."""
    shared, suite = x25519(private, enc), b"KEM\x00\x20"
    prk = _labeled_extract(suite, b"", b"eae_prk", shared)
    return _labeled_expand(suite, prk, b"shared_secret", enc + x25519(private), 32), 0x0020


def _decapsulate_xwing(seed: bytes, body: bytes) -> tuple[bytes, int]:
    """X-Wing (draft-connolly-cfrg-xwing-kem)."""
    expanded = hashlib.shake_256(seed).digest(96)
    first, second = body[: mlkem.CIPHERTEXT_BYTES], body[mlkem.CIPHERTEXT_BYTES : mlkem.CIPHERTEXT_BYTES + 32]
    shared = mlkem.PrivateKey(expanded[:64]).decapsulate(first)
    public = x25519(expanded[64:])
    mixed = shared + x25519(expanded[64:], second) + second + public + _XWING_LABEL
    return hashlib.sha3_256(mixed).digest(), 0x647A


def _hpke_open(secret: bytes, kem: int, info: bytes, sealed: bytes) -> bytes:
    """Single-shot base mode with HKDF-SHA256 and AES-256-GCM, empty AAD (RFC 9180, 5.1, 6.1)."""
    suite = b"HPKE" + kem.to_bytes(2, "big") + b"\x00\x01\x00\x02"
    hashes = (_labeled_extract(suite, b"", b"psk_id_hash", b""), _labeled_extract(suite, b"", b"info_hash", info))
    context = b"\x00" + hashes[0] + hashes[1]
    prk = _labeled_extract(suite, secret, b"secret", b"")
    key = _labeled_expand(suite, prk, b"key", context, 32)
    return gcm_open(key, sealed, b"", _labeled_expand(suite, prk, b"base_nonce", context, 12))


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return extract(salt, b"HPKE-v1" + suite + label + key)


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, count: int) -> bytes:
    return expand(prk, count.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, count)
