"""Backups of a key ring: one passphrase-protected file, and the public keys as a file for others.

Backup file: JSON header line (format, version, scrypt n, r, p, salt, created), newline, then base64 of
commitment (32 bytes) and AES-256-GCM of the ring. scrypt (RFC 7914) gives 64 bytes: encryption key and commitment; the
commitment keeps one file from opening under two passphrases. The header is associated data. Inside: the ring with its
secrets (no master is needed to use them), every patient key, recipients and tombstones.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway import keyfile
from gateway.blobs import sync_folder
from gateway.errors import PalimpsestError, PolicyRefused, Unavailable
from gateway.keystate import SIGNING, Backup, Key, RingState, dump, parse
from gateway.patientkeys import Tombstone

_FORMAT = "palimpsest-keyring-backup"
_VERSIONS = (1, 2)  # 1: the ring alone
_VERSION = 2
#: scrypt cost: 2^17 with r = 8 takes 128 MiB and about half a second (OWASP's first choice)
SCRYPT_LOG2_N = 17
_MAX_LOG2_N = 18
_MIN_PASSPHRASE = 8
_MAX_FILE = 1 << 30  # about three million patients


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds. patients: kind 'patient', unwrapped."""

    state: RingState
    patients: tuple[Key, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()


def check_passphrase(passphrase: str) -> None:
    """Refuse an empty or very short passphrase."""
    if len(passphrase) < _MIN_PASSPHRASE:
        raise PolicyRefused("passphrase-too-short", f"the passphrase needs at least {_MIN_PASSPHRASE} characters")


def seal_backup(state: RingState, passphrase: str, now: str, *, log2_n: int = SCRYPT_LOG2_N) -> bytes:
    """The bytes of a backup file of a ring without patients."""
    return seal_contents(Contents(state), passphrase, now, log2_n=log2_n)


def seal_contents(contents: Contents, passphrase: str, now: str, *, log2_n: int = SCRYPT_LOG2_N) -> bytes:
    """The bytes of a backup file. now: when the copying of the keys began."""
    head = {"format": _FORMAT, "version": _VERSION, "kdf": "scrypt", "log2_n": log2_n, "r": 8, "p": 1}
    header = json.dumps({**head, "salt": os.urandom(16).hex(), "created": now}, sort_keys=True).encode("ascii")
    key, commitment = _keys(json.loads(header), passphrase)
    sealed = commitment + AESGCM(key).encrypt(bytes(12), _pack(contents), header)
    return header + b"\n" + base64.b64encode(sealed) + b"\n"


def open_backup(data: bytes, passphrase: str) -> Contents:
    """Inverse of `seal_backup`. Raises PolicyRefused 'backup-refused' for a wrong passphrase and for damage."""
    opened = _open(data, passphrase)
    if opened is None:
        raise PolicyRefused("backup-refused", "the backup does not open: wrong passphrase, or a damaged file")
    version, plain = opened
    return Contents(parse(plain)) if version == 1 else _unpack(plain)


def backup_time(data: bytes) -> str:
    """When the copying of a backup's keys began, as its header says. Raises PolicyRefused 'backup-refused'."""
    try:
        return datetime.fromisoformat(str(json.loads(data.split(b"\n", 1)[0])["created"])).isoformat()
    except (ValueError, KeyError, TypeError):
        raise PolicyRefused("backup-refused", "this is no key ring backup") from None


def without_keys(data: bytes, passphrase: str, ids: Collection[str]) -> bytes:
    """The same backup without some patient keys, under the same passphrase and a new salt. Raises as `open_backup`."""
    contents = open_backup(data, passphrase)
    facts = json.loads(data.split(b"\n", 1)[0])
    kept = replace(contents, patients=tuple(key for key in contents.patients if key.id not in ids))
    return seal_contents(kept, passphrase, str(facts["created"]), log2_n=int(facts["log2_n"]))


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


def write(path: Path, data: bytes) -> None:
    """A new backup file. Raises PolicyRefused 'backup-exists', Unavailable 'backup-unwritable'."""
    try:
        keyfile.write_new(path, data)
    except FileExistsError:
        raise PolicyRefused("backup-exists", f"{path} exists already; backups are never overwritten") from None
    except OSError:
        raise Unavailable("backup-unwritable", f"{path} cannot be written") from None


def prove(data: bytes, passphrase: str, living: Contents, at: str, *, opened: Contents | None = None) -> Backup:
    """Open `data` again and open the living keys' canaries with its keys. Raises Unavailable 'backup-unproven'.

    living: the keys as they were copied; at: when that began.
    """
    found = opened or open_backup(data, passphrase)
    kept = {key.id: key for key in (*found.state.keys, *found.patients)}
    for key in (*living.state.keys, *living.patients):
        if key.id not in kept or not kept[key.id].opens(key.canary):
            raise Unavailable("backup-unproven", "the backup was written but its keys do not open the canaries")
    return Backup(at, living.state.ids(), sha256(data).hexdigest(), len(living.patients))


def prove_file(path: Path, passphrase: str, living: Contents, at: str) -> Backup:
    """`prove` from the medium; what does not prove is removed, so that nobody trusts it."""
    try:
        return prove(read_backup(path), passphrase, living, at)
    except PalimpsestError:
        path.unlink(missing_ok=True)
        raise


def purge_file(path: Path, passphrase: str, ids: Collection[str]) -> tuple[str, str]:
    """Take patient keys out of a backup file, in its place; (old, new) SHA-256 in hex.

    The new file is read back and opened before the old one is overwritten and its name given to the new one. Raises
    PolicyRefused (unreadable, wrong passphrase), Unavailable 'backup-unwritable'.
    """
    data = read_backup(path)
    purged = without_keys(data, passphrase, ids)
    beside = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    write(beside, purged)
    try:
        left = open_backup(read_backup(beside), passphrase)
        if {key.id for key in left.patients} & set(ids):
            raise Unavailable("backup-unproven", "a key is still in the backup that it was taken out of")
        keyfile.erase(path)
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError:
        raise Unavailable("backup-unwritable", f"{path} cannot be replaced; the new one is {beside.name}") from None
    return sha256(data).hexdigest(), sha256(purged).hexdigest()


def public_document(state: RingState) -> bytes:
    """JSON of the public signing keys (id, use, created, raw base64, PEM): all that is needed to check signatures.

    use: 'sign' for the records in archived objects and tombstones, 'certify' for restore certificates.
    """
    rows = []
    for key in (key for key in state.keys if key.kind in SIGNING):
        public = Ed25519PublicKey.from_public_bytes(key.public)
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
        raw = base64.b64encode(key.public).decode("ascii")
        named = {"id": key.id, "use": key.kind, "algorithm": "Ed25519", "created": key.created}
        rows.append({**named, "public": raw, "pem": pem})
    return json.dumps({"format": "palimpsest-public-keys", "version": 1, "keys": rows}, indent=1).encode() + b"\n"


def certify_pem(state: RingState) -> bytes:
    """The public key in use for restore certificates, as PEM. Raises UnknownKey."""
    public = Ed25519PublicKey.from_public_bytes(state.current("certify").public)
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _pack(contents: Contents) -> bytes:
    ring = dump(replace(contents.state, seal=None)).decode("ascii")
    patients = [
        {"id": k.id, "created": k.created, "secret": _b64(k.secret), "canary": _b64(k.canary)}
        for k in contents.patients
    ]
    tombstones = [{**stone._asdict(), "data": _b64(stone.data)} for stone in contents.tombstones]
    return json.dumps({"ring": ring, "patients": patients, "tombstones": tombstones}).encode("ascii")


def _unpack(plain: bytes) -> Contents:
    document: dict[str, Any] = json.loads(plain)
    patients = (
        Key(str(k["id"]), "patient", str(k["created"]), base64.b64decode(k["secret"]), base64.b64decode(k["canary"]))
        for k in document["patients"]
    )
    tombstones = (
        Tombstone(str(t["id"]), str(t["created"]), str(t["destroyed"]), base64.b64decode(t["data"]))
        for t in document["tombstones"]
    )
    return Contents(parse(document["ring"].encode("ascii")), tuple(patients), tuple(tombstones))


def _open(data: bytes, passphrase: str) -> tuple[int, bytes] | None:
    try:
        header, body = data.split(b"\n", 1)
        facts = json.loads(header)
        if facts["format"] != _FORMAT or facts["version"] not in _VERSIONS or facts["r"] != 8 or facts["p"] != 1:
            return None
        if not 10 <= int(facts["log2_n"]) <= _MAX_LOG2_N:  # a hostile file must not cost gigabytes
            return None
        sealed = base64.b64decode(body.strip(), validate=True)
        key, commitment = _keys(facts, passphrase)
        if not hmac.compare_digest(sealed[:32], commitment):
            return None
        return int(facts["version"]), AESGCM(key).decrypt(bytes(12), sealed[32:], header)
    except (ValueError, KeyError, TypeError, InvalidTag):
        return None


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _keys(facts: dict[str, object], passphrase: str) -> tuple[bytes, bytes]:
    # A fresh salt per backup means a fresh key per backup, so the nonce may be constant.
    salt, log2_n = bytes.fromhex(str(facts["salt"])), int(str(facts["log2_n"]))
    both = Scrypt(salt=salt, length=64, n=1 << log2_n, r=8, p=1).derive(passphrase.encode("utf-8"))
    return both[:32], both[32:]
