"""In which form an object goes to a destination: the archive object, the original as others read it, or a viewable
stego object made from it. What the destination's probe has refuted is not used.

Order of a stego object, each step before the next: its object id and wrapped data key are committed (a retry makes the
same object); it is made; what restores it is in the archive and was read back; another process opened it from its
bytes, the ring and that record alone, and got the received file; all of this is indexed; it may be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol

from gateway.archive import archive_key
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, InvalidInstance, NotFound, PolicyRefused, Unsupported
from gateway.index_rows import InstanceRow, StegoExport
from gateway.part10 import EXPLICIT_LE, peek
from gateway.policy import IDENTIFIED, DeliveryRule, Representation
from gateway.probe_result import RAW_DATA, ProbeResult
from gateway.settings import Destination
from stego.errors import SealError
from stego.seal import wrap_key
from worker.attributes import read_tolerant
from worker.candidate import Secrets
from worker.identity import identify
from worker.pipeline import provenance
from worker.retrieve import original_bytes
from worker.rules import delivery_rule
from worker.sealing import label_of, open_wraps
from worker.stegoframe import Mode
from worker.stegoobject import StegoObject, make_stego
from worker.verify import VerifyReport
from worker.viewable import candidates, profile_of, viewable_copies

__all__ = ["Accepts", "Parcel", "StegoProver", "represent"]

#: errors of one object that no retry heals: it becomes a dead letter with the reason, and those behind it go on
HOPELESS = (Gone, IntegrityError, InvalidInstance, NotFound, PolicyRefused, Unsupported)
UNPROVEN = "unproven-"


class StegoProver(Protocol):
    """Who opens a stego object in another process: `worker.verify.Verifier`."""

    def check_stego(self, part10: bytes, restoration: bytes | None) -> VerifyReport:
        """Open it from its bytes, the ring and its restoration record (None: it rides in the header) alone."""
        ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent. name: an archive key, or of that form; reason: why it is not the form that the rule names first.

    data: None if the destination has these very bytes already, sent for another instance of the same archive object,
    whose SOP Instance UID is then sent_uid.
    """

    name: str
    data: bytes | None = field(repr=False)
    representation: Representation
    reason: str | None = None
    sent_uid: str | None = None


Accepts = Callable[[str, Sequence[str]], Sequence[str]]
"""`Sender.accepts`: which transfer syntaxes a destination takes for a SOP class."""


def takes_all(sop_class: str, syntaxes: Sequence[str]) -> Sequence[str]:
    """A destination that is not asked."""
    return syntaxes


def represent(
    gw: Gateway,
    row: InstanceRow,
    destination: Destination,
    prover: StegoProver,
    owner: str,
    accepts: Accepts = takes_all,
) -> Parcel:
    """An archived instance in the form that the policy wants for a destination, or in the next that it allows.

    Raises Unsupported with the first form's reason when none can be made; PolicyRefused ``mixed-identity``;
    IntegrityError ``unproven-...`` when a stego object did not open to what was received (it is never sent),
    ``stego-export-differs``; as `original_bytes`; and what `accepts` raises.
    """
    if row.archive_key is None or row.archive_digest is None:
        raise NotFound("not-archived", "a forward stands for an instance that is not in the archive")
    rule, refused = delivery_rule(gw, row, destination.name), None
    probe = gw.index.probe_of(destination.name, destination.place)
    for form in rule.attempts:
        _refuse_mixture(gw, row, destination, form)
        try:
            parcel = _in_form(gw, row, destination, rule, form, probe, prover, owner, accepts)
        except (Unsupported, InvalidInstance) as error:
            refused = refused or error
            continue
        return replace(parcel, reason=refused.reason if refused else parcel.reason)
    raise refused or Unsupported("no-form", "the policy names no form in which this object may be sent")


def _in_form(
    gw: Gateway,
    row: InstanceRow,
    destination: Destination,
    rule: DeliveryRule,
    form: Representation,
    probe: ProbeResult | None,
    prover: StegoProver,
    owner: str,
    accepts: Accepts,
) -> Parcel:
    """The object in one form. Raises Unsupported, InvalidInstance if it cannot be made, or was refuted."""
    if form == "viewable" or form == "deidentified":
        return _copy(gw, row, rule, form, probe, accepts)
    sent_class = RAW_DATA if form == "envelope" else row.sop_class
    if probe is not None and probe.refutes(sent_class, EXPLICIT_LE):
        raise Unsupported("probe-refuted", "the probe of this destination has refuted this form")
    if form == "envelope":
        key, digest = str(row.archive_key), str(row.archive_digest)
        data = None if gw.index.sent_with_group(row, destination.name) else gw.archive.get(key, digest)
        return Parcel(key, data, form, sent_uid=row.envelope_uid)
    made = _stego(gw, row, destination.name, rule, form, prover, owner)
    return Parcel(archive_key(made.stego_uid), made.part10, form)


def _refuse_mixture(gw: Gateway, row: InstanceRow, destination: Destination, form: Representation) -> None:
    """One study never has two patients at one place, even where the policy was another when its first part went."""
    known = gw.index.identities_at(row.study_uid, destination.name) if row.study_uid else set()
    if (form not in IDENTIFIED) in known:
        raise PolicyRefused(
            "mixed-identity",
            "this destination has objects of the study under another identity; send it all in one form",
        )


