"""Identifiers of C-FIND, C-MOVE and C-GET: the hierarchy, the forms of keys, and hostile bytes."""

from __future__ import annotations

import random
from io import BytesIO
from typing import Any

import pytest
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from service.listener_identifier import BadIdentifier, Find, Identifier, for_find, for_retrieve, read_identifier
from service.listener_query import find_response
from tests.fakes import element

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, of what is sent wrong on purpose

EXPLICIT, IMPLICIT = UID("1.2.840.10008.1.2.1"), UID("1.2.840.10008.1.2")


def find(level: str, root: Any = "study", relational: bool = False, **keys: str) -> Find:
    return for_find(root, Identifier(level, keys, 0, ""), relational=relational)


def test_an_identifier_is_read_in_its_character_set() -> None:
    data = (
        element(0x00080005, "CS", b"ISO_IR 100")
        + element(0x00080052, "CS", b"STUDY")
        + element(0x00100010, "PN", "Müller^Jörg".encode("latin-1"))
        + element(0x00100020, "LO", b"A1 ")
        + element(0x0020000D, "UI", b"1.2\\1.3")
        + element(0x00090010, "LO", b"PRIVATE")
    )
    asked = read_identifier(BytesIO(data), EXPLICIT)
    keys = {"PatientName": "Müller^Jörg", "PatientID": "A1", "StudyInstanceUID": "1.2\\1.3"}
    assert (asked.level, asked.keys, asked.unknown, asked.charset) == ("STUDY", keys, 1, "ISO_IR 100")


@pytest.mark.parametrize("charset", [b"ISO IR 192", b"nonsense"])
def test_misspelt_character_sets_do_not_stop_a_query(charset: bytes) -> None:
    data = element(0x00080005, "CS", charset, explicit=False)
    data += element(0x00100010, "PN", "Åsa".encode(), explicit=False)
    assert read_identifier(BytesIO(data), IMPLICIT).keys["PatientName"] == "Åsa"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_hostile_bytes_are_refused_or_read_and_never_raise_anything_else(syntax: UID) -> None:
    good = b"".join(
        element(tag, vr, value, explicit=not syntax.is_implicit_VR)
        for tag, vr, value in ((0x00080052, "CS", b"IMAGE"), (0x00080018, "UI", b"1.2"), (0x0020000D, "UI", b"1.3"))
    )
    deep = (
        b"\x40\x00\x75\x02"
        + (b"" if syntax.is_implicit_VR else b"SQ\0\0")
        + b"\xff" * 4
        + b"\xfe\xff\x00\xe0"
        + b"\xff" * 4
    ) * 2000  # noqa: E501
    generator = random.Random(7)
    cases = [b"", b"\0" * 7, deep, good[:-3], *(good[:n] + generator.randbytes(60) for n in range(len(good)))]
    for case in cases:
        try:
            asked = read_identifier(BytesIO(case), syntax)
            for_retrieve("study", asked, relational=False)
        except BadIdentifier as error:
            assert error.dimse_status == 0xA900 and error.reason


def test_a_hierarchical_query_needs_one_key_of_each_level_above() -> None:
    assert find("SERIES", StudyInstanceUID="1.2").filters == {"StudyInstanceUID": "1.2"}
    assert find("STUDY", "patient", PatientID="P").returned == ("PatientID", "StudyInstanceUID")
    assert find("SERIES", relational=True, Modality="CT").filters == {"Modality": "CT"}


