"""Study ledger, corrections and rejections in the index: on SQLite and, where there is one, PostgreSQL the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset

from gateway import audit, index_correction
from gateway.errors import InvalidInstance, NotFound
from gateway.index import CandidateFacts, Index, InstanceRow, NewInstance
from gateway.index_schema import rejection
from gateway.instance import Form
from gateway.study_state import Evidence
from tests.fakes import CT, EXPLICIT_LE, FakeClock

QUIET = 60.0


def digest(of: object) -> str:
    return sha256(str(of).encode()).hexdigest()


def receive(index: Index, number: int, study: str | None = "1.1", **attributes: str) -> InstanceRow:
    new = NewInstance(
        sop_uid=f"1.9.{number}", sop_class=CT, study_uid=study, series_uid="1.1.1", source="dimse",
        transfer_syntax=EXPLICIT_LE, digest=digest(number), dataset_digest=digest(("data", number)), size=10,
        calling_ae="MODALITY", priority=5,
    )  # fmt: skip
    row = index.add_received(new).row
    if attributes:
        ds = Dataset()
        ds.StudyInstanceUID = study or attributes.pop("StudyInstanceUID", "")
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        values = {each.keyword: str(each.value) for each in ds}
        index.set_attributes(row.id, values, json.dumps(dict(sorted(ds.to_json_dict().items()))))
    return index.get(row.id)


def archive(index: Index, row: InstanceRow, *destinations: str) -> None:
    candidate = CandidateFacts(digest("c"), 4, Form.CODED, None, f"2.25.{row.id}", wraps=["00"])
    index.claim(row.id, "w", 60)
    index.set_candidate(row.id, "w", candidate)
    index.set_verified(row.id, "w")
    index.set_archived(row.id, "w", f"{row.id}.dcm", candidate.digest, 4, destinations)


def look(index: Index) -> list[tuple[str, str | None, int]]:
    """Run the duty; the events that it made."""
    before = index.last_event()
    index.studies_find()
    index.studies_judge(QUIET)
    return [(each.kind, each.destination, each.count) for each in index.study_events(before)]


def state(index: Index, study: str = "1.1") -> dict[str, Any]:
    return index.study_facts([study])[study].describe(QUIET, index.now())


# --- the ledger ---


def test_a_study_on_its_way_and_each_event_once(index: Index, clock: FakeClock) -> None:
    rows = [receive(index, 1), receive(index, 2)]
    assert look(index) == [("received", None, 2)]
    assert look(index) == []
    archive(index, rows[0], "pacs", "vna")
    assert look(index) == []  # archived, but nobody knows that this is all
    assert state(index)["state"] == "receiving"
    clock.advance(QUIET)
    assert look(index) == [("complete", None, 2)]
    assert state(index)["completeness_by"]["kind"] == "quiet"
    archive(index, rows[1], "pacs", "vna")
    assert look(index) == [("archived", None, 2)]
    for row in rows:
        to_pacs, to_vna = sorted(index.forwards(row.id), key=lambda each: each.destination)
        index.forward_claim(to_pacs.id, "f", 60)
        index.forward_done(to_pacs.id, "f", "accepted")
        index.forward_claim(to_vna.id, "f", 60)
        index.forward_failed(to_vna.id, "f", "refused", due_at=None)
    assert look(index) == [("forwarded", "pacs", 2), ("failed", "vna", 2)]
    facts = state(index)
    assert (facts["state"], facts["archived"], facts["last_archived_at"]) == ("failed", 2, index.now())
    assert [(each["destination"], each["sent"], each["dead"]) for each in facts["deliveries"]] == [
        ("pacs", 2, 0), ("vna", 0, 2)
    ]  # fmt: skip
    assert index.study_list(10, state="failed") == [("1.1", "failed")]
    for number in index.dead_letters():
        index.forward_replay(number, "person")
        index.forward_claim(number, "f", 60)
        index.forward_done(number, "f", "accepted")
    assert look(index) == [("forwarded", "vna", 2)]  # the replay opened the study again
    assert state(index)["state"] == "forwarded"
    receive(index, 3)  # a late image: the study is open again
    assert look(index) == [("received", None, 3)]
    assert state(index)["state"] == "receiving"


def test_a_commitment_by_the_destination_is_the_last_state(index: Index, clock: FakeClock) -> None:
    row = receive(index, 1)
    archive(index, row, "pacs")
    (forward,) = index.forwards(row.id)
    index.forward_claim(forward.id, "f", 60)
    index.forward_done(forward.id, "f", "accepted", sent=(CT, "2.25.7", EXPLICIT_LE), commitment=True)
    clock.advance(QUIET)
    assert [each[0] for each in look(index)] == ["received", "complete", "archived", "forwarded"]
    asked = index.commitment_open("pacs", "1.2.3", limit=10, answer_seconds=60, most=3)
    assert asked is not None
    index.commitment_answered(["pacs"], "1.2.3", {(CT, "2.25.7")}, {}, most=3)
    assert look(index) == [("committed", "pacs", 1)]
    assert state(index)["state"] == "committed"


def test_the_senders_evidence_says_more_than_the_timer(index: Index, clock: FakeClock) -> None:
    receive(index, 1)
    index.study_evidence_add("1.1", "c-find", "PACS", expected=2, missing=1)
    clock.advance(10 * QUIET)
    assert [each[0] for each in look(index)] == ["received", "incomplete"]
    assert state(index)["state"] == "incomplete"
    receive(index, 2)
    assert [each[0] for each in look(index)] == ["complete"]
    assert state(index)["completeness_by"] == {
        "kind": "c-find", "source": "PACS", "expected": 2, "missing": 1, "at": index.now() - 10 * QUIET
    }  # fmt: skip
    receive(index, 3)  # beyond what the sender had: its word is old, the timer must say it
    assert state(index)["completeness"] == "open"
    index.commitment_asked("MODALITY", "1.2.9", [(CT, f"1.9.{n}") for n in (1, 2)], "us", 60, most_open=9)
    assert state(index)["completeness"] == "open"  # of a part
    index.commitment_asked("MODALITY", "1.2.10", [(CT, f"1.9.{n}") for n in (1, 2, 3)], "us", 60, most_open=9)
    told = index.study_facts(["1.1"])["1.1"].evidence
    assert Evidence("storage-commitment", "MODALITY", 3, 0, index.now()) in told
    assert state(index)["completeness_by"]["kind"] == "storage-commitment"


def test_a_study_that_only_the_index_task_could_name_is_found(index: Index) -> None:
    receive(index, 1, study=None, StudyInstanceUID="1.7", PatientID="A")
    assert look(index) == [("received", None, 1)]
    assert index.study_list(10) == [("1.7", "receiving")]


def test_a_subscriber_begins_with_what_comes_and_old_events_go(index: Index, clock: FakeClock) -> None:
    receive(index, 1, "1.1")
    look(index)
    assert index.subscriber_state("ris") == (1, 0, 0.0)
    receive(index, 2, "1.2")
    clock.advance(5)
    look(index)
    assert [each.study_uid for each in index.study_events(1)] == ["1.2"]
    index.subscriber_set("ris", 2, 3, 99.0, "timeout")
    assert index.subscriber_state("ris") == (2, 3, 99.0)
    assert index.study_events_prune(index.now()) == 1
    assert index.study_events_prune(index.now() + 9) == 0  # the newest stays, so that ids go on rising
    assert index.last_event() == 2


def test_a_shredded_study_is_told_of_under_its_pseudonym_only(index: Index) -> None:
    row = receive(index, 1, PatientID="A", PatientName="Doe")
    index.correction_add("admin", {"PatientName": "Roe"}, study_uid="1.1")
    index.corrections_run()
    index.study_evidence_add("1.1", "stow", "RIS", 1)
    look(index)
    index.forget([index.get(row.id)], lambda uid: f"2.25.{len(uid)}", lambda text: digest(text))
    assert index.study_list(10) == []
    assert look(index) == []
    assert {each.study_uid for each in index.study_events(0)} == {"2.25.3"}
    assert index.corrections() == []
    assert index.replacement(row.id) is None


# --- corrections ---


def found(index: Index, **filters: str) -> list[str]:
    return sorted(row["SOPInstanceUID"] for row in index.search("instance", filters))


def metadata(index: Index, row: InstanceRow) -> Dataset:
    text = index.metadata(row.id)
    assert text is not None
    return Dataset.from_json(text)


def test_a_merge_shows_at_once_in_what_is_there_and_in_what_comes_and_is_revoked_without_trace(index: Index) -> None:
    first = receive(index, 1, "1.1", PatientID="A", PatientName="Doe^J", PatientSex="F")
    other = receive(index, 2, "1.2", PatientID="B", PatientName="Roe^R")
    before = index.metadata(first.id)
    number = index.correction_add("admin", {"PatientID": "B", "PatientName": "Roe^R"}, patient_id="A")
    assert index.corrections_run() == 1
    late = receive(index, 3, "1.1", PatientID="A", PatientName="Doe^J")
    assert found(index, PatientID="B") == ["1.9.1", "1.9.2", "1.9.3"]
    assert found(index, PatientID="A") == found(index, PatientName="doe*") == []
    shown = metadata(index, first)
    assert (shown.PatientID, shown.PatientName, shown.PatientSex) == ("B", "Roe^R", "F")
    (item,) = shown.OriginalAttributesSequence
    assert item.ReasonForTheAttributeModification == "CORRECT"
    assert item.ModifiedAttributesSequence[0].PatientID == "A"
    assert item.ModifiedAttributesSequence[0].PatientName == "Doe^J"
    assert index.get(other.id).coerced is None
    assert index.get(first.id).coerced == index.get(late.id).coerced is not None
    # to be shredded under the ID that its key belongs to
    assert [row.id for row in index.subject([], "A", "").rows] == [first.id, late.id]
    assert [row.id for row in index.subject([], "B", "").rows] == [other.id]
    index.correction_revoke(number, "admin")
    index.corrections_run()
    assert index.metadata(first.id) == before
    assert found(index, PatientID="A") == found(index, PatientName="doe*") == ["1.9.1", "1.9.3"]
    assert index.get(first.id).coerced is None
    with pytest.raises(NotFound):
        index.correction_revoke(number, "admin")
    events = [each for each in audit.tail(index) if each["event"] == "corrected"]
    assert len(events) == 2
    assert "Roe" not in json.dumps(events)


def test_corrections_work_one_after_another(index: Index) -> None:
    row = receive(index, 1, "1.1", PatientID="A", PatientName="Doe", AccessionNumber="7")
    first = index.correction_add("admin", {"PatientID": "B"}, patient_id="A")
    index.corrections_run()
    index.correction_add("admin", {"PatientID": "C", "PatientName": "Zoe"}, patient_id="B")
    index.correction_add("admin", {"AccessionNumber": ""}, study_uid="1.1")
    index.corrections_run()
    shown = metadata(index, row)
    assert (shown.PatientID, shown.PatientName, shown.AccessionNumber) == ("C", "Zoe", "")
    assert len(shown.OriginalAttributesSequence) == 3
    index.correction_revoke(first, "admin")  # then the second does not concern it either
    index.corrections_run()
    assert (metadata(index, row).PatientID, metadata(index, row).PatientName) == ("A", "Doe")
    assert metadata(index, row).AccessionNumber == ""


def test_a_correction_revoked_while_it_is_brought_in_leaves_no_trace(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [receive(index, number, "1.1", PatientID="A") for number in (1, 2)]
    number = index.correction_add("admin", {"PatientID": "B"}, patient_id="A")
    real, written = index.write, []

    @contextmanager
    def write(**options: bool) -> Iterator[sa.Connection]:
        with real(**options) as conn:
            yield conn
        written.append(1)
        if len(written) == 1:  # the first object is corrected, the second not yet
            index.correction_revoke(number, "admin")

    monkeypatch.setattr(index_correction, "PAGE", 1)
    monkeypatch.setattr(index, "write", write)
    index.corrections_run()
    monkeypatch.undo()
    index.corrections_run()
    assert [metadata(index, row).PatientID for row in rows] == ["A", "A"]
    assert [index.get(row.id).coerced for row in rows] == [None, None]
    assert index.corrections_run() == 0


def test_an_issuer_tells_two_patients_of_one_id_apart(index: Index) -> None:
    mine = receive(index, 1, "1.1", PatientID="A", IssuerOfPatientID="X")
    theirs = receive(index, 2, "1.2", PatientID="A", IssuerOfPatientID="Y")
    index.correction_add("admin", {"PatientID": "B"}, patient_id="A", issuer="X")
    index.corrections_run()
    assert (metadata(index, mine).PatientID, metadata(index, theirs).PatientID) == ("B", "A")


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, {"study_uid": "1.1"}),
        ({"PixelData": "x"}, {"study_uid": "1.1"}),
        ({"PatientID": ""}, {"patient_id": "A"}),
        ({"PatientID": "A"}, {"patient_id": "A"}),
        ({"PatientBirthDate": "1 May"}, {"study_uid": "1.1"}),
        ({"PatientName": "a" * 65}, {"study_uid": "1.1"}),
        ({"PatientName": "a\\b"}, {"study_uid": "1.1"}),
        ({"PatientName": 7}, {"study_uid": "1.1"}),
        ({"PatientName": "Doe"}, {}),
        ({"PatientName": "Doe"}, {"study_uid": "1.1", "patient_id": "A"}),
    ],
)
def test_what_cannot_be_written_is_refused_without_being_repeated(
    index: Index, changes: dict[str, Any], target: dict[str, str]
) -> None:
    with pytest.raises(InvalidInstance, match="correct|PatientName|PatientBirthDate|merged") as caught:
        index.correction_add("admin", changes, **target)
    assert "1 May" not in str(caught.value)


# --- rejections ---


def test_a_note_hides_what_it_names_now_and_later_until_it_is_revoked(index: Index) -> None:
    first = receive(index, 1, PatientID="A")
    receive(index, 2, PatientID="A")
    note = receive(index, 9, PatientID="A")
    named = [("1.1", "1.9.1"), ("1.1", "1.9.3"), ("1.1", note.sop_uid), ("1.2", "1.9.2")]
    assert index.rejection_add(note.id, "113037", named, quality="show") == 3
    assert index.rejection_add(note.id, "113037", named, quality="show") == 0
    late = receive(index, 3, PatientID="A")
    assert found(index, PatientID="A") == ["1.9.2", note.sop_uid]  # 1.9.2 was named in another study
    assert index.by_sop("1.9.1") is None
    assert [row.sop_uid for row in index.by_study("1.1")] == ["1.9.2", note.sop_uid]
    assert index.by_digest(first.digest) == index.get(first.id)  # nothing is gone
    assert [(each["code"], each["instances"], each["hidden"]) for each in index.rejections()] == [("113037", 3, 3)]
    assert state(index)["hidden"] == 2
    index.rejection_revoke(note.id, "admin")
    assert index.by_sop("1.9.1") == index.get(first.id)
    assert index.by_sop("1.9.3") == index.get(late.id)
    with pytest.raises(NotFound):
        index.rejection_revoke(note.id, "admin")


def test_a_note_of_who_may_not_reject_hides_nothing_and_raises_an_alert(index: Index) -> None:
    receive(index, 1, PatientID="A")
    note = receive(index, 9, PatientID="A")
    assert index.rejection_add(note.id, "113037", [("1.1", "1.9.1")], quality="hide", allowed=False) == 1
    assert index.by_sop("1.9.1") is not None and [each["hidden"] for each in index.rejections()] == [0]
    assert [alert.kind for alert in index.alerts()] == ["rejection-refused"]


def test_what_was_rejected_for_quality_reasons_is_hidden_by_choice(index: Index) -> None:
    receive(index, 1, PatientID="A")
    note = receive(index, 9, PatientID="A")
    index.rejection_add(note.id, "113001", [("1.1", "1.9.1")], quality="show")
    assert index.by_sop("1.9.1") is not None
    other = receive(index, 10, PatientID="A")
    index.rejection_add(other.id, "113001", [("1.1", "1.9.1")], quality="hide")
    assert index.by_sop("1.9.1") is None


def test_what_a_note_hides_stays_hidden_under_pseudonyms_once_it_is_shredded(index: Index) -> None:
    row, note = receive(index, 1, PatientID="A"), receive(index, 9, PatientID="A")
    index.rejection_add(note.id, "113037", [("1.1", "1.9.1"), ("1.1", "1.9.404")], quality="show")
    rows = [index.get(row.id), index.get(note.id)]
    index.forget(rows, lambda uid: "2.25." + uid.replace(".", "0"), lambda text: digest(text))
    with index.read() as conn:
        kept = {(each.study_uid, each.sop_uid) for each in conn.execute(sa.select(rejection))}
    assert kept == {("2.25.101", "2.25.10901"), ("2.25.101", "2.25.1090404")}
    assert index.by_sop(index.get(row.id).sop_uid) is None
