"""The sweep: what was lost is found, what may go goes, and nothing that is needed ever does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import pytest
import sqlalchemy as sa
from pydicom.data import get_testdata_file

from gateway.accept import accept_instance
from gateway.audit_notary import check_trail
from gateway.bootstrap import Gateway, build
from gateway.errors import NotFound
from gateway.index_schema import forward, instance
from gateway.instance import ForwardState, State
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, Settings
from tests.fakes import NoStego
from tests.proving import InProcess
from worker import sweep
from worker.delivery import forward_instance
from worker.indexing import index_instance
from worker.pipeline import Work, make_candidate, process_instance

LONG_AGO = 1_000_000.0


def settings_for(home: Path, profile: str = "demo") -> Settings:
    nas = home / "nas"
    nas.mkdir(parents=True, exist_ok=True)
    return Settings.model_validate(
        {
            "home": home,
            "profile": profile,
            "watermark_bytes": 0,
            "cache_max_bytes": 1000,
            "destinations": (Destination(name="nas", kind="filesystem", path=str(nas)),),
        }
    )


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def gw(tmp_path: Path, queue: MemoryQueue) -> Iterator[Gateway]:
    gateway = build(settings_for(tmp_path), queue=queue)
    yield gateway
    gateway.close()


def take_in(gw: Gateway, name: str = "rtplan.dcm") -> int:
    incoming = gw.spool.incoming()
    copyfile(str(get_testdata_file(name, download=False)), incoming)
    return accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id


def finish(gw: Gateway, instance_id: int) -> None:
    """Index, archive, forward."""
    index_instance(gw, instance_id)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    for row in gw.index.forwards(instance_id):
        forward_instance(gw, row.id, "test-1", NoStego())


def age_rows(gw: Gateway) -> None:
    """Everything was sent to the queue long ago."""
    with gw.index.write() as conn:
        conn.execute(sa.update(instance).values(queued_at=LONG_AGO))
        conn.execute(sa.update(forward).values(queued_at=LONG_AGO))


def age_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (LONG_AGO, LONG_AGO))


def wipe(queue: MemoryQueue) -> None:
    for name in ("index", "encode", "forward", "retrieve"):
        while queue.pop(name) is not None:
            pass


def test_a_wiped_queue_is_filled_again_from_the_rows(gw: Gateway, queue: MemoryQueue) -> None:
    instance_id = take_in(gw)
    wipe(queue)
    sweep.sweep_once(gw)
    assert queue.depths()["encode"] == 0  # sent a moment ago: probably still on its way
    age_rows(gw)
    sweep.sweep_once(gw)
    assert queue.pop("encode") == ("palimpsest.encode", (instance_id,))
    assert queue.pop("index") == ("palimpsest.index", (instance_id,))
    sweep.sweep_once(gw)
    assert queue.depths()["encode"] == 0  # and it is not sent twice in a row


def test_lost_forwards_are_sent_again(gw: Gateway, queue: MemoryQueue) -> None:
    instance_id = take_in(gw)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    sweep.send_outbox(gw)
    wipe(queue)
    age_rows(gw)
    sweep.sweep_once(gw)
    [row] = gw.index.forwards(instance_id)
    assert queue.pop("forward") == ("palimpsest.forward", (row.id,))


def test_a_backlog_does_not_grow_by_its_own_repetitions(
    gw: Gateway, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "BATCH", 2)
    for name in ("rtplan.dcm", "test-SR.dcm", "rtdose_1frame.dcm"):
        take_in(gw, name)
    for _ in range(5):
        age_rows(gw)
        sweep.sweep_once(gw)
    assert queue.depths()["encode"] == 3


def test_the_most_urgent_lost_row_is_sent_first(gw: Gateway, queue: MemoryQueue) -> None:
    take_in(gw)
    incoming = gw.spool.incoming()
    copyfile(str(get_testdata_file("test-SR.dcm", download=False)), incoming)
    stat = accept_instance(gw, incoming, source="dimse", calling_ae="CT", priority=0).row.id
    wipe(queue)
    age_rows(gw)
    sweep.sweep_once(gw)
    assert queue.pop("encode") == ("palimpsest.encode", (stat,))


def test_a_broker_that_is_away_costs_only_the_duties_that_need_it(gw: Gateway, queue: MemoryQueue) -> None:
    finish(gw, take_in(gw))
    queue.down = True
    done = sweep.sweep_once(gw)
    assert "requeue_instances" not in done
    assert done["release_spool"] == 1
    queue.down = False


def test_the_source_goes_only_after_every_proof(gw: Gateway) -> None:
    instance_id = take_in(gw)
    digest = gw.index.get(instance_id).digest
    for step in (
        lambda: None,
        lambda: process_instance(gw, InProcess(gw.keys), instance_id, "test-1"),  # type: ignore[arg-type]
        lambda: index_instance(gw, instance_id),
    ):
        step()
        sweep.sweep_once(gw)
        assert gw.spool.exists(digest)
    for row in gw.index.forwards(instance_id):
        forward_instance(gw, row.id, "test-1", NoStego())
    sweep.sweep_once(gw)
    assert gw.index.get(instance_id).state == State.RELEASED
    assert not gw.spool.exists(digest)


def test_a_dead_letter_holds_the_source(gw: Gateway) -> None:
    instance_id = take_in(gw)
    index_instance(gw, instance_id)
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    [row] = gw.index.forwards(instance_id)
    gw.index.forward_claim(row.id, "test-1", 60.0)
    gw.index.forward_failed(row.id, "test-1", "no-presentation-context", due_at=None)
    sweep.sweep_once(gw)
    assert gw.index.forwards(instance_id)[0].state == ForwardState.DEAD
    assert gw.spool.exists(gw.index.get(instance_id).digest)


def test_in_production_the_source_waits_for_a_proven_key_backup(tmp_path: Path, queue: MemoryQueue) -> None:
    gw = build(settings_for(tmp_path / "home", "production"), queue=queue)
    instance_id = take_in(gw)
    finish(gw, instance_id)
    sweep.sweep_once(gw)
    assert gw.spool.exists(gw.index.get(instance_id).digest)
    gw.keys.backup(tmp_path / "backup.bin", "correct horse battery", log2_n=10)
    sweep.sweep_once(gw)
    assert gw.index.get(instance_id).state == State.RELEASED
    gw.keys.rotate("kek")
    second = take_in(gw, "test-SR.dcm")
    finish(gw, second)
    sweep.sweep_once(gw)
    assert gw.index.get(second).state == State.ARCHIVED  # sealed under a key that no backup holds
    gw.close()


def test_in_production_a_new_patient_waits_for_the_next_backup(tmp_path: Path, queue: MemoryQueue) -> None:
    gw = build(settings_for(tmp_path / "home", "production"), queue=queue)
    gw.keys.backup(tmp_path / "early.bin", "correct horse battery", log2_n=10)
    instance_id = take_in(gw)
    finish(gw, instance_id)
    sweep.sweep_once(gw)
    assert gw.keys.backup_current() and gw.index.get(instance_id).state == State.ARCHIVED
    gw.keys.backup(tmp_path / "late.bin", "correct horse battery", log2_n=10)
    late = take_in(gw, "test-SR.dcm")
    finish(gw, late)
    sweep.sweep_once(gw)
    assert gw.index.get(instance_id).state == State.RELEASED and gw.index.get(late).state == State.ARCHIVED
    gw.close()


def test_a_kill_between_release_and_deletion_is_finished(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = take_in(gw)
    finish(gw, instance_id)
    digest = gw.index.get(instance_id).digest
    gw.index.set_released(instance_id)
    monkeypatch.setattr(sweep, "ORPHAN_SECONDS", 0.0)
    sweep.sweep_once(gw)
    assert not gw.spool.exists(digest)


def test_an_orphan_in_the_spool_gets_its_row(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = gw.spool.incoming()
    copyfile(str(get_testdata_file("CT_small.dcm", download=False)), incoming)
    stored = gw.spool.adopt(incoming)
    sweep.sweep_once(gw)
    assert gw.index.by_digest(stored.digest) is None  # its row may be about to be written
    monkeypatch.setattr(sweep, "ORPHAN_SECONDS", 0.0)
    sweep.sweep_once(gw)
    row = gw.index.by_digest(stored.digest)
    assert row is not None
    assert (row.state, row.source) == (State.RECEIVED, "sweep")


def test_an_orphan_that_cannot_be_read_stays_and_is_told(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ORPHAN_SECONDS", 0.0)
    digest = gw.spool.put(b"this is no DICOM file")
    sweep.sweep_once(gw)
    sweep.sweep_once(gw)
    assert gw.spool.exists(digest)
    [alert] = gw.index.alerts()
    assert (alert.kind, alert.subject, alert.count) == ("orphan-unreadable", digest[:16], 2)


def test_only_candidates_that_nobody_needs_are_cleaned(gw: Gateway) -> None:
    needed = take_in(gw)
    row = gw.index.claim(needed, "dead-1", 60.0)
    assert row is not None
    make_candidate(Work(gw, InProcess(gw.keys), row, "dead-1"))  # type: ignore[arg-type]
    stray = gw.candidates.put(b"a candidate whose commit never came")
    young = gw.candidates.put(b"a candidate whose commit is about to come")
    age_files(gw.settings.candidates_dir)
    os.utime(gw.candidates.path(young), (time.time(), time.time()))
    sweep.sweep_once(gw)
    assert not gw.candidates.exists(stray)
    assert gw.candidates.exists(young)
    assert gw.candidates.exists(str(gw.index.get(needed).candidate_digest))


def test_aborted_receipts_are_cleaned_and_running_ones_are_not(gw: Gateway) -> None:
    old, young = gw.spool.incoming(), gw.spool.incoming()
    os.utime(old, (LONG_AGO, LONG_AGO))
    sweep.sweep_once(gw)
    assert (old.exists(), young.exists()) == (False, True)


def test_two_sweeps_at_once_do_no_harm(gw: Gateway, tmp_path: Path, queue: MemoryQueue) -> None:
    first, second = take_in(gw), take_in(gw, "test-SR.dcm")
    finish(gw, first)
    other = build(settings_for(tmp_path), queue=queue)
    rows = gw.index.releasable(10)
    assert [row.id for row in rows] == [first]
    sweep.sweep_once(other)
    done = sweep.sweep_once(gw)
    assert done["release_spool"] == 0
    assert gw.index.get(first).state == State.RELEASED
    assert gw.spool.exists(gw.index.get(second).digest)
    other.close()


def test_a_signed_head_of_the_trail_is_kept_outside_the_database(gw: Gateway) -> None:
    take_in(gw)
    sweep.sweep_once(gw)
    report = check_trail(gw)
    assert (report.ok, report.heads) == (True, 1)


def test_an_instance_whose_file_vanished_before_indexing_is_told(gw: Gateway) -> None:
    instance_id = take_in(gw)
    gw.spool.remove(gw.index.get(instance_id).digest)
    with pytest.raises(NotFound):
        index_instance(gw, instance_id)


def test_what_a_killed_forwarder_left_is_deleted_and_locks_stay(gw: Gateway) -> None:
    left, lock = gw.settings.run_dir / "sending-abc.dcm", gw.settings.run_dir / "forward-nas.lock"
    fresh = gw.settings.run_dir / "sending-new.dcm"
    for path in (left, lock, fresh):
        path.write_bytes(b"x")
    for path in (left, lock):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert sweep.clean_incoming(gw) == 1
    assert (left.exists(), lock.exists(), fresh.exists()) == (False, True, True)
