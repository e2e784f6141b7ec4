"""The pipeline on a real index, spool and archive, with a proving process that says what the test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from gateway.accept import accept_instance
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import IntegrityError, LeaseLost, NotFound, OutOfResources, Unavailable
from gateway.instance import Form, State
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, Settings
from tests.weightfiles import without_weights
from worker import pipeline
from worker.candidate import Candidate
from worker.identity import Provenance
from worker.leases import backoff_seconds, heartbeat
from worker.pipeline import process_instance, record_failure
from worker.restore import restore
from worker.verify import VerifyReport, check_envelope

OWNER = "test-1"


class Prover:
    """Proves in this process, except where `verdicts` (used up from the left) say otherwise."""

    def __init__(self, gw: Gateway) -> None:
        self._gw = gw
        self.verdicts: list[VerifyReport | None] = []
        self.asked = 0

    def check(self, envelope: bytes) -> VerifyReport:
        self.asked += 1
        verdict = self.verdicts.pop(0) if self.verdicts else None
        return verdict or check_envelope(envelope, self._gw.keys)


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    settings = Settings(
        home=tmp_path,
        watermark_bytes=0,
        destinations=(Destination(name="one", kind="filesystem", path=str(tmp_path / "one")),),
    )
    gateway = build(settings, queue=MemoryQueue())
    yield gateway
    gateway.close()


@pytest.fixture
def prover(gw: Gateway) -> Prover:
    return Prover(gw)


def take_in(gw: Gateway, name: str) -> int:
    incoming = gw.spool.incoming()
    copyfile(str(get_testdata_file(name, download=False)), incoming)
    return accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id


def received(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def archived_bytes(gw: Gateway, instance_id: int) -> bytes:
    row = gw.index.get(instance_id)
    assert row.archive_key is not None and row.archive_digest is not None
    return gw.archive.get(row.archive_key, row.archive_digest)


def events(gw: Gateway, instance_id: int) -> list[str]:
    return [event["event"] for event in reversed(tail(gw.index)) if event["instance_id"] == instance_id]


def test_an_image_is_coded_proven_archived_and_restores_byte_for_byte(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    row = gw.index.get(instance_id)
    assert (row.state, row.form, row.lease_owner) == (State.ARCHIVED, Form.CODED, None)
    restored = restore(archived_bytes(gw, instance_id), gw.keys)
    assert restored.data == received("CT_small.dcm")
    assert gw.index.facts(instance_id)["restored_sha256"] == row.digest
    assert [forward.destination for forward in gw.index.forwards(instance_id)] == ["one"]
    assert not list(gw.candidates)
    assert events(gw, instance_id) == ["received", "candidate", "verified", "archived"]


def test_what_cannot_be_coded_travels_whole_with_its_reason(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "rtplan.dcm")
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    row = gw.index.get(instance_id)
    assert row.form == Form.PASSTHROUGH and row.reason
    assert restore(archived_bytes(gw, instance_id), gw.keys).data == received("rtplan.dcm")


def test_a_second_message_for_the_same_instance_does_nothing(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    process_instance(gw, prover, instance_id, OWNER)
    before = events(gw, instance_id)
    assert process_instance(gw, prover, instance_id, "other-1") == "not-claimed"
    assert events(gw, instance_id) == before


def test_a_leased_instance_is_left_to_its_holder(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    assert gw.index.claim(instance_id, "holder-1", 60.0) is not None
    assert process_instance(gw, prover, instance_id, OWNER) == "not-claimed"
    assert prover.asked == 0


def damaged() -> VerifyReport:
    return VerifyReport(False, "bitstream-damaged")


def other_object() -> VerifyReport:
    return VerifyReport(True, recorded_sha256="0" * 64, sha256="0" * 64)


def other_bytes() -> VerifyReport:
    digest = sha256(received("CT_small.dcm")).hexdigest()
    return VerifyReport(True, recorded_sha256=digest, sha256="1" * 64)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(damaged, "bitstream-damaged"), (other_object, "other-object"), (other_bytes, "file-digest")],
)
def test_a_failed_proof_quarantines_the_candidate_and_the_original_goes_on_whole(
    gw: Gateway, prover: Prover, verdict: Callable[[], VerifyReport], reason: str
) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    prover.verdicts = [verdict()]
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    row = gw.index.get(instance_id)
    assert (row.form, row.reason) == (Form.PASSTHROUGH, f"unproven-{reason}")
    assert restore(archived_bytes(gw, instance_id), gw.keys).data == received("CT_small.dcm")
    assert prover.asked == 2  # the passthrough was proven as well
    [story] = gw.settings.quarantine_dir.glob("*.json")
    assert json.loads(story.read_text())["reason"] == reason
    assert len(list(gw.settings.quarantine_dir.glob("*.dcm"))) == 1
    assert [alert.kind for alert in gw.index.alerts()] == ["candidate-quarantined"]
    assert "quarantined" in events(gw, instance_id)


def test_an_unproven_passthrough_never_reaches_the_archive_and_waits_for_a_person(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "rtplan.dcm")
    prover.verdicts = [damaged()]
    with pytest.raises(IntegrityError, match="did not restore") as caught:
        process_instance(gw, prover, instance_id, OWNER)
    record_failure(gw, instance_id, OWNER, caught.value)
    row = gw.index.get(instance_id)
    assert (row.state, row.archive_key, row.last_error) == (State.RECEIVED, None, "passthrough-unproven")
    assert row.due_at is not None and row.due_at > row.received_at + 600
    assert {alert.kind for alert in gw.index.alerts()} == {"candidate-quarantined", "passthrough-unproven"}
    assert gw.spool.read(row.digest) == received("rtplan.dcm")


def test_a_file_that_kills_its_workers_goes_on_whole_without_the_codec(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    for crash in range(gw.settings.max_attempts):
        assert (
            gw.index.claim(instance_id, f"dead-{crash}", -1.0) is not None
        )  # claimed, then killed: the lease runs out

    def explode(*_: Any, **__: Any) -> Candidate:
        raise AssertionError("the codec was touched")

    monkeypatch.setattr(pipeline, "build_candidate", explode)
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    row = gw.index.get(instance_id)
    assert (row.form, row.reason) == (Form.PASSTHROUGH, "worker-crashed")
    assert restore(archived_bytes(gw, instance_id), gw.keys).data == received("CT_small.dcm")


def test_a_proof_that_kills_its_workers_ends_too_and_the_original_goes_on_whole(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    row = gw.index.claim(instance_id, "dead-0", 60.0)
    assert row is not None
    pipeline.make_candidate(pipeline.Work(gw, prover, row, "dead-0"))  # type: ignore[arg-type]
    expire_lease(gw, instance_id)
    for crash in range(1, gw.settings.max_attempts):
        assert gw.index.claim(instance_id, f"dead-{crash}", -1.0) is not None
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    row = gw.index.get(instance_id)
    assert (row.form, row.reason) == (Form.PASSTHROUGH, "unproven-worker-crashed")
    assert prover.asked == 1  # for the sealed whole file only
    assert restore(archived_bytes(gw, instance_id), gw.keys).data == received("CT_small.dcm")


def test_what_fails_for_ever_fills_no_disk_and_calls_a_person(gw: Gateway, prover: Prover) -> None:
    instance_id = take_in(gw, "rtplan.dcm")
    for _ in range(gw.settings.max_attempts + 1):
        prover.verdicts = [damaged()]
        with pytest.raises(IntegrityError):
            process_instance(gw, prover, instance_id, OWNER)
        expire_lease(gw, instance_id)
    assert len(list(gw.settings.quarantine_dir.glob("*.dcm"))) == 1
    record_failure(gw, instance_id, str(gw.index.get(instance_id).lease_owner), MemoryError())
    assert "stuck" in {alert.kind for alert in gw.index.alerts()}
    assert gw.spool.read(gw.index.get(instance_id).digest) == received("rtplan.dcm")


def kill_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The process dies right after `owner.name` returned: nothing after it happens, nothing is cleaned up."""
    original = getattr(owner, name)

    def once(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        monkeypatch.setattr(owner, name, original)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, once)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("gateway.blobs.BlobStore", "put"),
        ("gateway.index_work.Work", "set_candidates"),
        ("gateway.index_work.Work", "set_verified"),
        ("gateway.archive.FilesystemArchive", "put"),
        ("gateway.archive.FilesystemArchive", "get"),
    ],
)
def test_a_kill_between_any_two_steps_costs_nothing(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch, owner: str, name: str
) -> None:
    module, _, name_of_class = owner.rpartition(".")
    target = getattr(import_module(module), name_of_class)
    instance_id = take_in(gw, "CT_small.dcm")
    with monkeypatch.context() as patched:
        kill_after(patched, target, name)
        with pytest.raises(KeyboardInterrupt):
            process_instance(gw, prover, instance_id, "dead-1")
    expire_lease(gw, instance_id)
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    assert restore(archived_bytes(gw, instance_id), gw.keys).data == received("CT_small.dcm")
    assert len(without_weights(gw.archive.keys())) == 1
    assert gw.index.get(instance_id).form == Form.CODED
    assert gw.index.alerts() == []


