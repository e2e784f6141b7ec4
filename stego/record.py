"""The record that rides in the image: who, what, whence, and a signature over it.

Packed form (before sealing): version u8 = 1, Ed25519 signature 64 bytes (RFC 8032) over
b"palimpsest/record/v1\\0" + JSON, then the JSON (sorted keys, no spaces, UTF-8) as raw deflate with the preset
dictionary `DICTIONARY`. Signing comes before sealing, so the signature tells nothing to one without the key.
Everything is bounded, so a packed record always fits the largest length class; what was cut is named in `cut`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from stego.dictionary import DICTIONARY
from stego.errors import SealError

CUT_MARK = "\u2026"
_VERSION = 1
_SIGNATURE_BYTES = 64
_SIGNED_PREFIX = b"palimpsest/record/v1\x00"
_JSON_LIMIT = 4096

#: longest value of each text field as UTF-8 bytes of JSON; their sum keeps the worst record inside 2048 bytes sealed
LIMITS = {
    "patient_name": 224,
    "patient_id": 80,
    "birth_date": 26,
    "sex": 16,
    "accession": 64,
    "study_uid": 64,
    "series_uid": 64,
    "sop_uid": 64,
    "sop_class": 64,
    "study_date": 26,
    "modality": 16,
    "file_sha256": 64,
    "dataset_sha256": 64,
    "pixel_sha256": 64,
    "nonpixel_sha256": 64,
    "received_at": 40,
    "source": 16,
    "calling_ae": 64,
    "software": 48,
    "signer": 32,
}

@dataclass(frozen=True, slots=True)
class Record:
    """Identity essentials, digests (lower-case hex SHA-256, '' where there is none) and provenance. Texts as in DICOM.

    source: 'dimse' or 'stow'. received_at: ISO 8601 UTC. signer: id of the signing key, set by `pack_record`.
    cut: names of fields that were shortened to fit; their full values ride in the sealed side part.
    """

    patient_name: str = ""
    patient_id: str = ""
    birth_date: str = ""
    sex: str = ""
    accession: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class: str = ""
    study_date: str = ""
    modality: str = ""
    file_sha256: str = ""
    dataset_sha256: str = ""
    pixel_sha256: str = ""
    nonpixel_sha256: str = ""
    received_at: str = ""
    source: str = ""
    calling_ae: str = ""
    software: str = ""
    signer: str = ""
    v: int = _VERSION
    cut: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Record(v={self.v}, signer={self.signer!r}, source={self.source!r})"  # no identity in a traceback

    def fitted(self) -> Record:
        """The record as it will be packed: each text within its limit, what was shortened named in `cut`."""
        texts = {name: _fit(getattr(self, name), limit) for name, limit in LIMITS.items()}
        shortened = {name for name, text in texts.items() if text != getattr(self, name)}
        return replace(self, **texts, v=_VERSION, cut=tuple(sorted(shortened | (set(self.cut) & set(LIMITS)))))


def to_json(record: Record) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, nothing escaped that need not be."""
    return json.dumps(asdict(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def from_json(data: bytes) -> Record:
    """Inverse of `to_json`, strict: exactly the canonical bytes of a fitted version 1 record. Raises SealError."""
    record = _read(data)
    if record is None or to_json(record) != data:
        raise SealError
    return record


def pack_record(record: Record, *, signing_key: tuple[str, bytes]) -> bytes:
    """Sign and pack. signing_key: (key id, raw 32-byte Ed25519 private key), as the key ring gives it."""
    key_id, secret = signing_key
    text = to_json(replace(record, signer=key_id).fitted())
    signature = Ed25519PrivateKey.from_private_bytes(secret).sign(_SIGNED_PREFIX + text)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return bytes([_VERSION]) + signature + deflate.compress(text) + deflate.flush()


def unpack_record(packed: bytes, *, find_verify_key: Callable[[str], bytes]) -> Record:
    """Inverse of `pack_record`. find_verify_key: id -> raw 32-byte public key, or LookupError. Raises SealError."""
    if len(packed) <= 1 + _SIGNATURE_BYTES or packed[0] != _VERSION:
        raise SealError
    text = _inflate(packed[1 + _SIGNATURE_BYTES :])
    record = from_json(text)
    if not _genuine(record.signer, packed[1 : 1 + _SIGNATURE_BYTES], _SIGNED_PREFIX + text, find_verify_key):
        raise SealError
    return record


def _genuine(signer: str, signature: bytes, message: bytes, find_verify_key: Callable[[str], bytes]) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(find_verify_key(signer)).verify(signature, message)
    except (LookupError, InvalidSignature, ValueError):
        return False
    return True


def _inflate(data: bytes) -> bytes:
    inflate = zlib.decompressobj(-15, DICTIONARY)
    try:
        text = inflate.decompress(data, _JSON_LIMIT)
    except zlib.error:
        text = b""
    if not text or not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
        raise SealError
    return text


def _read(data: bytes) -> Record | None:
    try:
        values = json.loads(data)
        if set(values) != {field.name for field in fields(Record)} or type(values["v"]) is not int:
            return None
        record = Record(**{**values, "cut": tuple(values["cut"])})
        texts = (*(getattr(record, name) for name in LIMITS), *record.cut)
        return record if all(isinstance(text, str) for text in texts) and record.fitted() == record else None
    except (ValueError, TypeError, RecursionError):
        return None


def _fit(text: str, limit: int) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates have no UTF-8 form
    if _json_bytes(clean) <= limit:
        return clean
    room = limit - len(CUT_MARK.encode("utf-8"))
    kept = 0
    for at, character in enumerate(clean):
        kept += _json_bytes(character)
        if kept > room:
            return clean[:at] + CUT_MARK
    return clean


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8")) - 2
