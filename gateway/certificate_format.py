"""Restore certificates as bytes (docs/certificate.md): canonical JSON, Ed25519, and who vouches for the signer's key.

Read and checked with nothing but this module: no database, no key ring, no archive. What is signed is the statement
in the canonical form of RFC 8785, of which only names and text of ASCII and whole numbers below 2^53 are used, so that
`jq -cjS .statement` and `openssl pkeyutl -verify -rawin` (RFC 8032) check it, too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.errors import IntegrityError, InvalidInstance
from gateway.keystate import Key

__all__ = [
    "BadCertificate", "Certificate", "canonical", "open_certificate", "read_trusted", "sign_document", "sign_statement",
    "signed_statement", "trusted_document",
]  # fmt: skip

FORMAT: Final = "palimpsest-restore-certificate"
SUCCESSION: Final = "palimpsest-key-succession"
VERSION: Final = 1
MAX_BYTES: Final = 256 << 20
"""About 100,000 instances."""
SKEW_SECONDS: Final = 300.0
"""How far clocks of machines may differ."""
_MAX_NUMBER: Final = (1 << 53) - 1


class BadCertificate(IntegrityError):
    """Not a certificate that one may rely on; `reason` says why."""

    title = "Not a valid restore certificate"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate whose signature holds. trusted_by: id of the trusted key on which it rests."""

    statement: Mapping[str, Any]
    signer: str
    trusted_by: str

    @property
    def instances(self) -> Sequence[Mapping[str, Any]]:
        """The entry of each instance."""
        found: Sequence[Mapping[str, Any]] = self.statement["instances"]
        return found


def canonical(value: Any) -> bytes:
    """RFC 8785 of what certificates are made of. Raises ValueError for anything else (fractions, text beyond ASCII)."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _check(value: Any) -> None:
    match value:
        case None | bool():
            return
        case int() if abs(value) <= _MAX_NUMBER:
            return
        case str() if value.isascii() and "\x7f" not in value:
            return
        case list():
            for each in value:
                _check(each)
        case dict() if all(isinstance(name, str) and name.isascii() for name in value):
            for each in value.values():
                _check(each)
        case _:
            raise ValueError("certificates hold ASCII text and whole numbers only")


def sign_statement(statement: Mapping[str, Any], keys: Sequence[Key]) -> bytes:
    """The certificate as bytes, see `sign_document`."""
    return json.dumps(sign_document(statement, keys), indent=1, sort_keys=True).encode("ascii") + b"\n"


def sign_document(statement: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """The statement, signed by the last of `keys`, and each key vouched for by the one before it."""
    key = keys[-1]
    named = {**statement, "signer": key.id}
    return {
        "statement": named,
        "signature": {"algorithm": "Ed25519", "key_id": key.id, "value": _sign(key, canonical(named))},
        "keys": [_link(key, before) for key, before in zip(keys, (None, *keys), strict=False)],
    }


def _link(key: Key, before: Key | None) -> dict[str, Any]:
    link: dict[str, Any] = {
        "format": SUCCESSION, "version": VERSION, "key_id": key.id, "created": key.created, "public": _b64(key.public),
        "endorsed_by": before.id if before else None,
    }  # fmt: skip
    return {**link, "endorsement": _sign(before, canonical(link)) if before else None}


def _sign(key: Key, data: bytes) -> str:
    return _b64(Ed25519PrivateKey.from_private_bytes(key.secret).sign(data))


# --- checking ---


def read_trusted(data: bytes) -> dict[str, str]:
    """Public keys (raw, base64) -> their ids, from `palimpsest keys export-public` (JSON), or of one PEM file.

    Keys for other uses than certificates are left out. Raises InvalidInstance ``bad-public-keys``.
    """
    try:
        if data.lstrip()[:5] == b"-----":
            public = load_pem_public_key(data)
            if not isinstance(public, Ed25519PublicKey):
                raise ValueError("not Ed25519")
            return {_b64(public.public_bytes_raw()): "the key given"}
        rows = [each for each in json.loads(data)["keys"] if each.get("use") == "certify"]
        found = {str(each["public"]): str(each["id"]) for each in rows}
        for raw in found:
            Ed25519PublicKey.from_public_bytes(base64.b64decode(raw, validate=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = {}
    if not found:
        raise InvalidInstance("bad-public-keys", "the file holds no Ed25519 public key of restore certificates")
    return found


def trusted_document(keys: Sequence[Key]) -> dict[str, str]:
    """What `read_trusted` gives, of the ring's own keys."""
    return {_b64(key.public): key.id for key in keys}


