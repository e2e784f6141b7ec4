"""The envelope: a Raw Data object that tells nothing of the source, and survives what a PACS does to a header."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ImplicitVRLittleEndian

from gateway.errors import IntegrityError
from worker import envelope as module
from worker.envelope import CREATOR_VERSION_UID, PRIVATE_GROUP, Source, build_envelope, envelope_uid, parse_envelope

KEY = bytes(range(32))
SOURCE = Source("ab" * 32, "PID 1", "1.2.3.4.5", "1.2.3.4.5.6", "1.2.3.4.5.6.7", "1.2.840.10008.5.1.4.1.1.2")
CONTAINER = bytes(range(256)) * 5 + b"odd"
PIXELS = "cd" * 32


def built(**changes: str) -> bytes:
    return build_envelope(CONTAINER, replace(SOURCE, **changes), PIXELS, KEY)


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def rewritten(ds: Dataset, **options: object) -> bytes:
    out = io.BytesIO()
    dcmwrite(out, ds, **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_comes_back() -> None:
    found = parse_envelope(built())
    assert bytes(found.container) == CONTAINER
    assert found.pixel_sha256 == PIXELS


def test_has_what_raw_data_needs() -> None:
    """Type 1 present with a value, Type 2 present (PS3.3 A.37.3, C.19)."""
    ds = read(built())
    one = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ContentDate ContentTime "
        "CreatorVersionUID"
    )
    two = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
        "AccessionNumber SeriesNumber Manufacturer AcquisitionContextSequence InstanceNumber"
    )
    assert all(ds.get(name) for name in one.split())
    assert all(name in ds for name in two.split())
    assert ds.CreatorVersionUID == CREATOR_VERSION_UID
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    reference = ds.ReferencedInstanceSequence[0]
    assert reference.ReferencedSOPClassUID == SOURCE.sop_class
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue
    tags = [element.tag for element in ds]
    assert tags == sorted(tags)


def test_uids_are_keyed_stable_and_valid() -> None:
    first, second = read(built()), read(built())
    assert first == second
    uids = [first.SOPInstanceUID, first.StudyInstanceUID, first.SeriesInstanceUID]
    uids.append(first.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)
    assert len(set(uids)) == 4
    assert all(re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid) for uid in uids)
    assert first.SOPInstanceUID == envelope_uid(SOURCE.file_sha256, KEY)
    other = read(build_envelope(CONTAINER, SOURCE, PIXELS, bytes(32)))
    assert not set(uids) & {other.SOPInstanceUID, other.StudyInstanceUID, other.SeriesInstanceUID}


def test_one_study_is_one_patient_and_our_series_is_its_own() -> None:
    first, second = read(built()), read(built(sop_uid="1.2.9", file_sha256="ef" * 32))
    assert (first.StudyInstanceUID, first.PatientID) == (second.StudyInstanceUID, second.PatientID)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    nameless = [read(built(patient_id="", sop_uid=uid)) for uid in ("1.2.8", "1.2.9")]
    assert nameless[0].PatientID == nameless[1].PatientID != first.PatientID


def test_missing_identifiers_and_private_classes_give_a_valid_object() -> None:
    ds = read(built(study_uid="", series_uid="", sop_uid="", patient_id="", sop_class="1.3.12.2.1107.5.9.1"))
    assert ds.StudyInstanceUID and ds.SeriesInstanceUID and ds.PatientID
    assert ds.ReferencedInstanceSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.66"


def test_survives_implicit_vr() -> None:
    ds = read(built())
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert bytes(parse_envelope(rewritten(ds, implicit_vr=True, little_endian=True)).container) == CONTAINER


def test_survives_vr_un_a_moved_block_and_a_rewritten_header() -> None:
    ds = read(built())
    changed = Dataset()
    changed.file_meta = ds.file_meta
    for element in ds:
        if element.tag.group != PRIVATE_GROUP:
            changed.add(element)
    changed.PatientName = "Somebody^Else"
    changed.StudyID = "77"
    changed.add_new((PRIVATE_GROUP, 0x10), "LO", "SOMEBODY ELSE")
    changed.add_new((PRIVATE_GROUP, 0x1010), "LO", "not ours")
    changed.add_new((PRIVATE_GROUP, 0x42), "LO", "PALIMPSEST ARCHIVE")
    for number in (0x01, 0x02, 0x03, 0x04, 0x10):
        value = ds[(PRIVATE_GROUP, 0x1000 | number)].value
        changed.add_new((PRIVATE_GROUP, 0x4200 | number), "UN", value if isinstance(value, bytes) else value.encode())
    assert bytes(parse_envelope(rewritten(changed)).container) == CONTAINER


def test_survives_the_loss_of_preamble_and_meta() -> None:
    data = built()
    bare = data[144 + read(data).file_meta.FileMetaInformationGroupLength :]
    assert bytes(parse_envelope(bare).container) == CONTAINER


def test_large_containers_are_cut_into_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    data = built()
    assert len(read(data)[(PRIVATE_GROUP, 0x1011)].value) == 100
    assert bytes(parse_envelope(data).container) == CONTAINER


def test_damage_is_named() -> None:
    data = built()
    at = data.index(CONTAINER)
    broken = bytearray(data)
    broken[at + 50] ^= 1
    cases = {bytes(broken): "envelope-damaged", data[:-200]: "envelope-damaged", b"": "not-an-envelope"}
    cases[data.replace(b"PALIMPSEST ARCHIVE", b"PALIMPSEST ARCHIVF")] = "not-an-envelope"
    for given, reason in cases.items():
        with pytest.raises(IntegrityError) as caught:
            parse_envelope(given)
        assert caught.value.reason == reason
