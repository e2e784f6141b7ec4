"""Taking in: Success means durable; everything else leaves nothing behind and says why."""

from __future__ import annotations

import errno
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from gateway import audit, blobs
from gateway.accept import accept_instance, adopt_orphan
from gateway.bootstrap import Gateway, build
from gateway.errors import IntegrityError, NotFound, OutOfResources, PalimpsestError, UIDMismatch, Unavailable
from gateway.instance import State
from gateway.jobs import MemoryQueue, flush_outbox
from gateway.settings import load_settings
from tests.fakes import CT, element, incoming, new_uid, part10, take_in


def leftovers(gw: Gateway) -> list[Path]:
    return list(gw.settings.incoming_dir.iterdir())


def events(gw: Gateway) -> list[str]:
    return [event["event"] for event in reversed(audit.tail(gw.index))]


def test_success_means_file_row_event_and_messages(gw: Gateway, memory_queue: MemoryQueue) -> None:
    data = part10("1.2.3")
    accepted = take_in(gw, data, priority=0)
    row = accepted.row
    assert (accepted.outcome, row.state, row.size, row.source) == ("new", State.RECEIVED, len(data), "dimse")
    assert gw.spool.read(row.digest) == data and leftovers(gw) == []
    assert events(gw) == ["received"]
    assert memory_queue.depths()["encode"] == memory_queue.depths()["index"] == 1 and gw.index.outbox_due() == []


def test_nobody_else_on_the_machine_reads_what_was_received_or_indexed(gw: Gateway) -> None:
    take_in(gw, part10("1.2.3"))
    kept = [path for path in gw.settings.home.rglob("*") if path.is_file()]
    assert any("db" in path.suffix for path in kept)
    assert [path.name for path in kept if path.stat().st_mode & 0o077] == []


