"""Crypto-shredding: one patient's identity made unreadable for good, everywhere we can reach; the pixels stay.

Invariants
- Intent is audited before anything is destroyed; every step may be repeated. A run that was killed is finished by
  running it again, or, where no source is left to lose, by the sweep.
- The keys go first: what fails afterwards leaves copies of names, never a key that opens more.
- Rows are forgotten last, because their digests say which spool and cache files are theirs.
- Nothing that is still on its way is touched: an object that only the spool holds must not be lost. What came between
  the look and the destruction is looked for again: archived under a key that is gone, it is the patient's, too; not
  archived yet, the pipeline seals it anew.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, NotFound, PolicyRefused
from gateway.hotcache import cache_of
from gateway.index import InstanceRow, Subject
from gateway.instance import UNFINISHED, Form, State
from gateway.keys import KeyRing
from gateway.moment import moment
from gateway.pseudonym import pseudonym_patient, pseudonym_uid
from worker.sealing import patient_label

__all__ = [
    "Patient", "ShredReport", "find_patient", "finish_shreddings", "forget_all", "forget_rows", "keeps_source", "shred",
    "verify_statement",
]  # fmt: skip

QUIET: Final = 900.0  # seconds after a key's destruction in which whoever destroyed it is left to go on

_SIGNED = b"palimpsest/tombstone/v1\x00"
_STATEMENT = "palimpsest-tombstone"


@dataclass(frozen=True)
class Patient:
    """Who is meant. pseudonym: as in archived headers. key_ids: all keys there ever were. subject: the instances."""

    pseudonym: str
    key_ids: tuple[str, ...]
    subject: Subject
    patient_id: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)


@dataclass(frozen=True)
class ShredReport:
    """What was done. still_open: instances whose identity others, or a key that stays, can read after all. kept: such
    as were archived meanwhile and sealed whole, which only another run with images_too forgets.
    """

    pseudonym: str
    keys: int
    instances: int
    still_open: int
    kept: int = 0


def find_patient(gw: Gateway, patient_id: str, study_uid: str = "") -> Patient:
    """The patient with this Patient ID (0010,0020); with '', of a study whose objects have none.

    Raises NotFound; PolicyRefused ``shred-by-patient`` for a study whose objects are sealed to a patient's key.
    """
    if not patient_id and not study_uid:
        raise NotFound("unknown-patient", "name a Patient ID, or the study of objects that have none")
    key_ids = tuple(gw.keys.patient_key_ids(patient_label(patient_id, study_uid)))
    subject = gw.index.subject(key_ids, patient_id, study_uid)
    if not key_ids and not subject.rows:
        raise NotFound("unknown-patient", "neither the key ring nor the index knows such a patient")
    sealed_to = {row.patient_key for row in subject.rows if row.patient_key is not None} - set(key_ids)
    if sealed_to and not patient_id:
        raise PolicyRefused("shred-by-patient", "objects of this study belong to a patient with an ID: name that one")
    # A key that is not here (another host's, or lost), or was found by another reading of the ID, must go as well.
    key_ids = (*key_ids, *sorted(sealed_to))
    pseudonym = pseudonym_patient(patient_id, study_uid, gw.keys.pseudonym_key())
    return Patient(pseudonym, key_ids, subject, patient_id, study_uid)


def shred(
    gw: Gateway, patient: Patient, *, actor: str, reason: str, partial: bool = False, images_too: bool = False
) -> ShredReport:
    """Destroy the patient's keys and every trace of the identity in index, cache and spool.

    reason: a machine word. partial: go on although some objects can be opened by others (recipients that policy named,
    or the master key under which they were sealed before there were patient keys). images_too: go on although some
    objects were sealed whole, so that their pixels are lost with the key. Raises PolicyRefused ``shred-in-flight``,
    ``shred-merged``, ``shred-shared``, ``shred-whole``; Unavailable: nothing is certain then, run it again.
    """
    patient = find_patient(gw, patient.patient_id, patient.study_uid)  # somebody may have thought about it for long
    subject = patient.subject
    _check(subject, partial=partial, images_too=images_too)
    still_open = {*subject.old, *subject.shared}
    gw.index.shred_begin(actor, len(subject.rows), reason, patient.pseudonym)
    statement = _statement(gw.keys, patient, actor, reason)
    for key_id in patient.key_ids:
        gw.keys.destroy_patient_key(key_id, statement)
    late, kept = _late(gw, patient, images_too=images_too)
    rows = (*subject.rows, *late)
    forget_all(gw, rows, "shred", patient.patient_id)
    gw.index.scrub_freed()
    gw.index.shred_done(actor, len(rows), reason, patient.pseudonym, partial=bool(still_open))
    for key_id in {row.patient_key for row in kept if row.patient_key is not None}:
        gw.index.shred_unfinished(key_id)
    return ShredReport(patient.pseudonym, len(patient.key_ids), len(rows), len(still_open), len(kept))


def finish_shreddings(gw: Gateway) -> int:
    """A duty of the sweep: forget RELEASED instances under keys that were destroyed, whose shredding was killed; how
    many. Nobody could open them any more, so nothing is lost.

    What has a source still stays: under such a key that is for a person, whom `shred_unfinished` tells. So does what a
    destination waits for, and a patient as whom others are shown by now. Raises Unavailable.
    """
    forgotten = 0
    before = gw.index.now() - QUIET
    for key_id in gw.index.unforgotten([each.id for each in gw.keys.tombstones() if moment(each.destroyed) < before]):
        if gw.keys.patients.half_destroyed(key_id):
            gw.keys.destroy_patient_key(key_id, b"")  # the tombstone that there is stays as it is
        found = gw.index.subject([key_id], "", "")
        rows = [row for row in found.rows if row.state is State.RELEASED and row.shredded_at is None]
        rows = [row for row in rows if row.id not in found.unfinished]
        if rows and not gw.index.merges_into([row.id for row in found.rows]):
            gw.index.shred_begin("sweep", len(rows), "unfinished", None)
            forget_all(gw, rows, "shred")
            partial = any(row.id in found.shared for row in rows)
            gw.index.shred_done("sweep", len(rows), "unfinished", None, partial=partial)
            forgotten += len(rows)
        gw.index.shred_unfinished(key_id)  # if something is left
    if forgotten:
        gw.index.scrub_freed()
    return forgotten


def _check(subject: Subject, *, partial: bool, images_too: bool) -> None:
    if subject.unfinished:
        count = len(subject.unfinished)
        raise PolicyRefused("shred-in-flight", f"{count} instances are not archived and forwarded yet: wait for them")
    if subject.merged:
        numbers = ", ".join(map(str, subject.merged))
        raise PolicyRefused(
            "shred-merged",
            f"corrections ({numbers}) show other patients' objects under this one's identity: revoke them, and wait "
            "until that is done",
        )
    if (subject.old or subject.shared) and not partial:
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


def _late(gw: Gateway, patient: Patient, *, images_too: bool) -> tuple[list[InstanceRow], list[InstanceRow]]:
    """Instances that were archived under one of these keys after the patient was looked at; and of these such as are
    kept instead: sealed whole, the source is all there is. The sweep never releases them, an alert and the next run
    name them.
    """
    known = {row.id for row in patient.subject.rows}
    rows = [row for row in gw.index.subject(patient.key_ids, "", "").rows if row.id not in known]
    kept = [row for row in rows if keeps_source(row) and not images_too]
    return [row for row in rows if row.state not in UNFINISHED and row not in kept], kept


def keeps_source(row: InstanceRow) -> bool:
    """Whether it was sealed whole and may have its source still: all there is of its image once the key is gone."""
    return row.form is Form.PASSTHROUGH and row.state is State.ARCHIVED


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


def forget_all(gw: Gateway, rows: Sequence[InstanceRow], actor: str, patient_id: str = "") -> None:
    """Received files, restored ones, and rows, of which the digests say which files are theirs."""
    _drop_copies(gw, rows, actor)
    forget_rows(gw, rows, patient_id)
    _drop_cached(gw, rows)  # again: a reader may have been at work meanwhile


def forget_rows(gw: Gateway, rows: Sequence[InstanceRow], patient_id: str = "") -> None:
    """`Index.forget` with keyed pseudonyms for UIDs, keyed digests for digests."""
    pseudonyms = gw.keys.pseudonym_key()
    gw.index.forget(
        rows,
        rename=lambda uid: pseudonym_uid(uid, pseudonyms),
        rehash=lambda text: hmac.new(pseudonyms, b"palimpsest/forgotten\x00" + text.encode(), "sha256").hexdigest(),
        patient_id=patient_id,
    )


def _drop_copies(gw: Gateway, rows: Sequence[InstanceRow], actor: str) -> None:
    """Received files and restored ones. A row is RELEASED before its file goes, as in the sweep."""
    for row in rows:
        if row.shredded_at is not None:
            continue
        if row.state is State.ARCHIVED:
            gw.index.set_released(row.id, actor)
        gw.index.let_go(row.digest, gw.spool.remove)
    _drop_cached(gw, rows)


def _drop_cached(gw: Gateway, rows: Sequence[InstanceRow]) -> None:
    cache_of(gw.settings).drop_instances(row.digest for row in rows if row.shredded_at is None)
