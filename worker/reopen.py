"""What the index must know of an archive object, from the object and the key ring alone (worker/rebuild.py).

Each instance is restored and compared with its signed record on the way: what comes out of here was proven again.
"""

from __future__ import annotations

import hmac
import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pydicom

from codec.header import CODERS
from gateway.archive import read_one
from gateway.audit_subject import audit_subject
from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, InvalidInstance
from gateway.index_rebuild import FoundExport, FoundInstance
from gateway.index_rows import NewInstance
from gateway.instance import Form
from gateway.keystate import UnknownKey
from gateway.moment import moment
from gateway.part10 import peek, pixel_digest
from gateway.patientkeys import PREFIX
from stego.errors import SealError
from stego.recipients import is_ring_wrap, recipient_of
from stego.seal import wrap_kek_id
from worker import container as box
from worker.attributes import read_tolerant
from worker.candidate import CLEAR, CODED, QUICK_CODERS
from worker.container import CarrierMode, SectionType
from worker.envelope import FORMAT_NAME, envelope_uid, format_of, parse_envelope
from worker.framechain import FrameChain
from worker.framepass import Sections
from worker.indexing import ODD, accession_of, describe
from worker.objectcontext import MODES
from worker.pipeline import software
from worker.restore import Rebuilt, chain_through, rebuild_member
from worker.routing import asks_for_header, route_facts
from worker.stegoside import open_restoration, parse_restoration_envelope, stego_uid
from worker.weightobject import FORMAT_NAME as WEIGHTS_FORMAT
from worker.weightobject import needed_weights

__all__ = ["TEMPORARY", "Reopened", "generation_of", "reopen"]

TEMPORARY: Final = "rebuilding-"  # temporary files in the run folder begin so; after a kill the sweep finds them by it
RESTORATION: Final = {SectionType.CONTEXT, SectionType.WRAPS, SectionType.RECORD, SectionType.SIDE}
QUICK: Final = frozenset(QUICK_CODERS)  # frames of these alone may have been coded in a hurry
MAX_GENERATION: Final = 16
UNKNOWN_PLACE: Final = "?"
ENCRYPTED_ATTRIBUTES: Final = 0x04000500


@dataclass(frozen=True, slots=True)
class Reopened:
    """What an archive object holds. kind: 'instances', 'restoration' (of a stego object) or 'weights'."""

    kind: str
    instances: tuple[FoundInstance, ...] = ()
    export: FoundExport | None = None


@dataclass(frozen=True, slots=True)
class _Object:
    gw: Gateway
    key: str
    data: bytes
    digest: str
    count: int
    cms: bool
    weights: tuple[str, ...]

    @property
    def uid(self) -> str:
        return self.key.rpartition("/")[2].removesuffix(".dcm")


def reopen(gw: Gateway, key: str) -> Reopened:
    """Read one object of the archive, and restore every instance that it holds.

    Raises IntegrityError (``not-an-envelope`` for what is none of ours, ``key-missing``, ``seal-refused``, damage),
    NotFound, ObjectUnavailable (this one alone), Unavailable (archive or key ring away).
    """
    data = read_one(gw.archive, lambda: gw.archive.read_unchecked(key))
    if format_of(data) == WEIGHTS_FORMAT:
        return Reopened("weights")
    if format_of(data) != FORMAT_NAME:
        raise IntegrityError("not-an-envelope", "no archive object of a known version under this key")
    sections = box.parse(parse_envelope(data).container)
    digest = sha256(data).hexdigest()
    if set(sections) == RESTORATION:
        return Reopened("restoration", export=_export(gw, key, data, digest))
    members = box.unpack_members(sections)
    header = read_tolerant(data)
    cms = header is not None and ENCRYPTED_ATTRIBUTES in header.elements
    weights = tuple(sorted(each.sha256 for each in needed_weights(data)))
    found = _Object(gw, key, data, digest, len(members), cms, weights)
    if not members:
        return Reopened("instances", (_instance(found, sections, None, None),))
    chain = chain_through(members[0])
    return Reopened("instances", tuple(_instance(found, each, at, chain) for at, each in enumerate(members)))


# --- an instance ---


def _instance(found: _Object, sections: Sections, member: int | None, chain: FrameChain | None) -> FoundInstance:
    wraps = box.unpack_wraps(sections[SectionType.WRAPS])
    key_id = next((wrap_kek_id(wrap) for wrap in wraps if is_ring_wrap(wrap)), None)
    if key_id is not None and _destroyed(found.gw, key_id):
        return _shredded(found, sections, member, wraps, key_id)
    with tempfile.NamedTemporaryFile(dir=found.gw.settings.run_dir, prefix=TEMPORARY, suffix=".dcm") as file:
        try:
            rebuilt = rebuild_member(sections, found.gw.keys, file.write, chain=chain)
        except IntegrityError as error:
            if error.reason == "seal-refused" and key_id is not None and not _has(found.gw, key_id):
                message = "the key that this object is sealed to is not in the ring: `palimpsest keys restore` a backup"
                raise IntegrityError("key-missing", message) from None
            raise
        file.flush()
        return _known(found, sections, member, wraps, key_id, rebuilt, Path(file.name))


