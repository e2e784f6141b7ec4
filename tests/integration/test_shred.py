"""Crypto-shredding end to end: afterwards nothing here gives the identity, and the image is still exact."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from gateway.accept import accept_instance
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import Gone, IntegrityError, NotFound, PolicyRefused, Unavailable
from gateway.hotcache import HOT_KIND, Cache
from gateway.index import InstanceRow
from gateway.index_schema import attributes
from gateway.instance import Form, State
from gateway.jobs import MemoryQueue
from gateway.keybackup import open_backup
from gateway.keydoctor import examine
from gateway.keys import KeyRing, UnknownKey
from gateway.settings import Settings
from palimpsest.cli import app
from stego.errors import SealError
from stego.seal import unwrap_key
from tests.proving import InProcess
from worker import container as box
from worker import retrieve as retrieving
from worker.envelope import parse_envelope
from worker.indexing import index_instance
from worker.pipeline import Work, make_candidate, process_instance, prove, record_failure
from worker.reshred import shred_again
from worker.restore import exact_image, restore
from worker.retrieve import original_bytes, retrieve
from worker.shred import Patient, find_patient, forget_rows, shred, verify_statement
from worker.sweep import release_spool, sweep_once

PATIENT, OTHER = "SHRED-4711", "KEEP-1815"
NAME = "Mustermann^Erika"
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    made = build(Settings(home=tmp_path / "home", watermark_bytes=0), queue=MemoryQueue())
    yield made
    made.close()


def made_file(patient_id: str, number: int, name: str = NAME) -> bytes:
    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    data.PatientID, data.PatientName = patient_id, name
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{patient_id.split('-')[1]}.{number}"
    data.StudyInstanceUID = f"1.2.3.{patient_id.split('-')[1]}"
    out = io.BytesIO()
    data.save_as(out)
    return out.getvalue()


def archived(gw: Gateway, data: bytes, *, released: bool = True) -> InstanceRow:
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    row = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row
    index_instance(gw, row.id)
    process_instance(gw, InProcess(gw.keys), row.id, "test")  # type: ignore[arg-type]
    if released:
        release_spool(gw)
    return gw.index.get(row.id)


def envelope_of(gw: Gateway, row: InstanceRow) -> bytes:
    return gw.archive.get(str(row.archive_key), str(row.archive_digest))


def do_shred(gw: Gateway, patient: Patient | None = None, **options: bool) -> None:
    shred(gw, patient or find_patient(gw, PATIENT), actor="admin", reason="erasure-request", **options)


def needles(data: bytes) -> list[bytes]:
    """What must not be found anywhere: name, id, UIDs, and the digest that would confirm a guess of the file."""
    found = pydicom.dcmread(io.BytesIO(data))
    uids = (found.StudyInstanceUID, found.SOPInstanceUID)
    return [
        NAME.encode(),
        b"mustermann erika",
        PATIENT.encode(),
        *(str(u).encode() for u in uids),
        sha256(data).hexdigest().encode(),
    ]


def test_nothing_gives_the_identity_afterwards_and_the_image_is_exact(gw: Gateway, tmp_path: Path) -> None:
    files = [made_file(PATIENT, number) for number in range(3)]
    rows = [archived(gw, data) for data in files]
    kept_file = made_file(OTHER, 1, "Bleibt^Hier")
    kept = archived(gw, kept_file)
    for row in rows:  # restored copies, metadata and pictures lie in the cache now
        for kind in ("original", "metadata", "rendered:png:1", HOT_KIND):
            retrieve(gw, row.id, kind)
    pixels = [exact_image(envelope_of(gw, row)).pixel_sha256 for row in rows]
    wraps = [
        wrap
        for row in rows
        for wrap in box.unpack_wraps(box.parse(parse_envelope(envelope_of(gw, row)).container)[box.SectionType.WRAPS])
    ]

    do_shred(gw)

    for wrap in wraps:
        with pytest.raises(SealError):
            unwrap_key(bytes(wrap), find_kek=gw.keys.find_kek)
    for row, data, digest in zip(rows, files, pixels, strict=True):
        envelope = envelope_of(gw, row)
        with pytest.raises(IntegrityError, match="seal|open"):
            restore(envelope, gw.keys)
        reading = exact_image(envelope)
        seen = sha256(b"".join(words.tobytes() for words in reading.frames())).hexdigest()
        assert seen == digest == reading.pixel_sha256
        for kind in ("original", "metadata"):
            with pytest.raises(Gone):
                retrieve(gw, row.id, kind)
        assert retrieve(gw, row.id, "rendered:png:1")["size"] > 0
        assert gw.index.by_sop(str(pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID)) is None
    assert gw.index.search("study", {"PatientID": PATIENT}) == []
    gw.close()
    home = gw.settings.home
    for path in [p for p in home.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        for needle in (n for data in files for n in needles(data)):
            assert needle not in content, (path.name, needle)
    assert original_bytes(gw, gw.index.get(kept.id)) == kept_file
    assert [row["PatientID"] for row in gw.index.search("study", {})] == [OTHER]


def test_what_a_reader_makes_while_the_patient_is_shredded_does_not_stay(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made_file(PATIENT, 1)
    row = archived(gw, data)
    write = retrieving.write_original

    def shredded_before_the_end(gw: Gateway, row: InstanceRow, piece: Callable[..., object]) -> None:
        write(gw, row, piece)  # type: ignore[arg-type]
        monkeypatch.setattr(retrieving, "write_original", write)
        monkeypatch.setattr(Cache, "drop_instances", lambda *_: None)  # the shredder looked before anything was there
        do_shred(gw)
        monkeypatch.undo()

    monkeypatch.setattr(retrieving, "write_original", shredded_before_the_end)
    with pytest.raises(Gone):
        retrieve(gw, row.id, "original")
    held = [path.read_bytes() for path in gw.settings.cache_dir.rglob("*") if path.is_file()]
    assert data not in held


def test_the_same_file_sent_again_is_new_and_comes_back(gw: Gateway) -> None:
    data = made_file(PATIENT, 1)
    before = archived(gw, data)
    do_shred(gw)
    again = archived(gw, data)
    assert again.id != before.id and again.patient_key != before.patient_key
    assert again.archive_key != before.archive_key
    assert original_bytes(gw, again) == data
    assert gw.index.get(before.id).shredded_at is not None
    do_shred(gw)
    third = archived(gw, data)
    assert original_bytes(gw, third) == data
    assert [row.shredded_at is not None for row in map(gw.index.get, (before.id, again.id, third.id))] == [
        True, True, False,
    ]  # fmt: skip


def test_a_signed_tombstone_and_the_trail_say_what_happened(gw: Gateway) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    do_shred(gw)
    (stone,) = gw.keys.tombstones()
    statement = verify_statement(stone.data, gw.keys)
    assert statement["keys"] == [row.patient_key] and statement["instances"] == 1
    assert PATIENT.encode() not in stone.data
    forged = json.loads(stone.data) | {"instances": 0}
    with pytest.raises(IntegrityError):
        verify_statement(json.dumps(forged).encode(), gw.keys)
    events = [event["event"] for event in tail(gw.index)]
    assert events.index("shredded") < events.index("shred-begun")
    assert PATIENT not in json.dumps(tail(gw.index))


def test_what_is_on_its_way_is_not_touched(gw: Gateway) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    incoming = gw.spool.incoming()
    incoming.write_bytes(made_file(PATIENT, 2))
    index_instance(gw, accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id)
    with pytest.raises(PolicyRefused, match="1 instances are not archived"):
        do_shred(gw)
    assert original_bytes(gw, gw.index.get(row.id)) == made_file(PATIENT, 1)
    assert gw.keys.tombstones() == ()


@pytest.mark.parametrize("step", ["destroy_patient_key", "forget", "scrub_freed", "shred_done"])
def test_a_run_that_was_killed_is_finished_by_the_next(gw: Gateway, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [archived(gw, made_file(PATIENT, number), released=number == 1) for number in (1, 2)]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gw.keys if step == "destroy_patient_key" else gw.index, step, killed)
        with pytest.raises(KeyboardInterrupt):
            do_shred(gw)
    do_shred(gw)
    for row in rows:
        now = gw.index.get(row.id)
        assert now.shredded_at is not None and now.state is State.RELEASED
        assert not gw.spool.exists(row.digest)
        with pytest.raises(Gone):
            original_bytes(gw, now)


@pytest.mark.parametrize("step", ["set_released", "let_go", "forget"])
def test_the_sweep_finishes_a_run_that_was_killed_but_takes_no_source(
    gw: Gateway, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = archived(gw, made_file(OTHER, 1))
    rows = [archived(gw, made_file(PATIENT, number), released=False) for number in (1, 2)]
    gw.index.set_released(rows[1].id)
    assert gw.index.let_go(rows[1].digest, gw.spool.remove)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gw.index, step, killed)
        with pytest.raises(KeyboardInterrupt):
            do_shred(gw)
    assert sweep_once(gw)["finish_shreddings"] == 0  # whoever began may still be at it
    assert not any(gw.index.get(row.id).shredded_at for row in rows)
    monkeypatch.setattr("worker.shred.QUIET", -5.0)
    done = sweep_once(gw)
    assert sweep_once(gw)["finish_shreddings"] == done["adopt_orphans"] == 0
    now = [gw.index.get(row.id) for row in rows]
    assert now[1].shredded_at is not None and now[1].sop_uid != rows[1].sop_uid
    assert [each["detail"]["reason"] for each in tail(gw.index) if each["event"] == "shredded"] == ["unfinished"]
    assert gw.index.get(other.id) == other
    if step == "set_released":  # its source is here: a person must say that it may go
        assert done["finish_shreddings"] == 1 and now[0].shredded_at is None and gw.spool.exists(rows[0].digest)
        assert [alert.kind for alert in gw.index.alerts()] == ["shred-unfinished"]
        do_shred(gw)
    else:
        assert done["finish_shreddings"] == 2
    assert all(gw.index.get(row.id).shredded_at is not None and not gw.spool.exists(row.digest) for row in rows)
    assert gw.index.alerts() == [] and gw.index.unforgotten([str(rows[0].patient_key)]) == []


def test_nobody_is_left_shown_as_a_patient_whose_shredding_was_killed(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, other = archived(gw, made_file(PATIENT, 1)), archived(gw, made_file(OTHER, 1, "Bleibt^Hier"))
    with monkeypatch.context() as patch:
        patch.setattr(gw.index, "forget", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            do_shred(gw)
    gw.index.correction_add("admin", {"PatientID": PATIENT, "PatientName": NAME}, patient_id=OTHER)
    gw.index.corrections_run()
    monkeypatch.setattr("worker.shred.QUIET", -5.0)
    assert sweep_once(gw)["finish_shreddings"] == 0 and gw.index.get(row.id).shredded_at is None
    assert [alert.kind for alert in gw.index.alerts()] == ["shred-unfinished"]
    with pytest.raises(PolicyRefused, match="show other patients"):  # that is for a person, who takes it back
        do_shred(gw)
    assert shred_again(gw, "rebuild") == 1  # an older database, where it was not taken back yet
    assert gw.index.get(row.id).shredded_at is not None and gw.index.corrections() == gw.index.alerts() == []
    assert [study["PatientName"] for study in gw.index.search("study", {})] == ["Bleibt^Hier"]
    assert NAME not in str(gw.index.metadata(other.id)) and gw.index.get(other.id).coerced is None


def test_what_was_forgotten_and_has_come_again_is_not_forgotten_by_who_comes_late(gw: Gateway) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    do_shred(gw)
    again = archived(gw, made_file(PATIENT, 1))
    gw.index.studies_find()
    studies = gw.index.study_list(10)
    assert row.id != again.id and row.study_uid in dict(studies)
    forget_rows(gw, [row], PATIENT)  # as it was read before the first came
    assert gw.index.get(again.id) == again and gw.index.study_list(10) == studies


def test_an_unknown_patient_is_said_so(gw: Gateway) -> None:
    with pytest.raises(NotFound):
        find_patient(gw, "nobody")
    with pytest.raises(NotFound):
        find_patient(gw, "")


def test_the_sweep_has_nothing_to_do_with_a_shredded_instance(gw: Gateway) -> None:
    archived(gw, made_file(PATIENT, 1))
    do_shred(gw)
    done = sweep_once(gw)
    assert done["requeue_instances"] == 0 and gw.index.alerts() == []


def test_the_command_purges_backups_and_no_backup_brings_the_key_back(gw: Gateway, tmp_path: Path) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    backups = [tmp_path / "handed-over.backup", tmp_path / "kept-back.backup"]
    for path in backups:
        gw.keys.backup(path, PASSPHRASE, log2_n=10)
    gw.close()

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["keys", *arguments, "--home", str(gw.settings.home)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "instances 1" in command("shred", "--patient-id", PATIENT, "--dry-run")
    assert gw.keys.tombstones() == ()
    said = command(
        "shred", "--patient-id", PATIENT, "--yes", "--backup", str(backups[0]), "--passphrase-file", str(secret)
    )
    assert "1 keys destroyed, 1 instances forgotten" in said
    assert said.count("holds the keys still") == 1  # the one that was kept back
    held = [{key.id for key in open_backup(path.read_bytes(), PASSPHRASE).patients} for path in backups]
    assert row.patient_key not in held[0] and row.patient_key in held[1]
    for number, path in enumerate(backups):
        restored = KeyRing.restore(path, PASSPHRASE, tmp_path / f"ring-{number}", shredded=gw.index.shredded_keys())
        with pytest.raises(UnknownKey):
            restored.find_kek(str(row.patient_key))
        with pytest.raises(IntegrityError):
            restore(envelope_of(gw, row), restored)
    command("purge", str(backups[1]), "--passphrase-file", str(secret))
    assert "holds the keys still" not in command("shred", "--patient-id", PATIENT, "--yes")
    assert PATIENT not in json.dumps(tail(gw.index))


def test_what_is_archived_while_somebody_thinks_about_it_is_shredded_too(gw: Gateway) -> None:
    archived(gw, made_file(PATIENT, 1))
    patient = find_patient(gw, PATIENT)
    late = archived(gw, made_file(PATIENT, 2))
    do_shred(gw, patient)
    assert gw.index.get(late.id).shredded_at is not None


@pytest.mark.parametrize("stage", ["candidate", "verified"])
def test_what_is_sealed_but_not_archived_when_the_key_goes_is_sealed_anew(gw: Gateway, stage: str) -> None:
    archived(gw, made_file(PATIENT, 1))
    data = made_file(PATIENT, 2)
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    row = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row
    index_instance(gw, row.id)
    held = gw.index.claim(row.id, "test", 60.0)
    assert held is not None
    work = Work(gw, InProcess(gw.keys), held, "test")  # type: ignore[arg-type]
    make_candidate(work)
    if stage == "verified":
        prove(Work(gw, InProcess(gw.keys), gw.index.get(row.id), "test"))  # type: ignore[arg-type]
    before = gw.index.get(row.id)
    gw.keys.destroy_patient_key(str(before.patient_key), b"")
    gw.index.release_claim(row.id, "test", due_at=0.0, reason="x", count_attempt=False)
    process_instance(gw, InProcess(gw.keys), row.id, "again")  # type: ignore[arg-type]
    after = gw.index.get(row.id)
    assert after.state is State.ARCHIVED and after.patient_key != before.patient_key and after.form is Form.CODED
    release_spool(gw)
    assert not gw.spool.exists(after.digest) and original_bytes(gw, gw.index.get(row.id)) == data


def test_a_source_whose_key_was_destroyed_is_kept_until_the_shredding_is_repeated(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sweep.BATCH", 1)
    row = archived(gw, made_file(PATIENT, 1), released=False)
    other = archived(gw, made_file(OTHER, 1), released=False)
    gw.keys.destroy_patient_key(str(row.patient_key), b"")  # archived in the very moment
    assert release_spool(gw) == 1 and gw.spool.exists(row.digest), "it keeps no other back"
    assert gw.index.get(other.id).state is State.RELEASED and release_spool(gw) == 0
    assert [(alert.kind, alert.subject) for alert in gw.index.alerts()] == [("shred-unfinished", row.patient_key)]
    text = [found.text for found in examine(gw.keys, named=gw.index.patient_keys(), shredded=gw.index.shredded_keys())]
    assert any("the index still knows" in line for line in text)
    do_shred(gw)
    assert not gw.spool.exists(row.digest) and gw.index.alerts() == []


def test_a_key_that_only_the_index_names_is_destroyed_too(gw: Gateway, tmp_path: Path) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    backup = tmp_path / "backup"
    gw.keys.backup(backup, PASSPHRASE, log2_n=10)
    rmtree(gw.keys.folder / "patients")  # another host's, or lost
    patient = find_patient(gw, PATIENT)
    assert patient.key_ids == (row.patient_key,)
    do_shred(gw, patient)
    restored = KeyRing.restore(backup, PASSPHRASE, gw.keys.folder, overwrite=True)
    with pytest.raises(UnknownKey):
        restored.find_kek(str(row.patient_key))


def test_a_study_of_a_patient_with_an_id_is_not_shredded_by_its_uid(gw: Gateway) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    with gw.index.write() as conn:  # a header that pydicom could not read: the index knows the UIDs alone
        conn.execute(sa.update(attributes).values(patient_id=None))
    with pytest.raises(PolicyRefused, match="with an ID"):
        find_patient(gw, "", str(row.study_uid))


def test_a_patient_whose_name_another_one_s_images_show_is_not_shredded_until_that_is_revoked(gw: Gateway) -> None:
    target = archived(gw, made_file("MERGED-1", 1))
    other = archived(gw, made_file("MERGED-2", 2))
    number = gw.index.correction_add("admin", {"PatientID": "MERGED-1", "PatientName": NAME}, patient_id="MERGED-2")
    gw.index.corrections_run()
    for _ in range(2):  # revoked is not enough: what is shown must have been taken back
        with pytest.raises(PolicyRefused) as refused:
            do_shred(gw, find_patient(gw, "MERGED-1"))
        assert refused.value.reason == "shred-merged" and str(number) in refused.value.message
        if gw.index.corrections()[0]["revoked_at"] is None:
            gw.index.correction_revoke(number, "admin")
    gw.index.corrections_run()
    do_shred(gw, find_patient(gw, "MERGED-1"))
    assert gw.index.corrections() == []
    assert gw.index.get(target.id).shredded_at is not None and gw.index.get(other.id).shredded_at is None
    assert b"MERGED-2" in original_bytes(gw, gw.index.get(other.id))


def test_a_lost_patient_key_is_never_made_anew(gw: Gateway) -> None:
    row = archived(gw, made_file(PATIENT, 1))
    rmtree(gw.keys.folder / "patients")
    with pytest.raises(Unavailable, match="keys restore") as caught:
        archived(gw, made_file(PATIENT, 2))
    assert gw.keys.patients.ids() == []
    record_failure(gw, row.id + 1, "test", caught.value)
    (alert,) = gw.index.alerts()
    assert (alert.kind, alert.subject) == ("patient-key-lost", "key ring")
    archived(gw, made_file(OTHER, 1))  # the others go on
    assert gw.index.get(row.id).state is State.RELEASED
