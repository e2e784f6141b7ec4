"""QIDO-RS query parsing and DICOM JSON, and the Accept header."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadUID
from gateway.index_search import COLUMNS
from service.media import accepts, parse_accept, wants_dicom, wants_image
from service.problems import HttpProblem
from service.qido import MAX_LIMIT, RETURNED, SEARCHABLE, parse_query, to_dicom_json


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
    assert (query.limit, query.offset, query.fuzzy, query.include) == (5, 10, True, {"StudyDescription", "Rows"})


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
            st.one_of(st.sampled_from([*SEARCHABLE["instance"], "limit", "includefield"]), st.text(max_size=12)),
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
        assert set(query.filters) <= set(SEARCHABLE["instance"])


def test_every_searchable_and_returned_keyword_is_a_dicom_keyword() -> None:
    for level, keywords in RETURNED.items():
        answer = to_dicom_json(dict.fromkeys(keywords, None))
        assert len(answer) == len(keywords), level


def test_the_index_has_a_column_for_every_searchable_keyword() -> None:
    assert set(SEARCHABLE["instance"]) - set(COLUMNS) == {"ModalitiesInStudy"}


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
    ("header", "expected"),
    [
        (None, (True, frozenset())),
        ("*/*", (True, frozenset())),
        ('multipart/related; type="application/dicom"', (True, frozenset())),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', (True, frozenset())),
        (
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80',
            (True, {"1.2.840.10008.1.2.4.80"}),
        ),
        ("application/dicom; transfer-syntax=*", (False, frozenset())),
        ('application/dicom;q=0.5, multipart/related;type="application/dicom";q=0.9', (True, frozenset())),
        ('text/html, multipart/related; type="application/dicom"', (True, frozenset())),
        ("application/*", (False, frozenset())),
    ],
)
def test_accept_of_instances(header: str | None, expected: tuple[bool, frozenset[str]]) -> None:
    assert wants_dicom(header) == expected


def test_several_instances_come_as_multipart_or_not_at_all() -> None:
    both = 'application/dicom; transfer-syntax=*, multipart/related; type="application/dicom"; transfer-syntax=*; q=0.5'
    assert wants_dicom(both) == (False, frozenset())
    assert wants_dicom(both, many=True) == (True, frozenset())
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
        wants_image("image/gif")


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
