"""The standard's table as data: complete, legal, sourced; and the codes that name profile and options."""

from __future__ import annotations

import re

import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.sr import codedict

from worker.deid_profile import METHOD_CODES, Profile
from worker.deid_table import BASIC_ACTIONS, OPTIONS, Row, find_action, find_row, safe_private, table

ROWS = table()["rows"]


def test_the_table_is_complete_and_every_line_is_legal() -> None:
    tags = [row["tag"] for row in ROWS]
    assert len(tags) == len(set(tags)) == 656
    assert {tag for tag in tags if re.fullmatch("[0-9a-f]{8}", tag) is None} == {
        "50xxxxxx", "60xx3000", "60xx4000", "private"}  # fmt: skip
    assert {row["basic"] for row in ROWS} == BASIC_ACTIONS
    assert all(row["name"] for row in ROWS)
    spoken = [(name, action) for row in ROWS for name, action in (row["options"] or {}).items()]
    assert {name for name, _ in spoken} == set(OPTIONS) and {action for _, action in spoken} == {"K", "C"}


def test_edition_sources_and_differences_are_named() -> None:
    head = table()
    assert "E.1-1" in head["title"] and "2026c" in head["edition"]
    assert all(source["from"] and source["licence"] for source in head["transcriptions"])
    assert len(head["differences"]) == 6 and "differ" in head["checked"]


@pytest.mark.parametrize(
    ("tag", "basic", "option", "action"),
    [
        (0x00100010, "Z", None, None),
        (0x00100020, "Z/D", None, None),
        (0x00080018, "U", "retain_uids", "K"),
        (0x00080020, "Z", "retain_full_dates", "K"),
        (0x00080020, "Z", "retain_modified_dates", "C"),
        (0x0008103E, "X", "clean_descriptors", "C"),
        (0x0040A730, "D", "clean_structured_content", "C"),
        (0x00700001, "D", "clean_graphics", "C"),
        (0x60003000, "X", "clean_graphics", "C"),
        (0x50120010, "X", "clean_graphics", "C"),
        (0x00091010, "X", "retain_safe_private", "C"),
        (0x00101010, "X", "retain_patient_characteristics", "K"),
        (0x00080080, "X/Z/D", "retain_institution_identity", "K"),
        (0x00181000, "X/Z/D", "retain_device_identity", "K"),
        (0x00081140, "X/Z/U*", "retain_uids", "K"),
        (0x00081120, "X", "retain_uids", "K"),
    ],
)  # fmt: skip
def test_known_lines(tag: int, basic: str, option: str | None, action: str | None) -> None:
    row = find_row(tag, dictionary_VR(tag) if dictionary_has_tag(tag) else "")
    assert row is not None and row.basic == basic
    if option is not None:
        assert row.options[option] == action and find_action(row, [option]) == action
    assert find_action(row, []) == basic


def test_of_several_options_the_one_that_tells_least_wins() -> None:
    row = Row("D", {"retain_device_identity": "K", "retain_modified_dates": "C", "retain_uids": "X"})
    assert find_action(row, ["retain_device_identity"]) == "K"
    assert find_action(row, ["retain_device_identity", "retain_modified_dates"]) == "C"
    assert find_action(row, OPTIONS) == "X"


def test_dates_and_names_that_no_line_lists_go_by_their_vr() -> None:
    listed = {row["tag"] for row in ROWS}
    for tag, vr in ((0x0008041F, "DT"), (0x00143077, "TM"), (0x00144076, "DA")):
        assert f"{tag:08x}" not in listed and dictionary_VR(tag) == vr
        row = find_row(tag, vr)
        assert row is not None and not row.listed and find_action(row, ["retain_modified_dates"]) == "C"
    name = find_row(0x00140104, "PN")
    assert name is not None and name.basic == "Z/D"
    assert find_row(0x00280010, "US") is None


def test_lines_newer_than_the_option_columns_have_no_option_but_for_dates() -> None:
    newer = [row for row in ROWS if row["options"] is None]
    assert len(newer) == 33
    comment, moment = find_row(0x00100013, ""), find_row(0x0040A034, "DT")
    assert comment is not None and not comment.options
    assert moment is not None and find_action(moment, ["retain_full_dates"]) == "K"


def test_method_codes_are_those_of_cid_7050() -> None:
    cid7050 = codedict.codes.cid7050
    standard = {code.value: code.meaning for code in (getattr(cid7050, name) for name in cid7050.dir())}
    assert dict(METHOD_CODES.values()) == standard


def test_options_are_named_switches() -> None:
    assert Profile.of(["retain-uids", "clean_graphics"]) == Profile(retain_uids=True, clean_graphics=True)
    assert Profile(retain_uids=True).codes()[0][0] == "113100" and Profile(retain_uids=True).codes()[1][0] == "113110"
    with pytest.raises(ValueError, match="retain_everything.*clean_descriptors"):
        Profile.of(["retain_everything"])
    with pytest.raises(ValueError, match="exclude"):
        Profile(retain_full_dates=True, retain_modified_dates=True)


def test_safe_private_attributes_are_numbers_and_codes_only() -> None:
    assert len(safe_private()) == 84
    assert set(safe_private().values()) <= {"DS", "IS", "CS", "US", "SS", "UL", "SL", "FL", "FD"}
    assert all(group & 1 and 0 <= number <= 0xFF for _, group, number in safe_private())