def expire_lease(gw: Gateway, instance_id: int) -> None:
    gw.index.heartbeat(instance_id, str(gw.index.get(instance_id).lease_owner), -1.0)


def test_a_kill_after_the_put_and_a_lost_candidate_heal_from_the_archive(
    gw: Gateway, prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    with monkeypatch.context() as patched:
        kill_after(patched, type(gw.archive), "put")
        with pytest.raises(KeyboardInterrupt):
            process_instance(gw, prover, instance_id, "dead-1")
    for digest in list(gw.candidates):
        gw.candidates.remove(digest)
    expire_lease(gw, instance_id)
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"


@pytest.mark.parametrize("damage", [None, b"torn"])
def test_a_lost_or_damaged_candidate_is_made_again(gw: Gateway, prover: Prover, damage: bytes | None) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    prover.verdicts = []
    row = gw.index.claim(instance_id, "dead-1", 60.0)
    assert row is not None
    pipeline.make_candidate(pipeline.Work(gw, prover, row, "dead-1"))  # type: ignore[arg-type]
    for digest in list(gw.candidates):
        path = gw.candidates.path(digest)
        path.unlink() if damage is None else path.write_bytes(damage)
    expire_lease(gw, instance_id)
    assert process_instance(gw, prover, instance_id, OWNER) == "ARCHIVED"
    assert restore(archived_bytes(gw, instance_id), gw.keys).data == received("CT_small.dcm")


@pytest.mark.parametrize(
    ("error", "reason", "counted", "alert"),
    [
        (Unavailable("keys-away", retry_after=7.0), "keys-away", False, False),
        (OutOfResources("disk-full"), "disk-full", False, False),
        (IntegrityError("digest-mismatch"), "digest-mismatch", False, True),
        (NotFound("no-such-file"), "no-such-file", False, True),
        (MemoryError(), "out-of-memory", True, False),
        (RuntimeError("Doe^John"), "internal-error", True, False),
    ],
)
def test_each_class_of_error_has_its_next_act(
    gw: Gateway, error: Exception, reason: str, counted: bool, alert: bool
) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    gw.index.claim(instance_id, OWNER, 60.0)
    record_failure(gw, instance_id, OWNER, error)
    row = gw.index.get(instance_id)
    assert (row.last_error, row.attempts, row.lease_owner) == (reason, int(counted), None)
    assert row.due_at is not None and row.due_at > row.received_at
    assert bool(gw.index.alerts()) == alert


def test_a_lost_lease_is_not_written_to(gw: Gateway) -> None:
    instance_id = take_in(gw, "CT_small.dcm")
    gw.index.claim(instance_id, "other-1", 60.0)
    before = gw.index.get(instance_id)
    record_failure(gw, instance_id, OWNER, LeaseLost("lease-lost"))
    assert gw.index.get(instance_id) == before


def test_work_stops_when_the_heartbeat_finds_the_lease_gone() -> None:
    def gone() -> None:
        raise LeaseLost("lease-lost")

    with heartbeat(gone, 0.04) as beat:
        assert beat.lost.wait(60.0)
        with pytest.raises(LeaseLost):
            beat.check()


def test_a_heartbeat_outlives_a_database_that_is_away() -> None:
    beats: list[int] = []
    begun = threading.Event()

    def flaky() -> None:
        beats.append(1)
        if len(beats) < 3:
            raise Unavailable("database-unavailable")
        assert begun.wait(60.0)  # else `beat` may have no value yet
        beat.stop.set()

    with heartbeat(flaky, 0.04) as beat:
        begun.set()
        assert beat.stop.wait(60.0)
        beat.check()
    assert len(beats) == 3


@pytest.mark.parametrize("attempts", [0, 1, 2, 5, 40, 5000])
def test_backoff_doubles_within_its_bounds(attempts: int) -> None:
    ceiling = min(900.0, 2.0 * 2.0 ** min(max(attempts - 1, 0), 32))
    for _ in range(20):
        assert ceiling / 2 <= backoff_seconds(attempts) <= ceiling


def test_provenance_carries_time_and_program(gw: Gateway) -> None:
    row = gw.index.get(take_in(gw, "CT_small.dcm"))
    made: Provenance = pipeline.provenance(gw, row)
    assert made.received_at.endswith("+00:00")
    assert made.software.startswith("palimpsest")
    assert (made.source, made.calling_ae) == ("stow", "TEST")