def _copy(
    gw: Gateway, row: InstanceRow, rule: DeliveryRule, form: Representation, probe: ProbeResult | None, accepts: Accepts
) -> Parcel:
    """The original, or its de-identified copy, in the best syntax that the destination takes."""
    data = original_bytes(gw, row)
    wanted = candidates(row.sop_class, peek(data).transfer_syntax, rule, probe)
    taken = accepts(row.sop_class, wanted)
    if not taken:
        raise Unsupported("no-presentation-context", "the destination takes this SOP class in no syntax there is")
    copy = next(viewable_copies(data, form, rule, gw.keys.pseudonym_key(), taken))
    # a corrected version has the same UID: where files are named by us, it must not meet the earlier one
    uid, digest = peek(copy.part10).sop_instance_uid, sha256(copy.part10).hexdigest()
    name = f"{archive_key(uid).removesuffix('.dcm')}-{digest[:16]}.dcm"
    return Parcel(name, copy.part10, form)


def _stego(
    gw: Gateway, row: InstanceRow, destination: str, rule: DeliveryRule, mode: Mode, prover: StegoProver, owner: str
) -> StegoObject:
    data = original_bytes(gw, row)
    try:
        return _made(gw, row, data, _secrets(gw, row, destination, mode, data), rule, mode, prover, owner)
    except _Outdated:
        fresh = _secrets(gw, row, destination, mode, data)
        return _made(gw, row, data, fresh, rule, mode, prover, owner)


class _Outdated(Exception):
    """A try that never came to anything was made by another release of this program: its secrets are forgotten."""


def _made(
    gw: Gateway,
    row: InstanceRow,
    data: bytes,
    begun: tuple[StegoExport, Secrets],
    rule: DeliveryRule,
    mode: Mode,
    prover: StegoProver,
    owner: str,
) -> StegoObject:
    """Make, archive, prove and record one object. Raises _Outdated once what can never be made again is forgotten."""
    export, secrets = begun
    try:
        made = make_stego(
            data, provenance(gw, row), gw.keys.as_of(export.created_at), mode=mode, profile=profile_of(rule),
            side=rule.restoration, secrets=secrets,
        )  # fmt: skip
        record_key, record_digest = _archive_restoration(gw, made)
    except (Unsupported, InvalidInstance):
        gw.index.export_drop(export.id)
        raise
    except IntegrityError as error:
        if error.reason != "write-once" or export.digest is not None:
            raise
        gw.index.export_drop(export.id)  # the record of the earlier try stays in the archive, and restores nothing
        raise _Outdated from error
    if export.digest is None:
        _prove(gw, row, made, prover)
    gw.index.export_made(
        export.id, owner, stego_uid=made.stego_uid, digest=sha256(made.part10).hexdigest(),
        pixel_digest=made.stego_sha256, record_key=record_key, record_digest=record_digest,
        record_size=len(made.restoration) if made.restoration is not None else None, key_ids=made.key_ids,
    )  # fmt: skip
    return made


def _secrets(gw: Gateway, row: InstanceRow, destination: str, mode: Mode, data: bytes) -> tuple[StegoExport, Secrets]:
    """The object's id and data key: of the earlier try if there was one, else fresh ones, committed."""
    fresh = Secrets.draw()
    key_id, key = _patient_key(gw, row, data)
    wrap = wrap_key(fresh.data_key, kek=key, kek_id=key_id)
    export = gw.index.export_begin(
        row.id, destination, mode, object_id=fresh.object_id.hex(), wraps=[wrap.hex()]
    )  # fmt: skip
    try:
        opened = open_wraps([bytes.fromhex(wrap) for wrap in export.wraps], gw.keys.find_kek)
    except SealError as error:
        raise IntegrityError("seal-refused", "the data key of a stego object does not open any more") from error
    return export, Secrets(bytes.fromhex(export.object_id), opened.key)


def _patient_key(gw: Gateway, row: InstanceRow, data: bytes) -> tuple[str, bytes]:
    """(id, key) of the patient's key; found by the header for what was archived before there were such keys."""
    if row.patient_key is not None:
        return row.patient_key, gw.keys.find_kek(row.patient_key)
    record = identify(data, read_tolerant(data), provenance(gw, row))
    return gw.keys.patient_key(label_of(record))


def _archive_restoration(gw: Gateway, made: StegoObject) -> tuple[str | None, str | None]:
    """Put the restoration record, read it back; (key, digest), or Nones where it rides in the header."""
    if made.restoration is None:
        return None, None
    key, digest = archive_key(made.restoration_uid), sha256(made.restoration).hexdigest()
    gw.archive.put(key, made.restoration, digest)
    if sha256(gw.archive.get(key, digest)).hexdigest() != digest:
        raise IntegrityError("archive-read-back", "the archive gave back other bytes than it was given")
    return key, digest


def _prove(gw: Gateway, row: InstanceRow, made: StegoObject, prover: StegoProver) -> None:
    report = prover.check_stego(made.part10, made.restoration)
    received = {row.digest, gw.index.facts(row.id).get("restored_sha256")}
    problem = report.reason or "verifier-refused" if not report.ok else ""
    if report.ok and not {report.recorded_sha256, report.sha256} <= received:
        problem = "other-object"
    if problem:
        message = f"a viewable image did not open to what was received ({problem}); it was not sent"
        gw.index.alert_raise("stego-unproven", f"instance {row.id}", message, "critical")
        raise IntegrityError(UNPROVEN + problem, message)
