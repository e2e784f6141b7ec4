"""Corrected objects: other header values, every other byte as it was; rejection notes as they are read."""

from __future__ import annotations

import io
import json
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from gateway.coercion import Correction, coerce
from gateway.part10 import read_meta, walk
from tests.object_makers import packaged
from worker.coerce import write_corrected
from worker.indexing import metadata_of, rejected_by

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAMES = (
    "CT_small.dcm",  # explicit, private elements, trailing padding
    "MR_small_bigendian.dcm",
    "rtplan.dcm",  # implicit, no pixels
    "MR_small_RLE.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",
    "SC_rgb_small_odd.dcm",
)
CHANGES = {
    "PatientName": "Roe^Richard",
    "PatientID": "MERGED-1",
    "IssuerOfPatientID": "HOSPITAL",
    "AccessionNumber": "",
}


def corrected(data: bytes, **changes: str) -> tuple[bytes, Dataset]:
    before = pydicom.dcmread(io.BytesIO(data))
    made = coerce("1.2", json.loads(metadata_of(data)), [Correction(1, "1.2", None, None, changes, 1_700_000_000.5)])
    assert made is not None
    out = io.BytesIO()
    write_corrected(data, made.replacement, out.write)
    return out.getvalue(), before


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_correction_differs(name: str) -> None:
    data = packaged(name)
    after, before = corrected(data, **CHANGES)
    dataset = pydicom.dcmread(io.BytesIO(after))
    assert (dataset.PatientName, dataset.PatientID) == ("Roe^Richard", "MERGED-1")
    assert dataset.IssuerOfPatientID == "HOSPITAL"
    assert not dataset.AccessionNumber
    (item,) = dataset.OriginalAttributesSequence
    assert item.AttributeModificationDateTime == "20231114221320.500000+0000"
    assert item.ModifyingSystem == "PALIMPSEST"
    (was,) = item.ModifiedAttributesSequence
    assert str(was.PatientName) == str(before.get("PatientName", ""))
    assert str(was.PatientID) == str(before.get("PatientID", ""))
    changed = {"PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "OriginalAttributesSequence"}
    assert {
        each.keyword for each in dataset if each.tag not in before or dataset[each.tag] != before[each.tag]
    } <= changed
    assert [each.tag for each in before if each.tag not in dataset] == []
    assert dataset.file_meta == before.file_meta


def test_untouched_elements_keep_their_bytes() -> None:
    data = packaged("CT_small.dcm")
    after, _ = corrected(data, PatientID="X")
    old, new = elements(data), elements(after)
    assert {tag for tag in old | new if old.get(tag) != new.get(tag)} == {0x00100020, 0x04000561}
    assert list(new) == sorted(new)


def elements(data: bytes) -> dict[int, bytes]:
    syntax, start = read_meta(data)
    return {each.tag: data[each.offset : each.end] for each in walk(data, syntax, start)}


def with_charset(charset: str, name: str) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(packaged("CT_small.dcm")))
    ds.SpecificCharacterSet, ds.PatientName, ds.StudyDescription = charset, name, "Schädel"
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def test_letters_that_the_files_own_character_set_has_are_written_in_it() -> None:
    after, _ = corrected(with_charset("ISO_IR 100", "Müller^A"), PatientName="Ærø^Bø")
    dataset = pydicom.dcmread(io.BytesIO(after))
    assert (dataset.SpecificCharacterSet, dataset.PatientName) == ("ISO_IR 100", "Ærø^Bø")
    assert "Ærø^Bø".encode("latin-1") in after


def test_letters_that_it_lacks_make_the_header_utf8_and_leave_the_pixels() -> None:
    data = with_charset("ISO_IR 100", "Müller^A")
    after, before = corrected(data, PatientName="Yamada^Tarou=山田^太郎")
    dataset = pydicom.dcmread(io.BytesIO(after))
    assert (dataset.SpecificCharacterSet, dataset.PatientName) == ("ISO_IR 192", "Yamada^Tarou=山田^太郎")
    assert dataset.StudyDescription == "Schädel"
    assert dataset.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientName == "Müller^A"
    assert dataset.PixelData == before.PixelData
    assert {tag for tag, value in elements(data).items() if elements(after).get(tag) != value} >= {
        0x00080005,
        0x00100010,
    }
    assert dataset["PixelData"].VR == before["PixelData"].VR


def test_earlier_original_attributes_stay() -> None:
    once, _ = corrected(packaged("CT_small.dcm"), PatientID="X")
    twice, _ = corrected(once, PatientID="Y")
    items = pydicom.dcmread(io.BytesIO(twice)).OriginalAttributesSequence
    assert [item.ModifiedAttributesSequence[0].PatientID for item in items] == ["1CT1", "X"]


# --- rejection notes ---


def note(code: str, scheme: str = "DCM", **more: Any) -> bytes:
    """A Key Object Selection document that references two instances of study 1.2."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.59", generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2", "1.2.9", "KO"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = code, scheme, "Rejected"
    ds.ConceptNameCodeSequence = [title]
    references = []
    for uid in ("1.2.3.1", "1.2.3.2"):
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
        references.append(reference)
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = "1.2.3", references
    study = Dataset()
    study.StudyInstanceUID, study.ReferencedSeriesSequence = "1.2", [series]
    ds.CurrentRequestedProcedureEvidenceSequence = [study]
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("code", ["113001", "113037", "113038", "113039"])
def test_a_rejection_note_names_what_it_rejects(code: str) -> None:
    assert rejected_by(metadata_of(note(code))) == (code, [("1.2", "1.2.3.1"), ("1.2", "1.2.3.2")])


def test_other_key_objects_reject_nothing() -> None:
    assert rejected_by(metadata_of(note("113000"))) is None
    assert rejected_by(metadata_of(note("113001", "99LOCAL"))) is None
    assert rejected_by("{}") is None
    empty = note("113001", CurrentRequestedProcedureEvidenceSequence=[Dataset()])
    assert rejected_by(metadata_of(empty)) == ("113001", [])
