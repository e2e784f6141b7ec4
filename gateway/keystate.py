"""What a key ring holds, and its JSON: immutable values, no files.

Every key carries a canary, a known text sealed under a subkey of it. A backup counts only when the keys read back
from it open the canaries of the living ring.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.errors import Unavailable

#: kek wraps data keys, sign signs records, pseudo makes pseudonyms, token signs bearer tokens
KINDS = ("kek", "sign", "pseudo", "token")
KEY_BYTES = 32
_FORMAT = "palimpsest-keyring"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Key:
    """One version of one key. `secret` (32 bytes; Ed25519 private key for kind 'sign') never shows in a repr."""

    id: str
    kind: str
    created: str
    secret: bytes = field(repr=False)
    canary: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled: they must not travel in a message")

    @property
    def public(self) -> bytes:
        """Raw 32-byte Ed25519 public key (kind 'sign' only)."""
        private = Ed25519PrivateKey.from_private_bytes(self.secret)
        return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def opens(self, canary: bytes) -> bool:
        """Whether this key opens a canary, that is, is the key that sealed it."""
        try:
            return hmac.compare_digest(_canary_box(self.secret).decrypt(bytes(12), canary, self.id.encode()), b"canary")
        except InvalidTag:
            return False


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was reopened and whose keys opened every canary: when, which ids, SHA-256 of the file."""

    at: str
    ids: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class RingState:
    """All keys in order of creation, and the proven backups."""

    keys: tuple[Key, ...]
    backups: tuple[Backup, ...] = ()

    def current(self, kind: str) -> Key:
        """The newest key of a kind."""
        return [key for key in self.keys if key.kind == kind][-1]

    def find(self, key_id: str, kind: str) -> Key | None:
        """The key with this id, if it is of this kind."""
        return next((key for key in self.keys if key.id == key_id and key.kind == kind), None)

    def ids(self) -> tuple[str, ...]:
        """Ids of all keys."""
        return tuple(key.id for key in self.keys)

    def with_new(self, kind: str, now: str) -> RingState:
        """The state with one more key of `kind`; old ones stay for what they sealed."""
        number = 1 + max((int(key.id.rsplit("-", 1)[1]) for key in self.keys if key.kind == kind), default=0)
        return RingState((*self.keys, new_key(f"{kind}-{number}", kind, now)), self.backups)

    def backed_up(self) -> bool:
        """Whether one proven backup holds every key."""
        return any(set(self.ids()) <= set(backup.ids) for backup in self.backups)


def new_key(key_id: str, kind: str, now: str) -> Key:
    """A fresh random key with its canary."""
    secret = os.urandom(KEY_BYTES)
    return Key(key_id, kind, now, secret, _canary_box(secret).encrypt(bytes(12), b"canary", key_id.encode()))


def new_state(now: str) -> RingState:
    """A first ring: one key of every kind."""
    return RingState(tuple(new_key(f"{kind}-1", kind, now) for kind in KINDS))


def dump(state: RingState) -> bytes:
    """JSON with a SHA-256 over its content, so that damage is noticed. Contains the secrets."""
    content = {
        "keys": [
            {"id": k.id, "kind": k.kind, "created": k.created, "secret": _b64(k.secret), "canary": _b64(k.canary)}
            for k in state.keys
        ],
        "backups": [{"at": b.at, "ids": list(b.ids), "sha256": b.sha256} for b in state.backups],
    }
    head = {"format": _FORMAT, "version": _VERSION, "sha256": _digest(content)}
    return json.dumps({**head, **content}, indent=1).encode() + b"\n"


def parse(data: bytes) -> RingState:
    """Inverse of `dump`. Raises Unavailable 'keys-corrupt' for anything else."""
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ValueError("not a version 1 key ring")
        content = {name: document[name] for name in ("keys", "backups")}
        if document["sha256"] != _digest(content):
            raise ValueError("checksum")
        state = _state(content)
        complete = {key.kind for key in state.keys} == set(KINDS)
        complete = complete and all(len(key.secret) == KEY_BYTES for key in state.keys)
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise Unavailable("keys-corrupt", "the key ring file is damaged: restore it with `palimpsest keys restore`")
    return state


def _state(content: dict[str, Any]) -> RingState:
    keys = tuple(
        Key(str(k["id"]), str(k["kind"]), str(k["created"]), _unb64(k["secret"]), _unb64(k["canary"]))
        for k in content["keys"]
    )
    return RingState(keys, tuple(Backup(b["at"], tuple(b["ids"]), b["sha256"]) for b in content["backups"]))


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canary_box(secret: bytes) -> AESGCM:
    # A subkey used for this one message only, so the nonce may be constant.
    return AESGCM(HKDF(SHA256(), 32, None, b"palimpsest/canary/v1").derive(secret))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
