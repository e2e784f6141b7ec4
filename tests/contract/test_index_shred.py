"""Forgetting a patient in the index: on SQLite and, where TEST_DATABASE_URL names a server, on PostgreSQL the same."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from gateway import database
from gateway.audit import tail
from gateway.blobs import BlobStore
from gateway.errors import LeaseLost, NotFound, OutOfResources, Unavailable
from gateway.index import CandidateFacts, Index, InstanceRow, NewInstance
from gateway.index_rows import Accepted
from gateway.instance import Form, State
from tests.fakes import CT, EXPLICIT_LE


@pytest.fixture
def index(database_url: str) -> Iterator[Index]:
    made = Index(database_url)
    made.create()
    yield made
    made.close()


def digest(of: object) -> str:
    return sha256(str(of).encode()).hexdigest()


def _new(number: int) -> NewInstance:
    return NewInstance(
        sop_uid=f"1.2.3.{number}", sop_class=CT, study_uid=f"1.2.{number}", series_uid="1.2.1", source="stow",
        transfer_syntax=EXPLICIT_LE, digest=digest(number), dataset_digest=digest(("data", number)), size=9,
        calling_ae="T", priority=5,
    )  # fmt: skip


def archived(
    index: Index, number: int, patient: str | None, key: str | None, *, destination: str = "", **facts: object
) -> InstanceRow:
    candidate = CandidateFacts(
        digest=digest(("candidate", number)), size=4, form=Form.CODED, reason=None, envelope_uid=f"2.25.{number}",
        wraps=["00"], patient_key=key,
    )  # fmt: skip
    row = index.add_received(_new(number)).row
    index.set_attributes(row.id, {"PatientID": patient, "PatientName": "Doe^J"}, "[{}]")
    index.claim(row.id, "w", 60)
    index.set_candidate(row.id, "w", replace(candidate, **facts))  # type: ignore[arg-type]
    index.set_verified(row.id, "w")
    index.set_archived(row.id, "w", f"aa/2.25.{number}.dcm", candidate.digest, 4, [destination] if destination else [])
    return index.get(row.id)


def test_a_patient_is_found_by_key_and_by_name_and_what_stands_in_the_way_is_said(index: Index) -> None:
    plain = archived(index, 1, "P1", "pat-1")
    old = archived(index, 2, "P1", None)
    shared = archived(index, 3, "P1", "pat-1", wraps=["00", "01"])
    whole = archived(index, 4, "P1", "pat-1", form=Form.PASSTHROUGH)
    waiting = archived(index, 5, "P1", "pat-1", destination="pacs")
    archived(index, 6, "P2", "pat-2")
    found = index.subject(["pat-1"], "P1", "")
    assert [row.id for row in found.rows] == [row.id for row in (plain, old, shared, whole, waiting)]
    assert (found.unfinished, found.old, found.shared, found.whole) == (
        (waiting.id,),
        (old.id,),
        (shared.id,),
        (whole.id,),
    )


def test_a_study_without_a_patient_id_is_a_subject_of_its_own(index: Index) -> None:
    nameless = archived(index, 1, None, "pat-3")
    archived(index, 2, None, "pat-4")
    assert index.subject(["pat-3"], "", "1.2.1").rows == (nameless,)


def test_forgetting_leaves_a_row_without_identity_and_others_alone(index: Index) -> None:
    row, other = archived(index, 1, "P1", "pat-1"), archived(index, 2, "P2", "pat-2")
    for _ in range(2):  # the second time finds nothing left to do
        rows = index.subject(["pat-1"], "P1", "").rows
        index.forget(rows, rename=lambda uid: "2.25." + uid.replace(".", ""), rehash=lambda d: digest(("keyed", d)))
        index.scrub_freed()
    now = index.get(row.id)
    assert now.shredded_at is not None and now.archive_key == row.archive_key and now.patient_key == "pat-1"
    assert (now.sop_uid, now.study_uid, now.digest) == (
        "2.25.1231", "2.25.121", digest(("keyed", f"{row.id}/{row.digest}")),
    )  # fmt: skip
    assert index.metadata(row.id) is None and index.wraps(row.id) == []
    assert [found["PatientID"] for found in index.search("study", {})] == ["P2"]
    assert index.get(other.id) == other
    assert index.shredded_keys() == {"pat-1"}


def test_the_same_file_may_be_forgotten_any_number_of_times(index: Index) -> None:
    for number in range(3):
        row = archived(index, 1, "P1", f"pat-{number}")
        index.forget([row], rename=lambda uid: f"2.25.{len(uid)}", rehash=digest)
        assert index.get(row.id).shredded_at is not None
    assert len(index.versions("2.25.7")) == 3


def test_corrections_that_wait_for_objects_to_come_go_with_the_patient(index: Index) -> None:
    for patient in ("P1", "P2"):
        index.correction_add("admin", {"PatientName": "Roe"}, patient_id=patient)
    index.forget([], lambda uid: uid, lambda text: text, "P1")
    assert [each["patient_id"] for each in index.corrections()] == ["P2"]


def test_intent_and_end_are_in_the_trail(index: Index) -> None:
    index.shred_begin("admin", 2, "erasure-request", "P0PSEUDONYM")
    index.shred_done("admin", 2, "erasure-request", "P0PSEUDONYM", partial=True)
    done, begun = tail(index, 2)
    assert (begun["event"], done["event"], done["detail"]["outcome"]) == ("shred-begun", "shredded", "partial")
    assert begun["patient"] == "P0PSEUDONYM"


def test_a_log_that_could_not_be_emptied_is_said_so(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.shred_begin("admin", 1, "asked", None)
    index.scrub_freed()
    index.shred_done("admin", 1, "asked", None, partial=False)  # the same connections go on as before
    if index.dialect != "sqlite":
        return
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    impatient = Index(str(index._url))
    with impatient.read() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM audit").scalar()
        impatient.shred_begin("admin", 1, "asked", None)
        with pytest.raises(Unavailable) as caught:
            impatient.scrub_freed()
    assert caught.value.reason == "database-busy"
    impatient.scrub_freed()
    impatient.close()


def test_a_disk_or_a_lock_that_keeps_the_log_full_is_an_error_of_the_database(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database._DEAD_CLIENT, "lock_timeout", 100)
    impatient = Index(str(index._url.render_as_string(hide_password=False)))
    impatient.shred_begin("admin", 1, "asked", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as undo:
        if index.dialect == "sqlite":
            undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        else:
            undo.enter_context(index.read()).exec_driver_sql("LOCK TABLE study IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises((Unavailable, OutOfResources), match="did not answer|no space"):
            impatient.scrub_freed()
    impatient.scrub_freed()
    impatient.close()


def test_what_a_restored_database_must_forget_again_comes_in_pages(index: Index) -> None:
    rows = [archived(index, number, "P1", f"pat-{number % 2}") for number in range(5)]
    waiting = [
        index.add_received(replace(_new(number), study_uid="1.2.9")).row.id for number in (10, 11, 12)
    ]  # fmt: skip
    index.set_attributes(waiting[0], {"PatientID": "P1"}, "[{}]")
    index.set_attributes(waiting[1], {}, "[{}]")
    assert [row.id for row in index.sealed_after(0, ["pat-0", "pat-1"], 3)] == [row.id for row in rows[:3]]
    assert [row.id for row in index.sealed_after(rows[2].id, ["pat-0"], 3)] == [rows[4].id]
    found = index.unfinished_after(0, 2) + index.unfinished_after(waiting[1], 2)
    assert [(row.id, named) for row, named in found] == [(waiting[0], "P1"), (waiting[1], ""), (waiting[2], None)]
    index.forget([index.get(waiting[0]), rows[0]], rename=lambda uid: f"2.25.{len(uid)}", rehash=digest)
    assert index.discard_forgotten() == 1 and index.discard_forgotten() == 0
    with pytest.raises(NotFound):
        index.get(waiting[0])
    assert index.get(rows[0].id).shredded_at is not None
    assert index.counts().total == 7 and [row.id for row, _ in index.unfinished_after(0, 9)] == waiting[1:]


def test_a_receipt_and_a_removal_never_pass_each_other(index: Index) -> None:
    gone: list[str] = []
    with pytest.raises(Unavailable) as caught:
        index.add_received(_new(1), spooled=lambda _: False)
    assert caught.value.reason == "not-spooled"
    assert index.add_received_many([_new(1)], spooled=lambda _: False) == [None]
    assert index.let_go(digest(1), gone.append) and gone == [digest(1)]  # nothing needs it
    row = index.add_received(_new(1), spooled=lambda each: each == digest(1)).row
    assert not index.let_go(row.digest, gone.append) and gone == [digest(1)]
    with pytest.raises(Unavailable):  # a duplicate under other file meta information, and both files are gone
        index.add_received(replace(_new(1), digest=digest("other meta")), spooled=lambda _: False)
    done = archived(index, 2, "P1", "pat-1")
    assert index.add_received(_new(2), spooled=lambda _: False).outcome == "duplicate"  # the archive has it
    with pytest.raises(Unavailable) as caught:
        index.add_received(_new(2), destroyed=lambda key_id: key_id == done.patient_key)
    assert caught.value.reason == "being-shredded"
    assert [event["event"] for event in tail(index)].count("duplicate") == 1


def test_an_unfinished_row_whose_file_is_lost_stands_for_the_same_data_set_under_another_file_meta(
    index: Index,
) -> None:
    row = index.add_received(_new(1)).row
    index.claim(row.id, "w", 60)
    facts = CandidateFacts(
        digest=digest("candidate"), size=4, form=Form.CODED, reason=None, envelope_uid="2.25.1", wraps=[],
        patient_key="pat-1",
    )  # fmt: skip
    index.set_candidate(row.id, "w", facts)
    other = replace(_new(1), digest=digest("other meta"), size=11)
    accepted = index.add_received(other, spooled=lambda each: each != row.digest, destroyed=lambda _: True)
    now = accepted.row
    assert (accepted.outcome, now.id, now.digest, now.size) == ("duplicate", row.id, other.digest, 11)
    assert (now.state, now.candidate_digest, now.patient_key, now.lease_owner) == (State.RECEIVED, None, None, None)
    with pytest.raises(LeaseLost):
        index.set_verified(row.id, "w")
    assert not index.let_go(other.digest, lambda _: None) and index.let_go(row.digest, lambda _: None)
    assert index.claim(row.id, "another", 60) is not None
    assert [event["event"] for event in tail(index)].count("duplicate") == 1


def test_a_receipt_waits_while_its_file_is_removed_and_finds_it_gone(index: Index) -> None:
    """Were the file removed behind the lock, a receipt that was acknowledged in between would lose it."""
    new, receipts = _new(1), list[Future[Accepted]]()
    there = {new.digest}

    def remove(gone: str) -> None:
        receipts.append(pool.submit(index.add_received, new, spooled=there.__contains__))
        wait(receipts, timeout=0.3)  # long enough for one that does not wait for the lock
        there.discard(gone)

    with ThreadPoolExecutor(1) as pool:
        assert index.let_go(new.digest, remove)
        with pytest.raises(Unavailable, match="removed before it had a row"):
            receipts[0].result()
    assert index.by_digest(new.digest) is None


def test_trouble_of_the_disk_under_the_lock_is_not_the_databases(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path / "spool")
    held = store.put(b"a file")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "x")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(Unavailable) as caught:
        index.let_go(held, store.remove)
    assert caught.value.reason == "storage-error"
    monkeypatch.undo()
    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(Unavailable) as caught:
        index.add_received(replace(_new(1), digest=held), spooled=store.exists)
    assert caught.value.reason == "storage-error"
    monkeypatch.undo()
    assert index.let_go(held, store.remove) and not store.exists(held)