@pytest.mark.parametrize(
    ("root", "level", "keys", "reason"),
    [
        ("study", "PATIENT", {}, "bad-level"),
        ("study", "", {}, "bad-level"),
        ("study", "SERIES", {}, "missing-unique-key"),
        ("study", "SERIES", {"StudyInstanceUID": "*"}, "bad-uid"),
        ("study", "SERIES", {"StudyInstanceUID": "1.2\\1.3"}, "not-a-single-value"),
        ("study", "IMAGE", {"StudyInstanceUID": "1.2"}, "missing-unique-key"),
        ("patient", "STUDY", {"PatientID": "A*"}, "not-a-single-value"),
        ("study", "STUDY", {"Modality": "CT"}, "key-below-level"),
        ("study", "STUDY", {"StudyDate": "2020-01-01"}, "bad-value"),
        ("study", "STUDY", {"StudyDate": "2020*"}, "bad-value"),
        ("study", "STUDY", {"StudyTime": "1"}, "bad-value"),
        ("study", "STUDY", {"StudyInstanceUID": "1.2.x"}, "bad-uid"),
        ("study", "STUDY", {"PatientID": "a\0b"}, "bad-value"),
        ("study", "STUDY", {"PatientID": "a\\b"}, "many-values"),
        ("study", "STUDY", {"PatientName": "x" * 2000}, "bad-value"),
        ("study", "SERIES", {"StudyInstanceUID": "1.2", "SeriesNumber": "1*"}, "bad-value"),
        ("study", "STUDY", {"StudyInstanceUID": "\\".join(["1.2"] * 10_001)}, "too-many-uids"),
    ],
)
def test_what_a_model_does_not_allow_is_named(root: Any, level: str, keys: dict[str, str], reason: str) -> None:
    with pytest.raises(BadIdentifier) as caught:
        find(level, root, **keys)
    assert caught.value.reason == reason
    assert not any(value and len(value) > 3 and value in caught.value.message for value in keys.values())


def test_unsupported_keys_are_said_and_universal_ones_match_all() -> None:
    asked = find("STUDY", PatientName="*", StudyDate="", InstitutionName="", NumberOfStudyRelatedSeries="")
    assert asked.filters == {} and asked.partial
    assert "InstitutionName" not in asked.returned and "NumberOfStudyRelatedSeries" in asked.returned
    assert not find("STUDY", PatientName="*", ModalitiesInStudy="CT\\MR", RetrieveAETitle="").partial


def test_a_retrieve_takes_unique_keys_and_nothing_else() -> None:
    keys = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4\\1.5", "PatientName": ""}
    assert for_retrieve("study", Identifier("IMAGE", keys, 0, ""), relational=False).unique == {
        "StudyInstanceUID": ("1.2",), "SeriesInstanceUID": ("1.3",), "SOPInstanceUID": ("1.4", "1.5")
    }  # fmt: skip
    alone = Identifier("IMAGE", {"SOPInstanceUID": "1.4"}, 0, "")
    assert for_retrieve("study", alone, relational=True).unique == {"SOPInstanceUID": ("1.4",)}
    for level, wrong in (
        ("STUDY", {}),
        ("STUDY", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}),
        ("STUDY", {"StudyInstanceUID": "1.2", "PatientName": "A"}),
        ("SERIES", {"SeriesInstanceUID": "1.3"}),
    ):
        with pytest.raises(BadIdentifier):
            for_retrieve("study", Identifier(level, wrong, 0, ""), relational=False)


@pytest.mark.parametrize(
    ("asked", "name", "answered"),
    [
        ("", "Doe^Jane", None),
        ("ISO_IR 100", "Müller^Jörg", "ISO_IR 100"),
        ("ISO_IR 100", "Wang^小东", "ISO_IR 192"),
        ("", "Müller^Jörg", "ISO_IR 192"),
        ("\\ISO 2022 IR 87", "Müller", "ISO_IR 192"),
    ],
)
def test_an_answer_is_in_the_set_that_was_asked_in_or_in_utf8(asked: str, name: str, answered: str | None) -> None:
    query = Find("STUDY", {}, ("StudyInstanceUID", "PatientName", "StudyDate", "ModalitiesInStudy"), False, asked)
    row = {"StudyInstanceUID": "1.2", "PatientName": name, "StudyDate": "odd.date", "ModalitiesInStudy": ["CT", "MR"]}
    answer = find_response(query, row, "PALIMPSEST")
    assert answer.get("SpecificCharacterSet") == answered
    assert (answer.QueryRetrieveLevel, answer.RetrieveAETitle, answer.InstanceAvailability) == (
        "STUDY",
        "PALIMPSEST",
        "ONLINE",
    )  # noqa: E501
    back = read_identifier(BytesIO(encode(answer, False, True) or b""), EXPLICIT)
    assert back.keys["PatientName"] == name and back.keys["ModalitiesInStudy"] == "CT\\MR"