def test_file_and_folder_are_synced_before_the_row(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_fsync, real_add = os.fsync, gw.index.add_received_many

    def fsync(fd: int) -> None:
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        real_fsync(fd)

    def add(_self: object, new: object, **asked: object) -> object:
        order.append("row")
        return real_add(new, **asked)  # type: ignore[arg-type]

    monkeypatch.setattr(blobs.os, "fsync", fsync)
    monkeypatch.setattr(type(gw.index), "add_received_many", add)
    take_in(gw, part10())
    assert order[0] == "file" and order[-1] == "row" and "folder" in order[1:-1]


def test_a_folder_that_another_process_made_is_made_durable_too_once(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = part10()
    shard = gw.spool.path(sha256(data).hexdigest()).parent
    shard.mkdir()  # by one that was killed before it had synced the folder above
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(blobs.os, "fsync", fsync)
    for _ in range(2):
        take_in(gw, data)
    assert synced.count(gw.spool.folder.resolve()) == 1 and synced.count(shard.resolve()) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_io_error_is_no_success_and_leaves_no_row(gw: Gateway, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = incoming(gw, part10())

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((blobs.os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OutOfResources):
        accept_instance(gw, path, source="dimse", calling_ae="X")
    monkeypatch.undo()
    assert gw.index.counts().total == 0 and leftovers(gw) == [] and list(gw.spool) == []


def test_a_file_that_cannot_be_opened_is_our_fault_and_passing(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EMFILE, "too many open files", str(path))

    monkeypatch.setattr("gateway.accept.peek", fail)
    with pytest.raises(Unavailable) as caught:
        take_in(gw, part10())
    assert (caught.value.reason, caught.value.dimse_status) == ("storage-error", 0xA700)
    assert audit.tail(gw.index)[0]["event"] == "refused"
    assert list(gw.spool.incoming_dir.iterdir()) == []


def test_the_queue_may_be_down(gw: Gateway, memory_queue: MemoryQueue) -> None:
    memory_queue.down = True
    row = take_in(gw, part10()).row
    assert row.state is State.RECEIVED and len(gw.index.outbox_due()) == 2
    memory_queue.down = False
    assert flush_outbox(gw.index, memory_queue) == 2 and gw.index.outbox_due() == []


def test_a_queue_that_dies_half_way_loses_nothing(gw: Gateway, memory_queue: MemoryQueue) -> None:
    memory_queue.down = True
    take_in(gw, part10())
    memory_queue.down = False
    real = memory_queue.send

    def once(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[arg-type]
        memory_queue.down = True

    memory_queue.send = once  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        flush_outbox(gw.index, memory_queue)
    assert len(gw.index.outbox_due()) == 2  # one goes out twice: tasks are idempotent


def test_duplicates_are_success_and_keep_one_file(gw: Gateway) -> None:
    uid = new_uid()
    first = take_in(gw, part10(uid))
    again = take_in(gw, part10(uid), calling_ae="OTHER")
    other_meta = take_in(gw, part10(uid, meta_extra=element(0x00020016, "AE", b"OTHER")))
    assert [again.outcome, other_meta.outcome] == ["duplicate", "duplicate"]
    assert again.row == other_meta.row == first.row
    assert list(gw.spool) == [first.row.digest] and leftovers(gw) == []
    assert events(gw) == ["received", "duplicate", "duplicate"]


def test_a_duplicate_repairs_a_lost_or_damaged_spool_file(gw: Gateway) -> None:
    data = part10()
    row = take_in(gw, data).row
    gw.spool.path(row.digest).write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        gw.spool.read(row.digest)
    assert take_in(gw, data).outcome == "duplicate"
    assert gw.spool.read(row.digest) == data
    gw.spool.remove(row.digest)
    take_in(gw, data)
    assert gw.spool.read(row.digest) == data


def test_a_corrected_header_is_served_other_pixels_are_not(gw: Gateway) -> None:
    uid = new_uid()
    first = take_in(gw, part10(uid)).row
    corrected = take_in(gw, part10(uid, patient="Doe^Joan"))
    assert corrected.outcome == "version" and gw.index.by_sop(uid) == corrected.row
    other = take_in(gw, part10(uid, pixels=bytes(64)))
    assert other.outcome == "conflict" and other.row.conflict
    served = gw.index.by_sop(uid)
    assert served is not None and served.id == corrected.row.id
    assert len(gw.index.versions(uid)) == 3
    assert {gw.spool.exists(row.digest) for row in (first, corrected.row, other.row)} == {True}


def test_a_rejected_image_sent_again_into_its_right_study_is_shown_there(gw: Gateway) -> None:
    uid = new_uid()
    wrong, note = take_in(gw, part10(uid, study="1.2.3.7")).row, take_in(gw, part10()).row
    gw.index.rejection_add(note.id, "113038", [("1.2.3.7", uid)], quality="hide")
    assert gw.index.by_sop(uid) is None
    right = take_in(gw, part10(uid, study="1.2.3.8"))
    assert right.outcome == "version" and gw.index.by_sop(uid) == right.row
    assert [row.id for row in gw.index.versions(uid)] == [right.row.id, wrong.id]


def test_refusals_leave_nothing_and_are_audited(gw: Gateway) -> None:
    uid = new_uid()
    cases = [
        (b"not dicom", {}, "not-part10"),
        (b"", {}, "not-part10"),
        (part10("1.2.x"), {}, "bad-sop-instance-uid"),
        (part10(uid), {"expected_sop_instance": "1.2"}, "sop-instance-mismatch"),
        (part10(uid), {"expected_sop_class": "1.2"}, "sop-class-mismatch"),
        (part10(uid), {"expected_study": "1.2"}, "study-mismatch"),
    ]
    for data, expected, reason in cases:
        with pytest.raises(PalimpsestError) as caught:
            accept_instance(gw, incoming(gw, data), source="stow", calling_ae="user", **expected)
        assert caught.value.reason == reason
    assert gw.index.counts().total == 0 and list(gw.spool) == [] and leftovers(gw) == []
    assert events(gw) == ["refused"] * len(cases)
    accept_instance(
        gw, incoming(gw, part10(uid)), source="stow", calling_ae="user", expected_sop_class=CT,
        expected_sop_instance=uid, expected_study="1.2.3.100",
    )  # fmt: skip
    with pytest.raises(UIDMismatch):
        accept_instance(gw, incoming(gw, part10()), source="stow", calling_ae="u", expected_sop_instance=uid)


def test_watermark_and_size_bound(tmp_path: Path) -> None:
    full = build(load_settings(home=tmp_path / "a", watermark_bytes=1 << 60), queue=MemoryQueue())
    with pytest.raises(OutOfResources) as caught:
        full.spool.incoming()
    assert (caught.value.reason, caught.value.dimse_status, caught.value.http_status) == ("watermark", 0xA700, 507)
    full.close()
    small = build(load_settings(home=tmp_path / "b", watermark_bytes=0, max_object_bytes=100), queue=MemoryQueue())
    with pytest.raises(OutOfResources) as caught:
        take_in(small, part10())
    assert caught.value.reason == "object-too-large" and leftovers(small) == []
    small.close()


def test_orphans_are_adopted_once(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    data = part10()

    def down(*_: object, **__: object) -> None:
        raise Unavailable("database-unavailable")

    monkeypatch.setattr(type(gw.index), "add_received_many", down)
    with pytest.raises(Unavailable):
        take_in(gw, data)
    monkeypatch.undo()
    (digest,) = gw.spool.iter_files()
    adopted = adopt_orphan(gw, digest)
    assert adopted is not None and adopted.outcome == "new" and adopted.row.source == "sweep"
    assert adopt_orphan(gw, digest) is None and gw.spool.read(digest) == data
    assert take_in(gw, data).outcome == "duplicate"


def test_young_files_are_left_to_their_receiver(gw: Gateway) -> None:
    take_in(gw, part10())
    assert list(gw.spool.iter_files(older_than_seconds=60)) == [] and len(list(gw.spool.iter_files())) == 1


def test_incoming_is_swept_by_age(gw: Gateway) -> None:
    old, young = gw.spool.incoming(), gw.spool.incoming()
    os.utime(old, (time.time() - 7200,) * 2)
    assert gw.spool.sweep_incoming(3600) == 1
    assert not old.exists() and young.exists()


def test_blobs_are_checked_and_named_by_content(gw: Gateway) -> None:
    digest = gw.candidates.put(b"an envelope")
    assert gw.candidates.put(b"an envelope") == digest and list(gw.candidates) == [digest]
    assert gw.candidates.read(digest) == b"an envelope"
    gw.candidates.check(digest)
    gw.candidates.path(digest).write_bytes(b"other bytes")
    for act in (gw.candidates.read, gw.candidates.check):
        with pytest.raises(IntegrityError):
            act(digest)
    gw.candidates.remove(digest)
    gw.candidates.remove(digest)
    with pytest.raises(NotFound):
        gw.candidates.read(digest)
    with pytest.raises(IntegrityError):
        gw.candidates.path("../../etc/passwd")
    assert list(gw.candidates.folder.rglob(".tmp*")) == []


def test_no_file_name_or_message_holds_patient_data(gw: Gateway, memory_queue: MemoryQueue) -> None:
    row = take_in(gw, part10(patient="Secret^Name")).row
    names = " ".join(str(path.relative_to(gw.settings.home)) for path in gw.settings.home.rglob("*"))
    assert "Secret" not in names and row.sop_uid not in names
    assert memory_queue.pop("encode") == ("palimpsest.encode", (row.id,))
    assert "Secret" not in str(audit.tail(gw.index)) and row.sop_uid not in str(audit.tail(gw.index))
