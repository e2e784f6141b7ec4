"""Crypto-shredding: one patient's identity made unreadable for good, everywhere we can reach; the pixels stay.

Invariants
- Intent is audited before anything is destroyed; every step may be repeated, and a run that was killed is finished by
  running it again.
- The keys go first: what fails afterwards leaves copies of names, never a key that opens more.
- Rows are forgotten last, because their digests say which spool and cache files are theirs.
- Nothing that is still on its way is touched: an object that only the spool holds must not be lost.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, NotFound, PolicyRefused
from gateway.index import InstanceRow, Subject
from gateway.instance import State
from gateway.keys import KeyRing
from gateway.pseudonym import pseudonym_text, pseudonym_uid
from worker.cache import Cache, request_key
from worker.sealing import patient_label

__all__ = ["Patient", "ShredReport", "find_patient", "shred", "verify_statement"]

_SIGNED = b"palimpsest/tombstone/v1\x00"
_STATEMENT = "palimpsest-tombstone"
#: what is kept of an instance under names of files that a row's digest leads to; rendered frames are pixels
_CACHED = ("original", "metadata")


@dataclass(frozen=True)
class Patient:
    """Who is meant. pseudonym: as in archived headers. key_ids: all keys there ever were. subject: the instances."""

    pseudonym: str
    key_ids: tuple[str, ...]
    subject: Subject


@dataclass(frozen=True)
class ShredReport:
    """What was done. still_open: instances whose identity others, or a key that stays, can read after all."""

    pseudonym: str
    keys: int
    instances: int
    still_open: int


def find_patient(gw: Gateway, patient_id: str, study_uid: str = "") -> Patient:
    """The patient with this Patient ID (0010,0020); with '', of a study whose objects have none. Raises NotFound."""
    if not patient_id and not study_uid:
        raise NotFound("unknown-patient", "name a Patient ID, or the study of objects that have none")
    key_ids = tuple(gw.keys.patient_key_ids(patient_label(patient_id, study_uid)))
    subject = gw.index.subject(key_ids, patient_id, study_uid)
    if not key_ids and not subject.rows:
        raise NotFound("unknown-patient", "neither the key ring nor the index knows such a patient")
    prefix = "P" if patient_id else "S"
    return Patient(pseudonym_text(patient_id or study_uid, gw.keys.pseudonym_key(), prefix), key_ids, subject)


def shred(
    gw: Gateway, patient: Patient, *, actor: str, reason: str, partial: bool = False, images_too: bool = False
) -> ShredReport:
    """Destroy the patient's keys and every trace of the identity in index, cache and spool.

    reason: a machine word. partial: go on although some objects can be opened by others (recipients that policy named,
    or the master key under which they were sealed before there were patient keys). images_too: go on although some
    objects were sealed whole, so that their pixels are lost with the key. Raises PolicyRefused ``shred-in-flight``,
    ``shred-shared``, ``shred-whole``; Unavailable: nothing is certain then, run it again.
    """
    subject = patient.subject
    still_open = {*subject.old, *subject.shared}
    if subject.unfinished:
        count = len(subject.unfinished)
        raise PolicyRefused("shred-in-flight", f"{count} instances are not archived and forwarded yet: wait for them")
    if still_open and not partial:
        raise PolicyRefused(
            "shred-shared",
            f"{len(subject.shared)} objects are shared with other recipients and {len(subject.old)} were sealed before "
            "there were patient keys: they would stay readable. Ask for a partial shredding if that is understood",
        )
    if subject.whole and not images_too:
        count = len(subject.whole)
        raise PolicyRefused(
            "shred-whole", f"{count} objects were sealed whole: their images would be lost with the key"
        )
    gw.index.shred_begin(actor, len(subject.rows), reason, patient.pseudonym)
    statement = _statement(gw.keys, patient, actor, reason)
    for key_id in patient.key_ids:
        gw.keys.destroy_patient_key(key_id, statement)
    _drop_copies(gw, subject.rows)
    pseudonyms = gw.keys.pseudonym_key()
    gw.index.forget(
        subject.rows,
        rename=lambda uid: pseudonym_uid(uid, pseudonyms),
        rehash=lambda digest: hmac.new(pseudonyms, b"palimpsest/forgotten\x00" + digest.encode(), "sha256").hexdigest(),
    )
    _drop_cached(gw, subject.rows)  # again: a reader may have been at work meanwhile
    gw.index.scrub_freed()
    gw.index.shred_done(actor, len(subject.rows), reason, patient.pseudonym, partial=bool(still_open))
    return ShredReport(patient.pseudonym, len(patient.key_ids), len(subject.rows), len(still_open))


def verify_statement(data: bytes, ring: KeyRing) -> dict[str, object]:
    """The content of a tombstone's signed statement. Raises IntegrityError ``tombstone-damaged``, UnknownKey."""
    try:
        document = json.loads(data)
        signature = base64.b64decode(document.pop("signature"), validate=True)
        public = Ed25519PublicKey.from_public_bytes(ring.find_verify_key(str(document["signer"])))
        public.verify(signature, _SIGNED + _canonical(document))
    except (InvalidSignature, ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError("tombstone-damaged", "a tombstone's statement is not what was signed") from None
    return dict(document)


def _statement(ring: KeyRing, patient: Patient, actor: str, reason: str) -> bytes:
    """What was destroyed, when, by whom and why; signed. No identity in it."""
    signer, private = ring.signing_key()
    document: dict[str, object] = {
        "format": _STATEMENT,
        "version": 1,
        "patient": patient.pseudonym,
        "keys": list(patient.key_ids),
        "instances": len(patient.subject.rows),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "actor": actor,
        "reason": reason,
        "signer": signer,
    }
    signature = Ed25519PrivateKey.from_private_bytes(private).sign(_SIGNED + _canonical(document))
    return _canonical({**document, "signature": base64.b64encode(signature).decode("ascii")})


def _canonical(document: dict[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _drop_copies(gw: Gateway, rows: Sequence[InstanceRow]) -> None:
    """Received files and restored ones. A row is RELEASED before its file goes, as in the sweep."""
    for row in rows:
        if row.shredded_at is not None:
            continue
        if row.state is State.ARCHIVED:
            gw.index.set_released(row.id, "shred")
        gw.spool.remove(row.digest)
    _drop_cached(gw, rows)


def _drop_cached(gw: Gateway, rows: Sequence[InstanceRow]) -> None:
    cache = Cache(gw.settings.cache_dir, gw.settings.cache_max_bytes)
    for row in rows:
        if row.shredded_at is None:
            for kind in _CACHED:
                cache.drop(request_key(kind, row.digest, ""))
