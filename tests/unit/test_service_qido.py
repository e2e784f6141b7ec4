"""QIDO-RS query parsing and DICOM JSON, and the Accept header."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadUID
from gateway.matching import COLUMNS
from gateway.matching_stored import StoredKey, stored_match
from gateway.part10 import EXPLICIT_LE
from gateway.transfer_syntaxes import JPEG_LS
from service.media import accepts, parse_accept, wants_dicom, wants_image
from service.problems import HttpProblem
from service.qido import MAX_LIMIT, RETURNED, STORED, parse_query, to_dicom_json
from service.qido_attributes import belongs, tag_of


def test_keywords_tags_wildcards_ranges_and_lists() -> None:
    query = parse_query(
        "instance",
        [
            ("PatientName", "DOE*"), ("00080020", "20200101-20201231"), ("Modality", "CT"),
            ("SOPInstanceUID", "1.2,3.4\\5.6"),
            ("InstanceNumber", "7"), ("PatientID", ""), ("AccessionNumber", "*"),
            ("limit", "5"), ("offset", "10"), ("fuzzymatching", "true"),
            ("includefield", "00081030,Rows,00400275.00400009,nonsense"),
        ],
        {"StudyInstanceUID": "1.2.3"},
    )  # fmt: skip
    assert query.filters == {
        "StudyInstanceUID": "1.2.3", "PatientName": "DOE*", "StudyDate": "20200101-20201231", "Modality": "CT",
        "SOPInstanceUID": "1.2,3.4,5.6", "InstanceNumber": "7",
    }  # fmt: skip
    assert (query.limit, query.offset, query.options.fuzzy) == (5, 10, True)
    assert query.include == {"00081030", "00280010", "00400275"}


@pytest.mark.parametrize("value", ["20200101", "20200101-", "-20200101", "20200101-20200102"])
def test_date_ranges(value: str) -> None:
    assert parse_query("study", [("StudyDate", value)], {}).filters["StudyDate"] == value


@pytest.mark.parametrize(
    ("level", "item", "reason"),
    [
        ("study", ("NoSuchThing", "1"), "unknown-attribute"),
        ("study", ("7FE00010", "1"), "unsupported-attribute"),
        ("study", ("SOPInstanceUID", "1.2"), "unsupported-attribute"),
        ("series", ("InstanceNumber", "1"), "unsupported-attribute"),
        ("study", ("StudyDate", "yesterday"), "bad-value"),
        ("study", ("StudyDate", "-"), "bad-value"),
        ("study", ("StudyTime", "9"), "bad-value"),
        ("series", ("SeriesNumber", "1;drop"), "bad-value"),
        ("study", ("ProtocolName", "x"), "unsupported-attribute"),
        ("instance", ("PixelData", "x"), "unsupported-attribute"),
        ("series", ("RequestAttributesSequence", "x"), "unsupported-attribute"),
        ("instance", ("PatientID.PatientName", "x"), "not-a-sequence"),
        ("instance", (".".join(["00400275"] * 9), "x"), "unknown-attribute"),
        ("instance", ("KVP", "much"), "bad-value"),
        ("study", ("fuzzymatching", "perhaps"), "bad-fuzzymatching"),
        ("study", ("emptyvaluematching", "1"), "bad-emptyvaluematching"),
        ("study", ("PatientName", "a\x00b"), "bad-value"),
        ("study", ("PatientName", "x" * 2000), "bad-value"),
        ("study", ("limit", "-1"), "bad-limit"),
        ("study", ("limit", "1e3"), "bad-limit"),
        ("study", ("offset", "x"), "bad-offset"),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(level: str, item: tuple[str, str], reason: str) -> None:
    with pytest.raises(HttpProblem) as caught:
        parse_query(level, [item], {})
    assert (caught.value.status_code, caught.value.reason) == (400, reason)


def test_uids_of_path_and_query_are_checked() -> None:
    with pytest.raises(BadUID):
        parse_query("study", [("StudyInstanceUID", "1.2,x")], {})
    with pytest.raises(BadUID):
        parse_query("series", [], {"StudyInstanceUID": "../../etc"})
    with pytest.raises(HttpProblem):
        parse_query("series", [("StudyInstanceUID", "1.3")], {"StudyInstanceUID": "1.2"})


def test_limits() -> None:
    assert parse_query("study", [("limit", "999999")], {}).limit == MAX_LIMIT
    assert parse_query("study", [("limit", "0")], {}).limit == 0
    assert parse_query("study", [("includefield", "all")], {}).include_all


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([*COLUMNS, "RequestAttributesSequence.00400009", "KVP", "limit", "includefield"]),
                st.text(max_size=12),
            ),
            st.text(max_size=30),
        ),
        max_size=4,
    )
)
def test_any_query_is_parsed_or_refused_with_a_reason(items: list[tuple[str, str]]) -> None:
    try:
        query = parse_query("instance", items, {})
    except HttpProblem as problem:
        assert problem.status_code == 400 and problem.reason
    except BadUID as error:
        assert error.http_status == 400
    else:
        assert set(query.filters) <= {*COLUMNS, "ModalitiesInStudy", "SOPClassesInStudy"}


def test_every_returned_keyword_is_a_dicom_keyword_of_its_level() -> None:
    for level, keywords in RETURNED.items():
        assert len(to_dicom_json(dict.fromkeys(keywords, None))) == len(keywords), level
        assert all(tag_of(keyword) and belongs(keyword, level) for keyword in STORED[level]), level


def test_keys_outside_the_index_are_for_the_stored_metadata() -> None:
    query = parse_query(
        "series",
        [("00400275.00400009", "SPS*"), ("ProtocolName", "head"), ("Modality", "CT")],
        {"StudyInstanceUID": "1"},
    )
    assert query.keys == (StoredKey(("00400275", "00400009"), "SPS*"), StoredKey(("00181030",), "head"))
    assert query.filters == {"StudyInstanceUID": "1", "Modality": "CT"}
    assert {"00400275", "00181030"} <= query.include


STORED_SET = {
    "00181030": {"vr": "LO", "Value": ["Head routine"]},
    "00180060": {"vr": "DS", "Value": [120.0]},
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]},
    "00400244": {"vr": "DA", "Value": ["20240131"]},
    "00080031": {"vr": "TM", "Value": ["123059.5"]},
    "00081048": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg", "Ideographic": "漢^字"}]},
    "00200052": {"vr": "UI", "Value": ["1.2.3"]},
    "00181000": {"vr": "LO"},
    "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["A1"]}}, {"00400009": {"vr": "SH"}}, None]},
}


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("00181030", "Head*", True), ("00181030", "head*", False), ("00181030", "H?ad routine", True),
        ("00181030", "*x*", False), ("00180060", "120", True), ("00180060", "121", False),
        ("00080008", "PRIMARY", True), ("00400244", "20240101-20240201", True), ("00400244", "-20240130", False),
        ("00400244", "20240131", True), ("00080031", "1200-1230", True), ("00080031", "1231-", False),
        ("00081048", "muller*", True), ("00081048", "漢*", True), ("00081048", "jo*", False),
        ("00200052", "9.9,1.2.3", True), ("00181000", "1", False), ("00189999", "1", False),
        ("00400275.00400009", "A?", True), ("00400275.00400009", "B", False), ("00181030.00400009", "A1", False),
    ],
)  # fmt: skip
def test_matching_of_stored_metadata(path: str, value: str, found: bool) -> None:
    assert stored_match(STORED_SET, StoredKey(tuple(path.split(".")), value)) is found


def test_fuzzy_empty_and_many_values_of_stored_metadata() -> None:
    assert stored_match(STORED_SET, StoredKey(("00081048",), "jor mul"), fuzzy=True)
    assert stored_match(STORED_SET, StoredKey(("00181000",), '""'), empty=True)
    assert not stored_match(STORED_SET, StoredKey(("00181030",), '""'), empty=True)
    assert stored_match(STORED_SET, StoredKey(("00181030",), "x\\Head routine"), multiple=True)


def test_dicom_json() -> None:
    answer = to_dicom_json(
        {
            "PatientName": "Doe^J=漢",
            "NumberOfStudyRelatedSeries": "2",
            "ModalitiesInStudy": ["CT", "MR"],
            "StudyDate": None,
            "Rows": 3,
            "SeriesNumber": "x",
        }
    )
    assert answer["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^J", "Ideographic": "漢"}]}
    assert answer["00201206"] == {"vr": "IS", "Value": [2]}
    assert answer["00080061"] == {"vr": "CS", "Value": ["CT", "MR"]}
    assert answer["00080020"] == {"vr": "DA"}
    assert answer["00280010"] == {"vr": "US", "Value": [3]}
    assert answer["00200011"] == {"vr": "IS"}
    assert list(answer) == sorted(answer)


@pytest.mark.parametrize(
    ("header", "multipart", "first"),
    [
        (None, True, "*"),
        ("*/*", True, "*"),
        ('multipart/related; type="application/dicom"', True, EXPLICIT_LE),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', True, "*"),
        ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80', True, JPEG_LS),
        ("application/dicom; transfer-syntax=*", False, "*"),
        ('application/dicom;q=0.5, multipart/related;type="application/dicom";q=0.9', True, EXPLICIT_LE),
        ('text/html, multipart/related; type="application/dicom"', True, EXPLICIT_LE),
        ("application/*", False, "*"),
    ],
)
def test_accept_of_instances(header: str | None, multipart: bool, first: str) -> None:
    choice = wants_dicom(header)[0]
    assert (choice.multipart, choice.syntaxes[0]) == (multipart, first)


def test_several_instances_come_as_multipart_or_not_at_all() -> None:
    both = 'application/dicom; transfer-syntax=*, multipart/related; type="application/dicom"; transfer-syntax=*; q=0.5'
    assert [choice.multipart for choice in wants_dicom(both)] == [False, True]
    assert [choice.multipart for choice in wants_dicom(both, many=True)] == [True]
    for header in ("application/dicom; transfer-syntax=*", "application/*"):
        with pytest.raises(HttpProblem) as caught:
            wants_dicom(header, many=True)
        assert caught.value.status_code == 406


@pytest.mark.parametrize(
    "header", ["text/html", 'multipart/related; type="application/octet-stream"', "image/png", "application/dicom;q=0"]
)
def test_unacceptable(header: str) -> None:
    with pytest.raises(HttpProblem) as caught:
        wants_dicom(header)
    assert caught.value.status_code == 406


def test_accept_of_images_and_json() -> None:
    assert wants_image("image/png") == ("image/png", "png")
    assert wants_image("image/*") == ("image/jpeg", "jpeg")
    assert wants_image(None) == ("image/jpeg", "jpeg")
    assert (
        accepts("application/dicom+json, application/json", "application/dicom+json", "application/json")
        == "application/dicom+json"
    )
    with pytest.raises(HttpProblem):
        wants_image("image/webp")


HEADERISH = st.text(alphabet="abc/*;=,\"' \\q0.1%*utf8-multipart\x85é", max_size=60)


@settings(max_examples=300, deadline=None)
@given(HEADERISH, st.lists(st.sampled_from(["type*0", "type*", "q", "boundary", "transfer-syntax"]), max_size=3))
def test_any_accept_header_is_parsed_or_refused(text: str, names: list[str]) -> None:
    header = text + "".join(f";{name}=%'x''\"" for name in names)
    for wanted in parse_accept(header):
        assert wanted.essence and 0 < wanted.q <= 1
    try:
        wants_dicom(header)
    except HttpProblem as problem:
        assert problem.status_code == 406
