"""What can be known of a file: without a key, with the keys, and, only when asked for, whose it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gateway.errors import IntegrityError, PalimpsestError, Unsupported
from palimpsest.payload_files import REFUSED, is_raw_data

if TYPE_CHECKING:
    from gateway.keys import KeyRing
    from stego.record import Record

#: the record's fields that tell whose image it is, where it came from or what else it is called
IDENTITY_FIELDS = frozenset(
    {"patient_name", "patient_id", "birth_date", "sex", "accession", "study_uid", "series_uid", "sop_uid",
     "study_date", "calling_ae"}
)  # fmt: skip

Facts = dict[str, Any]


def inspect(data: bytes, ring: KeyRing | None, *, identity: bool) -> Facts:
    """Facts in layers: 'without a key', and with a ring 'with the keys'. identity: also the patient's.

    Raises InvalidInstance when it is not DICOM.
    """
    facts: Facts = {"without a key": _open_facts(data)}
    if ring is not None:
        facts["with the keys"] = _keyed_facts(data, ring, identity=identity)
    return facts


def _open_facts(data: bytes) -> Facts:
    try:
        return _archive_facts(data) if is_raw_data(data) else _image_facts(data)
    except IntegrityError as error:
        return {"kind": "damaged", "reason": f"{error.reason}: {error.message}"}


def _archive_facts(data: bytes) -> Facts:
    from stego.errors import SealError
    from stego.seal import Context
    from worker import container as box
    from worker.container import SectionType
    from worker.envelope import parse_envelope

    envelope = parse_envelope(data)
    sections = box.parse(envelope.container)
    members = box.unpack_members(sections)
    if members:
        return {
            "kind": "archive object of a group",
            "instances": len(members),
            "sections": {kind.name.lower(): len(body) for kind, body in sections.items()},
            "bitstream SHA-256": envelope.bitstream_sha256,
        }
    try:
        context = Context.parse(bytes(sections[SectionType.CONTEXT]))
        wraps = box.unpack_wraps(sections[SectionType.WRAPS])
    except (SealError, KeyError):
        raise IntegrityError("container-damaged", "the context or the wraps are missing or broken") from None
    restores = SectionType.FRAMES not in sections and SectionType.WHOLE not in sections
    facts: Facts = {
        "kind": "restoration record of a stego object" if restores else "archive object",
        "carrier": context.mode,
        "object": context.object_id.hex(),
        "rows": context.rows, "columns": context.columns, "frames": context.frames,
        "bits stored": context.bits_stored, "signed": context.signed,
        "sealed for": [_wrap_name(wrap) for wrap in wraps],
        "sections": {kind.name.lower(): len(body) for kind, body in sections.items()},
        "bitstream SHA-256": envelope.bitstream_sha256,
    }  # fmt: skip
    if SectionType.STACK in sections and SectionType.CARRIER in sections:
        carrier = box.unpack_carrier(sections[SectionType.CARRIER])
        initial = carrier.nbits // 8 if carrier.mode is box.CarrierMode.INITIAL else 0
        facts["record bytes in a stack"] = initial
    return facts | ({"pixel SHA-256": envelope.pixel_sha256} if envelope.pixel_sha256 else {})


def _wrap_name(wrap: bytes) -> str:
    from stego.errors import SealError
    from stego.recipients import is_ring_wrap, recipient_of
    from stego.seal import wrap_kek_id

    try:
        return wrap_kek_id(wrap) if is_ring_wrap(wrap) else " ".join(str(part) for part in recipient_of(wrap))
    except SealError:
        return "unreadable"


def _image_facts(data: bytes) -> Facts:
    from worker.attributes import read_data_set
    from worker.stegoread import restoration_of

    try:
        parsed = restoration_of(read_data_set(data), None)
    except Unsupported as error:
        return {"kind": "other object", "reason": f"{error.reason}: {error.message}"}
    if parsed is None:
        return {"kind": "image", "note": "whether it carries anything cannot be known without the key"}
    return {
        "kind": "stego object",
        "carrier": parsed.context.mode,
        "object": parsed.context.object_id.hex(),
        "sealed for": [_wrap_name(wrap) for wrap in parsed.wraps],
        "sealed part bytes": len(parsed.sealed_record) + len(parsed.sealed_side),
    }


def _keyed_facts(data: bytes, ring: KeyRing, *, identity: bool) -> Facts:
    try:
        return (
            _archive_keyed(data, ring, identity=identity) if is_raw_data(data) else _image_keyed(data, ring, identity)
        )
    except PalimpsestError as error:
        if not isinstance(error, (IntegrityError, Unsupported)):
            raise
        return {"opens": False, "reason": REFUSED}


def _archive_keyed(data: bytes, ring: KeyRing, *, identity: bool) -> Facts:
    from worker.restore import members_of, restore
    from worker.stegoside import open_restoration

    opened = open_restoration(data, ring)
    if opened is not None:
        return {"opens": True, **_record_facts(opened.record, identity), "keys": [opened.key_id]}
    several = bool(members_of(data))
    back = restore(data, ring, member=0 if several else None)
    facts = {"opens": True, "restores exactly": back.exact, **_record_facts(back.record, identity),
             "keys": list(back.key_ids)}  # fmt: skip
    return {"opens": True, "first instance": facts} if several else facts


def _image_keyed(data: bytes, ring: KeyRing, identity: bool) -> Facts:
    from worker.stegoobject import read_stego

    found = read_stego(data, ring)
    return {
        "opens": True,
        "carrier": found.found.mode,
        "object": found.found.capsule.object_id.hex(),
        "carrying frame": found.frame + 1,
        **_record_facts(found.record, identity),
        "keys": [found.wrap_key_id, found.found.key_id],
    }


def _record_facts(record: Record, identity: bool) -> Facts:
    fields = {name: value for name, value in asdict(record).items() if value not in ("", ())}
    shown = {name: value for name, value in fields.items() if name not in IDENTITY_FIELDS and name != "v"}
    if identity:
        shown["identity"] = {name: value for name, value in fields.items() if name in IDENTITY_FIELDS}
    return shown
