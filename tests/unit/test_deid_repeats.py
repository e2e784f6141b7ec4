"""Attributes that the standard's table retains, or does not know, must not repeat what de-identification took away."""

from __future__ import annotations

import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tests.object_makers import header
from tests.unit.deid_makers import KEY, TELLING_UID, reread, with_element, written
from worker.deid import Profile, deidentify, reidentify, separate
from worker.deid_values import clean_words

#: a text that Table E.1-1 does not list
RETAINED = 0x00180024  # Sequence Name, SH
RETAINED_LONG = 0x00201040  # Position Reference Indicator, LO


def cleaned(source: Dataset, profile: Profile = Profile()) -> Dataset:  # noqa: B008  # frozen
    before = written(source)
    done = separate(source, profile, KEY)
    assert written(reidentify(done.dataset, done.removed)) == before
    return done.dataset


def retained(text: str, **changes: object) -> str:
    """What becomes of a retained text in the data set of this patient."""
    return str(cleaned(with_element(DataElement(RETAINED_LONG, "LO", text), **changes))[RETAINED_LONG].value)


# --- the patient's own names and numbers, also as a part of something else ---


@pytest.mark.parametrize(
    ("text", "changes", "secret"),
    [
        ("QUASTENFLOSSER_T1", {}, "QUASTENFLOSSER"),
        ("t1quastenflosserwilhelmine", {}, "quastenflosser"),
        ("LEE_T1", {"PatientName": "Lee^Ann"}, "LEE"),
        ("no12345678x", {"PatientID": "12345678"}, "12345678"),
        ("plan 12345678", {"PatientID": "123-45-678"}, "12345678"),
        ("plan 123 45 678", {"PatientID": "123-45-678"}, "45 678"),
        ("plan 123-45-678", {"PatientID": "12345678"}, "45-678"),
        ("born 19410923", {}, "19410923"),
        ("order ACC9938812", {}, "9938812"),
        ("MUELLER mit M\xfcller", {"PatientName": "M\xfcller^Eva", "SpecificCharacterSet": "ISO_IR 100"}, "M\xfcller"),
        ("M\xdcLLER", {"PatientName": "Muller^Eva", "SpecificCharacterSet": "ISO_IR 100"}, "LLER"),
        ("\u5c71\u7530\u69d8", {"PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce",
                                  "SpecificCharacterSet": "ISO_IR 192"}, "\u5c71\u7530"),
        ("\u5c71\u7530\u592a\u90ce\u69d8", {"PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce",
                                              "SpecificCharacterSet": "ISO_IR 192"}, "\u592a\u90ce"),
    ],
)  # fmt: skip
def test_a_retained_text_holds_no_part_that_is_the_patients(text: str, changes: dict[str, object], secret: str) -> None:
    assert secret.lower() not in retained(text, **changes).lower()


def test_names_and_numbers_that_stand_only_in_nested_items_are_the_patients_too() -> None:
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = "OTHER-55501", "TEXT"
    request = Dataset()
    request.AccessionNumber = "REQ4455667"
    earlier = Dataset()
    earlier.PatientName = "Maienkaefer^Rosa"
    changed = Dataset()
    changed.ModifiedAttributesSequence = [earlier]
    source = header(
        OtherPatientIDsSequence=[other], RequestAttributesSequence=[request], OriginalAttributesSequence=[changed]
    )
    source[RETAINED_LONG] = DataElement(RETAINED_LONG, "LO", "head 55501 REQ4455667 maienkaefer prone")
    text = str(cleaned(reread(source))[RETAINED_LONG].value)
    assert not any(secret in text.lower() for secret in ("55501", "4455667", "maienkaefer")), text


@pytest.mark.parametrize("text", ["prone head first", "T1w 3D 1.25mm", "B30f", "iso center", "12 of 345"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert retained(text) == text


def test_a_patients_number_does_not_stand_in_a_file_name_or_a_code_string() -> None:
    patient, item = Dataset(), Dataset()
    patient.DirectoryRecordType, patient.PatientID = "PATIENT", "OTHER-88812"
    item.DirectoryRecordType, item.ReferencedFileID = "IMAGE", ["77654033", "CR1", "6154"]
    item.PositionReferenceIndicator = "other88812"
    source = header(PatientID="77654033", ImageType=["ORIGINAL", "PRIMARY", "77654033"])
    source[0x00041220] = DataElement(0x00041220, "SQ", [patient, item])
    out = cleaned(reread(source))
    assert b"77654033" not in written(out) and b"88812" not in written(out)
    assert list(out.ImageType)[:2] == ["ORIGINAL", "PRIMARY"]


def test_measures_are_not_cut_out_of_numbers() -> None:
    assert clean_words("77654033mm 5mm head", ()) == "5mm head"


# --- UIDs and addresses inside texts ---


@pytest.mark.parametrize(
    ("tag", "vr", "text"),
    [
        (0x0040E001, "ST", f"{TELLING_UID}^4711"),
        (RETAINED_LONG, "LO", f"ref {TELLING_UID}"),
        (0x00081190, "UR", f"https://pacs.example.org/studies/{TELLING_UID}"),
        (0x0040E010, "UR", f"https://pacs.example.org/wado?objectUID={TELLING_UID}"),
    ],
)
def test_no_text_holds_a_uid_and_no_address_stays(tag: int, vr: str, text: str) -> None:
    file = written(cleaned(with_element(DataElement(tag, vr, text))))
    assert TELLING_UID.encode() not in file and b"pacs.example" not in file


def test_uids_in_texts_stay_where_uids_are_retained() -> None:
    source = with_element(DataElement(RETAINED_LONG, "LO", "ref 1.2.826.0.1.3680043.8.498.1"))
    assert "1.2.826.0.1.3680043.8.498.1" in str(cleaned(source, Profile(retain_uids=True))[RETAINED_LONG].value)


# --- attributes that no line lists and that identify all the same ---


@pytest.mark.parametrize(
    "tag",
    [0x00100033, 0x00100034, 0x00401006, 0x00401007, 0x00402006, 0x00402007, 0x00400031, 0x00400032, 0x00400400,
     0x00181803, 0x00880130],
    ids=lambda tag: f"{tag:08x}",
)  # fmt: skip
def test_identifying_attributes_that_no_line_lists_go(tag: int) -> None:
    source = with_element(DataElement(tag, "LO", "S41-09-23"))
    assert Tag(tag) not in cleaned(source)


@pytest.mark.parametrize("tag", [0x00000600, 0x00001030, 0x00020016, 0x00020100, 0x00020102], ids=lambda t: f"{t:08x}")
def test_command_and_file_meta_elements_in_a_data_set_go(tag: int) -> None:
    source = header()
    source[tag] = DataElement(tag, "OB" if tag == 0x00020102 else "UI" if tag == 0x00020100 else "AE", b"1.2.3.4")
    assert Tag(tag) not in deidentify(source, Profile(), KEY).dataset
