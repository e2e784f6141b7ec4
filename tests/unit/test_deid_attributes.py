"""Attribute by attribute against Table E.1-1: the Basic Profile and each option, flat and nested, and back again."""

from __future__ import annotations

import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tests.unit.deid_makers import KEY, MARK, TELLING, TELLING_UID, reread, telling, vr_of, with_element, written
from worker.deid import Profile, reidentify, separate
from worker.deid_table import OPTIONS, table

ROWS = {int(row["tag"], 16): row for row in table()["rows"] if row["tag"] != "private" and "x" not in row["tag"]}
#: file meta and command elements never stand in a data set; they are tested with the file meta
IN_DATA_SET = sorted(tag for tag in ROWS if tag >> 16 not in (0, 2))
#: a standard sequence without a rule of its own
CARRIER = 0x00540016
REFERENCES = (0x00081110, 0x00081111, 0x00081140, 0x00082112)


def outcome(tag: int, profile: Profile) -> tuple[DataElement | None, bytes]:
    """What becomes of the attribute, and the whole de-identified file; the way back is checked as well."""
    source = with_element(telling(tag))
    before = written(with_element(telling(tag)))
    done = separate(source, profile, KEY)
    assert written(source) == before, "the source was altered"
    assert written(reidentify(done.dataset, done.removed)) == before
    return done.dataset.get(tag), written(done.dataset)


def expected_basic(tag: int, element: DataElement | None, action: str) -> bool:
    vr = vr_of(tag)
    last = action.split("/")[-1]
    if vr == "SQ":
        if last == "U*" or (tag in REFERENCES and action not in ("X", "Z")):
            return element is not None and len(element.value) == 1 and "PatientName" in element.value[0]
        if last == "X" or action == "X/D":
            return element is None
        if "Z" in action:
            return element is not None and not element.value
        return element is not None and len(element.value) == 1
    if last == "X":
        return element is None
    if last == "Z":
        return element is not None and (not element.value or tag == 0x00100010)
    return element is not None and bool(element.value not in (None, "", TELLING.get(vr))) and vr == element.VR


@pytest.mark.parametrize("tag", IN_DATA_SET, ids=lambda tag: f"{tag:08x}")
def test_basic_profile(tag: int) -> None:
    element, file = outcome(tag, Profile())
    assert expected_basic(tag, element, ROWS[tag]["basic"]), element
    assert MARK.encode() not in file and TELLING_UID.encode() not in file
    if ROWS[tag]["basic"] == "U":
        assert element is not None and str(element.value).startswith("2.25.")


def test_basic_profile_holds_in_nested_sequences() -> None:
    """All lines of the table at once, two levels down."""
    inner = Dataset()
    for tag in IN_DATA_SET:
        inner[tag] = telling(tag)
    middle = Dataset()
    middle[CARRIER] = DataElement(CARRIER, "SQ", [inner])
    outer = DataElement(CARRIER, "SQ", [middle])
    source = with_element(outer)
    before = written(with_element(outer))
    done = separate(source, Profile(), KEY)
    file = written(done.dataset)
    assert MARK.encode() not in file and TELLING_UID.encode() not in file
    told = [at for at in range(len(file)) if file[at : at + 10].upper() == b"PALIMPSEST"]
    assert len(told) == 3, "our name stands in file meta, method and Patient's Name only: hidden objects replace these"
    cleaned = done.dataset[CARRIER].value[0][CARRIER].value[0]
    wrong = [f"{t:08x}" for t in IN_DATA_SET
             if not expected_basic(t, cleaned.get(t), ROWS[t]["basic"])]  # fmt: skip
    assert wrong == []
    assert CARRIER in done.removed, "the enclosing attribute of the top level goes into the payload whole"
    assert written(reidentify(done.dataset, done.removed)) == before


def lines_with(option: str) -> list[int]:
    return [tag for tag in IN_DATA_SET if option in (ROWS[tag]["options"] or {})]


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in ("retain_safe_private",)])
def test_every_option_changes_its_lines_and_no_other(option: str) -> None:
    profile = Profile.of([option])
    for tag in IN_DATA_SET:
        action = (ROWS[tag]["options"] or {}).get(option)
        element, _ = outcome(tag, profile) if action else (None, b"")
        if action == "K":
            assert element is not None, f"{tag:08x}"
            assert vr_of(tag) == "SQ" or element.value == telling(tag).value, f"{tag:08x}"
    others = [
        tag for tag in IN_DATA_SET if option not in (ROWS[tag]["options"] or {}) and ROWS[tag]["options"] is not None
    ]
    together = {tag: telling(tag) for tag in others}
    source = Dataset()
    source.SOPClassUID, source.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", TELLING_UID
    for tag, element in together.items():
        source[tag] = element
    done = separate(reread(source), profile, KEY)
    plain = [tag for tag in others if vr_of(tag) != "SQ"]
    wrong = [f"{t:08x}" for t in plain if not expected_basic(t, done.dataset.get(t), ROWS[t]["basic"])]
    assert wrong == []


@pytest.mark.parametrize("tag", lines_with("retain_modified_dates"), ids=lambda tag: f"{tag:08x}")
def test_modified_dates_shift_or_protect(tag: int) -> None:
    element, _ = outcome(tag, Profile(retain_modified_dates=True))
    vr = vr_of(tag)
    if vr in ("DA", "DT"):
        assert element is not None and element.value != TELLING[vr]
        assert str(element.value)[:4].isdigit() and str(element.value)[8:] == TELLING[vr][8:]
    elif vr == "TM":
        assert element is not None and element.value == TELLING["TM"]
    else:
        assert expected_basic(tag, element, ROWS[tag]["basic"])


@pytest.mark.parametrize("tag", lines_with("clean_descriptors"), ids=lambda tag: f"{tag:08x}")
def test_cleaned_descriptors_keep_safe_words_only(tag: int) -> None:
    vr = vr_of(tag)
    if vr not in ("LO", "LT", "SH", "ST", "UC", "UT"):
        element, file = outcome(tag, Profile(clean_descriptors=True))
        assert MARK.encode() not in file
        return
    source = with_element(DataElement(tag, vr, "Head Meier 5mm"))
    element = separate(source, Profile(clean_descriptors=True), KEY).dataset[tag]
    assert element.value == "Head 5mm"
    element, file = outcome(tag, Profile(clean_descriptors=True))
    assert expected_basic(tag, element, ROWS[tag]["basic"]), "with no safe word left the Basic Profile's action holds"
    assert MARK.encode() not in file


def test_file_meta_lines_do_not_survive_in_a_data_set() -> None:
    """Command and file meta elements have no place in a data set; the file meta is made anew."""
    source = with_element(telling(0x00080050))
    source.file_meta.SourceApplicationEntityTitle = MARK
    source.preamble = MARK.encode().ljust(128, b"\0")
    done = separate(source, Profile(), KEY)
    file = written(done.dataset)
    assert MARK.encode() not in file
    assert done.dataset.file_meta.MediaStorageSOPInstanceUID == done.dataset.SOPInstanceUID
    assert done.dataset.file_meta.MediaStorageSOPInstanceUID.startswith("2.25.")
    assert written(reidentify(done.dataset, done.removed)) == written(source)


def test_reread_is_what_the_makers_promise() -> None:
    assert reread(with_element(telling(0x00080050))).AccessionNumber == MARK
