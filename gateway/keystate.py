"""What a key ring holds, and its JSON: immutable values, no files.

Every key carries a canary, a known text sealed under a subkey of it. A backup counts only when the keys read back
from it open the canaries of the living ring.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.errors import NotFound, PolicyRefused, Unavailable

#: kek wraps patient keys (and data keys), sign signs records, pseudo makes pseudonyms, token signs bearer tokens,
#: stego finds and unwhitens what rides in pixels, pixel seals the bitmap where policy hides the exact pixels,
#: certify signs restore certificates
KINDS = ("kek", "sign", "pseudo", "token", "stego", "pixel", "certify")
#: kinds that a ring of an earlier release does not have yet; they are added when it is opened for use
LATER_KINDS = ("stego", "pixel", "certify")
#: kinds whose secret is an Ed25519 private key (RFC 8032)
SIGNING = ("sign", "certify")
KEY_BYTES = 32
_FORMAT = "palimpsest-keyring"
_VERSIONS = {1: ("keys", "backups"), 2: ("keys", "backups", "recipients", "seal")}
_VERSION = 2


class UnknownKey(NotFound, LookupError):
    """No key of this id in the ring: sealed by another ring, or the ring was restored from an older backup."""


class ShreddedKey(UnknownKey):
    """The key of this id was destroyed on purpose; a tombstone is in its place."""


class Recipient(NamedTuple):
    """Somebody outside to whom policy may share data keys. Public data only.

    kind: 'x25519' (32 bytes raw), 'xwing' (1216 bytes raw) or 'rsa' (DER SubjectPublicKeyInfo). recovery: an offline
    key of our own, to which pixel keys are wrapped too.
    """

    name: str
    kind: str
    public: bytes
    recovery: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """One version of one key. `secret` (32 bytes; Ed25519 private key for SIGNING kinds) never shows in a repr."""

    id: str
    kind: str
    created: str
    secret: bytes = field(repr=False)
    canary: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled: they must not travel in a message")

    @property
    def public(self) -> bytes:
        """Raw 32-byte Ed25519 public key (SIGNING kinds only)."""
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

    at: str  # when the copying began: keys made later are not in it
    ids: tuple[str, ...]
    sha256: str
    patients: int = 0
    without: tuple[str, ...] = ()  # patient keys that were taken out of it


@dataclass(frozen=True, slots=True)
class Seal:
    """How a remote master protects the ring file: `token` is `key` (32 bytes), wrapped; `master` says by whom."""

    master: str
    token: str
    key: bytes = field(repr=False)


#: (master's name, token) -> the ring file's own 32-byte key
OpenSeal = Callable[[str, str], bytes]


@dataclass(frozen=True, slots=True)
class RingState:
    """All keys in order of creation, the proven backups, the recipients, and the seal of a remote master."""

    keys: tuple[Key, ...]
    backups: tuple[Backup, ...] = ()
    recipients: tuple[Recipient, ...] = ()
    seal: Seal | None = field(default=None, repr=False)

    def current(self, kind: str, at: datetime | None = None) -> Key:
        """The newest key of a kind, or the one in use at a time (the oldest, before there was any).

        Raises UnknownKey for a kind that an old ring does not have yet.
        """
        found = self.of_kind(kind)
        if at is not None and found:
            found = tuple(key for key in found if datetime.fromisoformat(key.created) <= at) or found[-1:]
        if not found:
            raise UnknownKey("unknown-key", f"the key ring has no {kind} key yet: open it once for use")
        return found[0]

    def of_kind(self, kind: str) -> tuple[Key, ...]:
        """All keys of a kind, newest first."""
        return tuple(key for key in reversed(self.keys) if key.kind == kind)

    def find(self, key_id: str, kind: str) -> Key | None:
        """The key with this id, if it is of this kind."""
        return next((key for key in self.keys if key.id == key_id and key.kind == kind), None)

    def ids(self) -> tuple[str, ...]:
        """Ids of all keys."""
        return tuple(key.id for key in self.keys)

    def with_new(self, kind: str, now: str) -> RingState:
        """The state with one more key of `kind`; old ones stay for what they sealed."""
        number = 1 + max((int(key.id.rsplit("-", 1)[1]) for key in self.keys if key.kind == kind), default=0)
        return replace(self, keys=(*self.keys, new_key(f"{kind}-{number}", kind, now)))

    def missing_kinds(self) -> tuple[str, ...]:
        """Kinds of which there is no key: those that a ring of an older release lacks."""
        return tuple(kind for kind in KINDS if not self.of_kind(kind))

    def backed_up(self) -> bool:
        """Whether one proven backup holds every key (patient keys apart)."""
        return any(set(self.ids()) <= set(backup.ids) for backup in self.backups)


def new_key(key_id: str, kind: str, now: str) -> Key:
    """A fresh random key with its canary."""
    secret = os.urandom(KEY_BYTES)
    return Key(key_id, kind, now, secret, _canary_box(secret).encrypt(bytes(12), b"canary", key_id.encode()))


def new_state(now: str) -> RingState:
    """A first ring: one key of every kind."""
    return RingState(tuple(new_key(f"{kind}-1", kind, now) for kind in KINDS))


def dump(state: RingState) -> bytes:
    """JSON with a SHA-256 over its content, so that damage is noticed.

    Contains the secrets: in clear, or under the key of `state.seal`, which only the remote master unwraps.
    """
    content: dict[str, Any] = {
        "keys": [
            {"id": k.id, "kind": k.kind, "created": k.created, "secret": _hide(k, state.seal), "canary": _b64(k.canary)}
            for k in state.keys
        ],
        "backups": [
            {"at": b.at, "ids": list(b.ids), "sha256": b.sha256, "patients": b.patients, "without": list(b.without)}
            for b in state.backups
        ],
        "recipients": [{**r._asdict(), "public": _b64(r.public)} for r in state.recipients],
        "seal": {"master": state.seal.master, "token": state.seal.token} if state.seal else None,
    }
    head = {"format": _FORMAT, "version": _VERSION, "sha256": _digest(content)}
    return json.dumps({**head, **content}, indent=1).encode() + b"\n"


def parse(data: bytes, open_seal: OpenSeal | None = None) -> RingState:
    """Inverse of `dump`; also reads version 1. `open_seal` opens the seal of a remote master.

    Raises Unavailable 'keys-corrupt' for anything else, PolicyRefused 'key-master-mismatch' for a sealed ring without
    `open_seal`, and what `open_seal` raises.
    """
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT or document["version"] not in _VERSIONS:
            raise ValueError("not a key ring")
        content = {name: document[name] for name in _VERSIONS[document["version"]]}
        if document["sha256"] != _digest(content):
            raise ValueError("checksum")
        state = _state(content, _seal(content.get("seal"), open_seal))
        kinds = {key.kind for key in state.keys}
        complete = set(KINDS) - set(LATER_KINDS) <= kinds <= set(KINDS)
        complete = complete and all(len(key.secret) == KEY_BYTES for key in state.keys)
    except (ValueError, KeyError, TypeError, InvalidTag):
        complete = False
    if not complete:
        raise Unavailable("keys-corrupt", "the key ring file is damaged: restore it with `palimpsest keys restore`")
    return state


def _seal(found: Any, open_seal: OpenSeal | None) -> Seal | None:
    if found is None:
        return None
    master, token = str(found["master"]), str(found["token"])
    if open_seal is None:
        raise PolicyRefused(
            "key-master-mismatch",
            f"the key ring is sealed by {master}: set PALIMPSEST_KEY_MASTER and what it needs (docs/operations.md)",
        )
    return Seal(master, token, open_seal(master, token))


def _state(content: dict[str, Any], seal: Seal | None) -> RingState:
    keys = tuple(
        Key(k["id"], str(k["kind"]), str(k["created"]), _show(k["secret"], k["id"], seal), _unb64(k["canary"]))
        for k in content["keys"]
    )
    backups = tuple(
        Backup(b["at"], tuple(b["ids"]), b["sha256"], int(b.get("patients", 0)), tuple(b.get("without", ())))
        for b in content["backups"]
    )
    recipients = tuple(
        Recipient(str(r["name"]), str(r["kind"]), _unb64(r["public"]), bool(r["recovery"]))
        for r in content.get("recipients", ())
    )
    return RingState(keys, backups, recipients, seal)


def _hide(key: Key, seal: Seal | None) -> str:
    if seal is None:
        return _b64(key.secret)
    nonce = os.urandom(12)
    return _b64(nonce + AESGCM(seal.key).encrypt(nonce, key.secret, f"palimpsest/ring/v1/{key.id}".encode()))


def _show(text: str, key_id: str, seal: Seal | None) -> bytes:
    data = _unb64(text)
    if seal is None:
        return data
    return AESGCM(seal.key).decrypt(data[:12], data[12:], f"palimpsest/ring/v1/{key_id}".encode())


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canary_box(secret: bytes) -> AESGCM:
    # A subkey used for this one message only, so the nonce may be constant.
    return AESGCM(HKDF(SHA256(), 32, None, b"palimpsest/canary/v1").derive(secret))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
