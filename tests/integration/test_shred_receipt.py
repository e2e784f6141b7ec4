"""The same file sent again at the very moment its patient is shredded: what is acknowledged is kept, or covered."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import NotFound, PolicyRefused, Unavailable
from gateway.index import CandidateFacts, InstanceRow
from gateway.instance import Form, State
from gateway.jobs import MemoryQueue
from gateway.settings import Settings
from tests.fakes import take_in
from tests.integration.test_shred import PATIENT, archived, do_shred, made_file
from worker.indexing import index_instance
from worker.reshred import shred_again
from worker.retrieve import original_bytes
from worker.sealing import patient_label
from worker.shred import find_patient, shred
from worker.sweep import adopt_orphans, release_spool


@pytest.fixture
def gw(tmp_path: Path, database_url: str) -> Iterator[Gateway]:
    made = build(Settings(home=tmp_path / "home", watermark_bytes=0, database_url=database_url), queue=MemoryQueue())
    yield made
    made.close()


def assert_new_again(gw: Gateway, data: bytes, before: int) -> None:
    again = archived(gw, data, released=False)
    assert again.id != before and gw.spool.exists(again.digest) and original_bytes(gw, again) == data
    assert gw.index.get(before).shredded_at is not None


def test_a_file_that_a_shredding_takes_from_the_spool_is_not_acknowledged(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made_file(PATIENT, 1)
    before = archived(gw, data, released=False)
    place = gw.spool.place_many

    def shredded_behind(received: Any) -> None:  # the file has its name; its row is not asked for yet
        place(received)
        monkeypatch.undo()
        do_shred(gw)

    monkeypatch.setattr(gw.spool, "place_many", shredded_behind)
    with pytest.raises(Unavailable, match="send it again"):
        take_in(gw, data)
    assert gw.index.by_digest(before.digest) is None
    assert_new_again(gw, data, before.id)


@pytest.mark.parametrize("killed", [False, True])
def test_a_duplicate_of_what_is_being_shredded_is_not_acknowledged(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    data = made_file(PATIENT, 1)
    before = archived(gw, data)
    forget = gw.index.forget
    refused: list[str] = []

    def sent_again_first(*args: Any, **options: Any) -> None:
        with pytest.raises(Unavailable, match="shredded") as caught:
            take_in(gw, data)
        refused.append(caught.value.reason)
        assert adopt_orphans(gw) == 0
        if killed:
            raise KeyboardInterrupt
        forget(*args, **options)

    monkeypatch.setattr(gw.index, "forget", sent_again_first)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            do_shred(gw)
        monkeypatch.undo()
        [alert] = gw.index.alerts()
        assert (alert.kind, alert.subject) == ("shred-unfinished", before.patient_key)
        assert "keys shred" in alert.message and "again" in alert.message
    do_shred(gw)
    assert gw.index.alerts() == []  # nothing is left to do
    assert refused == ["being-shredded"]
    assert "duplicate" not in [event["event"] for event in tail(gw.index)]
    assert_new_again(gw, data, before.id)


def test_a_duplicate_acknowledged_before_the_key_goes_is_covered_and_in_the_trail(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made_file(PATIENT, 1)
    before = archived(gw, data)
    destroy = gw.keys.destroy_patient_key

    def sent_again_first(key_id: str, statement: bytes) -> None:
        assert take_in(gw, data).outcome == "duplicate"
        destroy(key_id, statement)

    monkeypatch.setattr(gw.keys, "destroy_patient_key", sent_again_first)
    do_shred(gw)
    names = [event["event"] for event in reversed(tail(gw.index))]
    assert names.index("shred-begun") < names.index("duplicate") < names.index("shredded")
    assert not gw.spool.exists(before.digest)
    assert_new_again(gw, data, before.id)


def test_a_late_removal_leaves_what_was_received_anew(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_file(PATIENT, 1)
    before = archived(gw, data)
    let_go = gw.index.let_go

    def shredded_and_sent_again_first(digest: str, remove: Any) -> bool:
        monkeypatch.undo()
        do_shred(gw)
        assert take_in(gw, data).outcome == "new"
        return let_go(digest, remove)

    monkeypatch.setattr(gw.index, "let_go", shredded_and_sent_again_first)
    assert take_in(gw, data).outcome == "duplicate"  # a released row needs no file: it is taken away again, too late
    row = gw.index.by_digest(before.digest)
    assert row is not None and row.id != before.id and row.state is State.RECEIVED and gw.spool.exists(row.digest)


def test_what_came_meanwhile_and_is_sealed_whole_is_kept_and_told_until_the_shredding_is_run_again(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived(gw, made_file(PATIENT, 1))
    report = pydicom.dcmread(str(get_testdata_file("test-SR.dcm", download=False)))
    report.PatientID, report.StudyInstanceUID = PATIENT, "1.2.3.4711"
    out = io.BytesIO()
    report.save_as(out)
    late: list[InstanceRow] = []
    destroy = gw.keys.destroy_patient_key

    def archived_first(key_id: str, statement: bytes) -> None:
        late.append(archived(gw, out.getvalue(), released=False))
        destroy(key_id, statement)

    monkeypatch.setattr(gw.keys, "destroy_patient_key", archived_first)
    done = shred(gw, find_patient(gw, PATIENT), actor="admin", reason="erasure-request")
    monkeypatch.undo()
    assert (done.instances, done.kept) == (1, 1) and late[0].form is Form.PASSTHROUGH
    assert (release_spool(gw), shred_again(gw, "rebuild")) == (0, 0)
    assert gw.spool.exists(late[0].digest) and original_bytes(gw, gw.index.get(late[0].id)) == out.getvalue()
    assert [(alert.kind, alert.subject, alert.count) for alert in gw.index.alerts()] == [
        ("shred-unfinished", late[0].patient_key, 1)
    ]
    assert gw.index.alerts()[0].message.endswith("refused when it comes again"), "it is not cut"
    with pytest.raises(PolicyRefused, match="sealed whole"):
        do_shred(gw)
    do_shred(gw, images_too=True)
    assert gw.index.alerts() == [] and not gw.spool.exists(late[0].digest)
    assert_new_again(gw, out.getvalue(), late[0].id)


def test_what_was_sealed_anew_is_finished_without_its_source(gw: Gateway) -> None:
    row = take_in(gw, made_file(PATIENT, 1)).row
    index_instance(gw, row.id)
    label = patient_label(PATIENT, str(row.study_uid))
    gw.keys.destroy_patient_key(gw.keys.patient_key(label)[0], b"")
    gw.spool.remove(row.digest)  # the disk's loss
    assert gw.index.claim(row.id, "w", 60.0) is not None
    key_id = gw.keys.patient_key(label)[0]
    gw.index.set_candidate(row.id, "w", CandidateFacts("0" * 64, 4, Form.CODED, None, "2.25.1", patient_key=key_id))
    assert shred_again(gw, "rebuild") == 0 and gw.index.get(row.id).shredded_at is None
    gw.keys.destroy_patient_key(key_id, b"")
    assert shred_again(gw, "rebuild") == 1
    with pytest.raises(NotFound):
        gw.index.get(row.id)