def open_certificate(data: bytes, trusted: Mapping[str, str], now: float) -> Certificate:
    """A certificate that a trusted key, or one that such a key vouches for, has signed.

    trusted: as `read_trusted` gives them. now: seconds since the epoch. Raises BadCertificate: ``certificate-damaged``,
    ``certificate-version``, ``certificate-untrusted``, ``certificate-forged``, ``certificate-times``.
    """
    document = _parsed(data)
    try:
        statement = document["statement"]
        if (statement["format"], statement["version"]) != (FORMAT, VERSION):
            raise BadCertificate("certificate-version", f"this release reads {FORMAT} {VERSION} only")
        signer, by = signed_statement(document, trusted)
        _check_shape(statement)
        _check_times(statement, now)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise _damaged() from None
    return Certificate(statement, signer, by)


def signed_statement(document: Mapping[str, Any], trusted: Mapping[str, str]) -> tuple[str, str]:
    """(id of the signer, id of the trusted key on which it rests) of a document of `sign_document`, if its signature
    holds. Raises BadCertificate ``certificate-damaged``, ``certificate-untrusted``, ``certificate-forged``.
    """
    try:
        statement, signature, links = document["statement"], document["signature"], document["keys"]
        signer = str(statement["signer"])
        if signature["algorithm"] != "Ed25519" or signature["key_id"] != signer or links[-1]["key_id"] != signer:
            raise ValueError("signer")
        public, by = _trusted_signer(links, trusted)
        if not _signed(public, signature["value"], canonical(statement)):
            raise BadCertificate("certificate-forged", "the statement is not what was signed")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise _damaged() from None
    return signer, by


def _parsed(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too large")
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise _damaged() from None


def _damaged() -> BadCertificate:
    return BadCertificate("certificate-damaged", "this is no restore certificate, or a part of one")


def _trusted_signer(links: Sequence[Mapping[str, Any]], trusted: Mapping[str, str]) -> tuple[str, str]:
    """(public key of the last link, id of the trusted one it hangs on): the latest trusted link, and each one after it
    endorsed by the one before.
    """
    starts = [at for at, link in enumerate(links) if link["public"] in trusted]
    if not starts:
        raise BadCertificate("certificate-untrusted", "signed by a key that is neither trusted nor vouched for")
    for before, link in zip(links[starts[-1] :], links[starts[-1] + 1 :], strict=False):
        body = {name: value for name, value in link.items() if name != "endorsement"}
        if body["format"] != SUCCESSION or body["endorsed_by"] != before["key_id"]:
            raise ValueError("succession")
        if not _signed(before["public"], link["endorsement"], canonical(body)):
            raise BadCertificate("certificate-untrusted", "a key is not vouched for by the one before it")
    return str(links[-1]["public"]), trusted[links[starts[-1]]["public"]]


def _signed(public: str, signature: str, data: bytes) -> bool:
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
    try:
        key.verify(base64.b64decode(signature, validate=True), data)
    except InvalidSignature:
        return False
    return True


def _check_shape(statement: Mapping[str, Any]) -> None:
    instances = statement["instances"]
    if not isinstance(instances, list) or statement["count"] != len(instances) or not instances:
        raise ValueError("count")
    for each in instances:
        archived, proven = each["archived"], each["proven"]
        digests = [archived["sha256"]]
        if _whole(each):
            digests += [each["received"]["sha256"], proven["restored_sha256"]]
        if not all(isinstance(found, str) and len(found) == 64 for found in digests):
            raise ValueError("digest")


def _whole(entry: Mapping[str, Any]) -> bool:
    return entry["shredded_at"] is None


def _check_times(statement: Mapping[str, Any], now: float) -> None:
    """Nothing was proven before it came, nor certified before it was proven, nor in the future; but for the skew."""
    issued = _seconds(statement["issued_at"])
    if issued > now + SKEW_SECONDS:
        raise BadCertificate("certificate-times", "it was issued in the future, by this machine's clock")
    for each in statement["instances"]:
        came = [each["received"]["at"]] if _whole(each) else []
        after = [each["rechecked"]["at"]] if each["rechecked"] else []
        steps = [*came, each["proven"]["at"], each["archived"]["at"], *after, statement["issued_at"]]
        times = [_seconds(step) for step in steps]
        if any(later + SKEW_SECONDS < earlier for earlier, later in zip(times, times[1:], strict=False)):
            raise BadCertificate("certificate-times", "its times contradict each other")


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment.timestamp()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
