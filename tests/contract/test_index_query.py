"""What C-FIND, C-MOVE and C-GET ask of the index, on both databases."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256

import pytest
import sqlalchemy as sa

from gateway.errors import InvalidInstance
from gateway.index import Index
from gateway.index_rows import NewInstance
from gateway.index_schema import instance
from gateway.index_search import METADATA_HELD, PAGE, Options

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def index(database_url: str) -> Iterator[Index]:
    made = Index(database_url)
    made.create()
    yield made
    made.close()


def add(index: Index, number: int, study: str, series: str, **attributes: str | int) -> int:
    """An instance, indexed if it has attributes."""
    new = NewInstance(
        sop_uid=f"1.2.9.{number}", sop_class=CT, study_uid=study, series_uid=series,
        transfer_syntax="1.2.840.10008.1.2",
        digest=sha256(b"file %d" % number).hexdigest(), dataset_digest=sha256(b"data %d" % number).hexdigest(), size=9,
        source="dimse", calling_ae="A", priority=5,
    )  # fmt: skip
    row = index.add_received(new).row
    if attributes:
        index.set_attributes(row.id, attributes, "{}", "p")
    return row.id


@pytest.fixture
def patients(index: Index) -> Index:
    add(
        index,
        1,
        "1.1",
        "1.1.1",
        PatientID="A",
        PatientName="Doe",
        StudyDate="20200105",
        StudyTime="101530",
        Modality="CT",
    )
    add(
        index,
        2,
        "1.1",
        "1.1.2",
        PatientID="A",
        PatientName="Doe",
        StudyDate="20200105",
        StudyTime="101530",
        Modality="MR",
    )
    add(
        index,
        3,
        "1.2",
        "1.2.1",
        PatientID="A",
        PatientName="Doe",
        StudyDate="20200107",
        StudyTime="0800",
        Modality="US",
    )
    add(index, 4, "1.3", "1.3.1", PatientID="B", PatientName="Roe", Modality="US")
    add(index, 5, "1.4", "1.4.1", PatientName="Nobody", StudyDate="20200101", Modality="US")
    add(index, 6, "1.5", "1.5.1")
    return index


def found(index: Index, level: str, key: str, filters: dict[str, str], **options: bool) -> list[str]:
    return [row[key] for row in index.matches(level, filters, 100, **options).rows]  # type: ignore[arg-type]


def test_patients_are_told_apart_by_their_id(patients: Index) -> None:
    rows = list(patients.matches("patient", {}, 100).rows)
    assert [row["PatientID"] for row in rows] == ["A", "B"]  # who has no id is nobody's
    counts = ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances")
    assert [rows[0][name] for name in counts] == [2, 3, 3]
    assert found(patients, "patient", "PatientID", {"PatientName": "roe"}) == ["B"]
    assert found(patients, "study", "StudyInstanceUID", {}) == [
        "1.2",
        "1.1",
        "1.4",
        "1.3",
    ]  # newest first, undated last


@pytest.mark.parametrize(
    ("dates", "times", "combined", "studies"),
    [
        ("20200105-20200107", "0900-1100", False, ["1.1"]),
        ("20200105-20200107", "0900-1100", True, ["1.2", "1.1"]),
        ("20200105-20200107", "1100-0700", True, []),
        ("20200105-20200107", "1100-0800", True, ["1.2"]),
        ("20200105-", "1100-", True, ["1.2"]),
        ("-20200105", "-1015", True, ["1.1", "1.4"]),
        ("20200105", "1015", True, ["1.1"]),
    ],
)
def test_date_and_time_as_one_interval(
    patients: Index, dates: str, times: str, combined: bool, studies: list[str]
) -> None:
    filters = {"StudyDate": dates, "StudyTime": times}
    assert found(patients, "study", "StudyInstanceUID", filters, combined=combined) == studies


def test_a_stream_of_matches_is_bounded_and_covers_more_than_a_page(index: Index) -> None:
    for number in range(PAGE + 5):
        add(index, number, "1.1", "1.1.1", InstanceNumber=number)
    matches = index.matches("instance", {}, PAGE + 3)
    assert (matches.count, matches.more) == (PAGE + 3, True)
    assert [row["InstanceNumber"] for row in matches.rows] == list(range(PAGE + 3))
    exact = index.matches("series", {"StudyInstanceUID": "1.1"}, 1)
    assert (exact.count, exact.more) == (1, False)
    late = index.matches("instance", {}, 10)
    with index.write() as conn:
        conn.execute(sa.update(instance).where(instance.c.sop_uid == "1.2.9.3").values(current=False))
    assert [row["InstanceNumber"] for row in late.rows] == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_what_can_be_retrieved_by_unique_keys(patients: Index) -> None:
    def uids(**unique: list[str]) -> list[str]:
        return [item.sop_uid for item in patients.retrievable(unique, 100)]

    assert uids(PatientID=["A"]) == ["1.2.9.1", "1.2.9.2", "1.2.9.3"]
    assert uids(StudyInstanceUID=["1.1", "1.5"]) == ["1.2.9.1", "1.2.9.2", "1.2.9.6"]  # the last is not indexed yet
    assert uids(StudyInstanceUID=["1.1"], SeriesInstanceUID=["1.1.2"]) == ["1.2.9.2"]
    assert uids(StudyInstanceUID=["1.1"], SOPInstanceUID=["1.2.9.3"]) == []
    assert uids(PatientID=["B"], StudyInstanceUID=["1.1"]) == []
    first = patients.retrievable({"StudyInstanceUID": ["1.1"]}, 1)[0]
    assert (first.sop_class, first.study_uid, first.transfer_syntax) == (CT, "1.1", "1.2.840.10008.1.2")


def test_too_many_uids_are_refused(patients: Index) -> None:
    with pytest.raises(InvalidInstance):
        patients.matches("study", {"StudyInstanceUID": ",".join(["1.2"] * 10_001)}, 10)
    for many in ({"ModalitiesInStudy": "," * 1023}, {"PatientID": "\\" * 1023}):
        with pytest.raises(InvalidInstance, match="at most 200 values"):
            patients.page("study", many, Options(multiple=True), limit=1)
    most = "\\".join(["x*"] * 200)
    keys = dict.fromkeys(("PatientID", "AccessionNumber", "StudyID", "ModalitiesInStudy", "SOPClassesInStudy"), most)
    assert patients.page("study", keys, Options(multiple=True), limit=1).rows == []
    assert found(patients, "study", "StudyInstanceUID", {"SOPClassesInStudy": CT, "PatientID": "B"}) == ["1.3"]


def test_a_search_holds_the_metadata_of_few_instances_at_a_time(index: Index) -> None:
    size, count = 1 << 20, 40
    for number in range(count):
        number_of = add(index, number, f"1.{number}", "1.1.1", PatientID="A")
        index.set_attributes(number_of, {"PatientID": "A"}, json.dumps({"00204000": {"Value": ["x" * size]}}))
    tracemalloc.start()
    try:
        page = index.page("study", {}, Options(), limit=count, stored=lambda text: text[:3])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert page.stored == ['{"0'] * count
    assert peak < (METADATA_HELD + 4) * size