def _known(
    found: _Object,
    sections: Sections,
    member: int | None,
    wraps: Sequence[bytes],
    key_id: str | None,
    rebuilt: Rebuilt,
    path: Path,
) -> FoundInstance:
    record, gw = rebuilt.record, found.gw
    try:
        seen = peek(path)
    except InvalidInstance as error:
        raise IntegrityError("restored-unreadable", "a restored file cannot be read as DICOM") from error
    uids = {"StudyInstanceUID": seen.study_uid, "SeriesInstanceUID": seen.series_uid}
    uids |= {"SOPClassUID": seen.sop_class_uid, "SOPInstanceUID": seen.sop_instance_uid}
    described = describe(path, {name: str(uid) for name, uid in uids.items() if uid})
    released = not gw.spool.exists(record.file_sha256)
    new = NewInstance(
        sop_uid=seen.sop_instance_uid, sop_class=seen.sop_class_uid, study_uid=seen.study_uid,
        series_uid=seen.series_uid, transfer_syntax=rebuilt.syntax or seen.transfer_syntax, digest=record.file_sha256,
        dataset_digest=record.dataset_sha256, size=path.stat().st_size, source=record.source[:16],
        calling_ae=record.calling_ae[:64], priority=5, pixel_digest=pixel_digest(path) if rebuilt.exact else None,
    )  # fmt: skip
    coders, blobs = _coders(sections)
    generation = generation_of(gw, record.file_sha256, key_id, found.uid) if member is None else 0
    return FoundInstance(
        new, moment(record.received_at), found.key, found.digest, _share(found, member), found.uid, member,
        rebuilt.form, "+".join(coders) or None, _carrier(sections), _payload(sections), _coded(sections, blobs),
        rebuilt.pixel_bytes, _of_patient(key_id), tuple(wrap.hex() for wrap in wraps),
        facts=_facts(found, sections, rebuilt, wraps, len(blobs)),
        attributes={**described.attributes, **accession_of(gw, described.attributes)},
        metadata_json=described.metadata_json,
        subject=audit_subject(gw, record.patient_id, record.study_uid), generation=generation,
        recode=bool(coders) and set(coders) <= QUICK and not generation and member is None, released=released,
        destinations=_destinations(gw, new, path),
    )  # fmt: skip


def _destinations(gw: Gateway, new: NewInstance, path: Path) -> tuple[str, ...]:
    """Where policy says, as it stands now, that the instance goes."""
    names = [each.name for each in gw.settings.destinations if each.forward]
    if not names:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        facts = route_facts(data if asks_for_header(gw.policy) else None, new.sop_class, new.calling_ae)
    return tuple(gw.policy.route_rule(facts).chosen(names))


def _facts(found: _Object, sections: Sections, rebuilt: Rebuilt, wraps: Sequence[bytes], frames: int) -> dict[str, Any]:
    pixel = box.unpack_wraps(sections[SectionType.PIXEL_WRAPS]) if SectionType.PIXEL_WRAPS in sections else []
    others = [f"recipient:{recipient_of(wrap)[1]}" for wrap in wraps if not is_ring_wrap(wrap)]
    coded = rebuilt.form is Form.CODED
    return {
        "frames": frames,
        "pixel_sha256": rebuilt.pixel_sha256,
        "nonpixel_sha256": rebuilt.nonpixel_sha256,
        "modality": rebuilt.record.modality,
        "software": rebuilt.record.software,
        "shared_with": others + (["cms:unnamed"] if found.cms else []),
        "pixel_wraps": [wrap.hex() for wrap in pixel],
        "weights": list(found.weights),
        "restored_sha256": rebuilt.sha256,
        "decoders": ["numba"] if coded else [],
        "verifier": software(),
        "rebuilt": True,
    }


def _shredded(
    found: _Object, sections: Sections, member: int | None, wraps: Sequence[bytes], key_id: str
) -> FoundInstance:
    """What is left of an instance whose identity was destroyed: pseudonyms, as in its archive object's header.

    The series' pseudonym there is another than that of a row which was shredded in place, and the digest is none.
    """
    gw, coders_blobs = found.gw, _coders(sections)
    study, series, named = _pseudonyms(found.data)
    sop_uid, sop_class = named[member or 0] if (member or 0) < len(named) else (found.uid, "")
    label = f"palimpsest/forgotten-object\x00{found.key}\x00{member}".encode()
    digest = hmac.new(gw.keys.pseudonym_key(), label, "sha256").hexdigest()
    new = NewInstance(sop_uid, sop_class, study, series, "", digest, digest, 0, "", "", 5)
    stone = next((each for each in gw.keys.tombstones() if each.id == key_id), None)
    shredded_at = moment(stone.destroyed if stone else "")
    form = Form.PASSTHROUGH if SectionType.WHOLE in sections else Form.CODED
    return FoundInstance(
        new, shredded_at, found.key, found.digest, _share(found, member), found.uid, member, form,
        "+".join(coders_blobs[0]) or None, _carrier(sections), _payload(sections), _coded(sections, coders_blobs[1]),
        0, key_id, (), shredded_at=shredded_at,
    )  # fmt: skip


def _pseudonyms(data: bytes) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    """Study and series of an envelope's header, and (SOP Instance UID, class) of each instance that it refers to."""
    tags = ["StudyInstanceUID", "SeriesInstanceUID", "ReferencedInstanceSequence"]
    try:
        header = pydicom.dcmread(BytesIO(data), specific_tags=tags)
        items = header.get("ReferencedInstanceSequence") or []
        named = [(str(item.ReferencedSOPInstanceUID), str(item.ReferencedSOPClassUID)) for item in items]
        return str(header.StudyInstanceUID), str(header.SeriesInstanceUID), named
    except ODD:
        return None, None, []


def _of_patient(key_id: str | None) -> str | None:
    """A patient key's id; None for a master key, from before there were patient keys: no shredding destroys that."""
    return key_id if key_id is not None and key_id.startswith(PREFIX) else None


def _destroyed(gw: Gateway, key_id: str) -> bool:
    try:
        return gw.keys.patients.destroyed(key_id)
    except UnknownKey:  # a master key, from before there were patient keys
        return False


def _has(gw: Gateway, key_id: str) -> bool:
    try:
        gw.keys.find_kek(key_id)
    except UnknownKey:
        return False
    return True


def generation_of(gw: Gateway, file_sha256: str, key_id: str | None, uid: str | None) -> int:
    """Which of an instance's objects this is, as its UID tells: the newer, the higher; 0: the first, or untold.

    They are counted anew under each pseudonym key (worker/recode.py), so those of a newer key come after all others.
    """
    for age, pseudonyms in enumerate(reversed(gw.keys.pseudonym_keys())):
        for number in range(1, MAX_GENERATION):
            if envelope_uid(file_sha256, pseudonyms, key_id or "", number) == uid:
                return age * MAX_GENERATION + number
    return 0


def _coders(sections: Sections) -> tuple[list[str], Sequence[memoryview]]:
    """Names of the frames' coders, the first used first, and the instance's coded frames."""
    if SectionType.FRAMES not in sections:
        return [], ()
    blobs: Sequence[memoryview] = box.unpack_frames(sections[SectionType.FRAMES])
    if SectionType.SPAN in sections:
        first, count = box.unpack_span(sections[SectionType.SPAN], len(blobs))
        blobs = [blobs[at] for at in range(first, first + count)]
    numbers = dict.fromkeys(blob[4] for blob in blobs if len(blob) > 4)
    return [CODERS[number] for number in numbers if number < len(CODERS)], blobs


def _carrier(sections: Sections) -> str:
    if SectionType.CARRIER not in sections:
        return "passthrough"
    return MODES[box.unpack_carrier(sections[SectionType.CARRIER]).mode]


def _payload(sections: Sections) -> int:
    held = sum(len(part) for kind, part in sections.items() if kind not in CLEAR)
    return held + _in_stack(sections)


def _in_stack(sections: Sections) -> int:
    if SectionType.CARRIER not in sections:
        return 0
    carrier = box.unpack_carrier(sections[SectionType.CARRIER])
    return carrier.nbits // 8 if carrier.mode is CarrierMode.INITIAL else 0


def _coded(sections: Sections, blobs: Sequence[memoryview]) -> int:
    if SectionType.SPAN in sections:
        return sum(map(len, blobs))
    return max(0, sum(len(sections.get(kind, b"")) for kind in CODED) - _in_stack(sections))


def _share(found: _Object, member: int | None) -> int:
    if member is None:
        return len(found.data)
    even, left = divmod(len(found.data), found.count)
    return even + (left if member == 0 else 0)


# --- a stego object's record ---


def _export(gw: Gateway, key: str, data: bytes, digest: str) -> FoundExport | None:
    """None where the patient's key is destroyed: nothing of it is left to be known."""
    try:
        parsed = parse_restoration_envelope(data)
    except SealError as error:
        raise IntegrityError("container-damaged", "the context is broken") from error
    key_ids = [wrap_kek_id(wrap) for wrap in parsed.wraps if is_ring_wrap(wrap)]
    if any(_destroyed(gw, key_id) for key_id in key_ids):
        return None
    opened = open_restoration(data, gw.keys)
    if opened is None:  # cannot be: the sections are those of a record
        raise IntegrityError("not-restoration", "this archive object does not restore a stego object")
    context = parsed.context
    return FoundExport(
        opened.record.file_sha256, UNKNOWN_PLACE, context.mode, context.object_id.hex(),
        stego_uid(context.object_id, gw.keys.pseudonym_key()), key, digest, len(data),
        tuple(wrap.hex() for wrap in parsed.wraps), moment(opened.record.received_at),
    )  # fmt: skip
